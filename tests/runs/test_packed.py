"""Pictures in the committed file of their shard: each a range of its bytes, and rows that are read without them."""

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from dgn.errors import RunDamaged, StoreError
from dgn.runs import schema
from dgn.runs.layout import metadata_key, sha256
from dgn.runs.run import END_BYTES, Run
from dgn.runs.stores import LocalStore

NUM_ROWS = 32
PICTURE_BYTES = 100_000


def make_rows(count=NUM_ROWS, thumbnail_bytes=2500, attempt="aaaaaaaa"):
    stream = np.random.default_rng(0)
    pngs = [stream.bytes(PICTURE_BYTES + n) for n in range(count)]
    pngs[3], pngs[5] = None, pngs[4]
    return [
        {
            "target_id": f"fc8-{n:05d}-untrained-s0", "shard": 0, "attempt": attempt, "layer": "fc8", "status": "ok",
            "mode": "untrained", "file_name": None, "sha256": png and sha256(png), schema.PNG: png,
            "thumbnail": stream.bytes(thumbnail_bytes),
        }
        for n, png in enumerate(pngs)
    ]  # fmt: skip


class Counting(LocalStore):
    """Counts the bytes that it reads."""

    def __init__(self, folder):
        super().__init__(folder)
        self.num_read = []

    def read_range(self, key, start, stop):
        self.num_read.append(stop - start)
        return super().read_range(key, start, stop)

    def read_end(self, key, num_bytes):
        data, whole = super().read_end(key, num_bytes)
        self.num_read.append(len(data))
        return data, whole


@pytest.fixture
def run(tmp_path):
    return Run(Counting(str(tmp_path / "run")))


def names(run):
    [table] = run.tables([0], ["file_name"])
    return table["file_name"].to_pylist()


def test_every_reader_finds_the_pictures(run):
    rows = make_rows()
    run.commit(0, "aaaaaaaa", rows, {"run_id": "r"})
    path = f"{run.store.url}/{metadata_key(0)}"
    pngs = [row[schema.PNG] for row in rows]
    assert pq.read_table(path)[schema.PNG].to_pylist() == pngs
    assert [png for (png,) in duckdb.sql(f"SELECT png FROM '{path}' ORDER BY target_id").fetchall()] == pngs
    found = [name and run.picture(name, row["sha256"]) for name, row in zip(names(run), rows, strict=True)]
    assert found == pngs
    assert len({*names(run)}) == NUM_ROWS  # equal pictures have places of their own
    assert list(run.store.list("")) == [metadata_key(0)]


def test_rows_are_read_without_their_pictures(run):
    run.commit(0, "aaaaaaaa", make_rows(), {"run_id": "r"})
    names(run)
    assert run.store.num_read == [END_BYTES]
    run.store.num_read.clear()
    [table] = run.tables([0])
    assert (table.num_rows, run.store.num_read) == (NUM_ROWS, [END_BYTES])
    assert schema.PNG not in table.column_names


@pytest.mark.parametrize("thumbnail_bytes", [2500, 40_000])
def test_rows_longer_than_the_end_take_a_second_request(run, thumbnail_bytes):
    rows = make_rows(256, thumbnail_bytes)
    run.commit(0, "aaaaaaaa", rows, {"run_id": "r"})
    [table] = run.tables([0])
    assert table["thumbnail"].to_pylist() == [row["thumbnail"] for row in rows]
    assert len(run.store.num_read) == 2
    assert sum(run.store.num_read) < 256 * (thumbnail_bytes + 1000)


def test_of_two_attempts_the_first_stays_whole(run):
    first, second = make_rows(attempt="aaaaaaaa"), make_rows(attempt="bbbbbbbb")
    run.commit(0, "aaaaaaaa", first, {"run_id": "r"})
    before = run.store.read(metadata_key(0))
    run.commit(0, "aaaaaaaa", first, {"run_id": "r"})  # its answer was lost
    run.commit(0, "bbbbbbbb", second, {"run_id": "r"})
    assert run.store.read(metadata_key(0)) == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("metadata/000000.parquet#bytes=3300000-9900000", "ends before byte 9900001"),
        ("metadata/000000.parquet#bytes=4-99999", "its 99996 bytes have another sha256"),
        ("metadata/000001.parquet#bytes=4-99", "is missing"),
        ("metadata/000000.parquet#bytes=99-4", "is missing"),
        ("metadata/000000.parquet#bytes=0-999999999999", "is missing"),  # more than any picture has
        ("../metadata/000000.parquet#bytes=4-99", "leads out of the run"),
    ],
)
def test_places_that_hold_no_picture_are_damage(run, name, says):
    run.commit(0, "aaaaaaaa", make_rows(), {"run_id": "r"})
    with pytest.raises(RunDamaged, match=says):
        run.picture(name, "0" * 64)


def test_a_store_that_fails_says_nothing_about_the_shard(run, monkeypatch):
    """Or its message would advise to delete the shard."""
    run.commit(0, "aaaaaaaa", make_rows(256), {"run_id": "r"})

    def fail(*_):
        raise StoreError("cannot use it: away")

    monkeypatch.setattr(run.store, "read_range", fail)
    with pytest.raises(StoreError, match="cannot use it: away") as raised:
        list(run.tables([0]))
    assert not isinstance(raised.value, RunDamaged)
