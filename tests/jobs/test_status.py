"""`dgn status` and `dgn failed`: how far a run is, and what went wrong in it."""

import json
import shutil
from collections import Counter

import pytest

from dgn.jobs import status
from dgn.runs.info import Extension
from dgn.runs.layout import metadata_key
from dgn.runs.run import Run
from dgn.runs.stores import LocalStore
from tests.helpers.queried import write_queried
from tests.helpers.rows import edit_rows, every_row


def test_status(rendered, dgn):
    code, out, _ = dgn("status", rendered, "--json")
    content = json.loads(out)
    assert code == 0
    assert (content["pictures_done"], content["pictures"], content["is_whole"]) == (8, 8, True)
    assert sum(content["statuses"].values()) == 8
    assert dgn("status", rendered, "--watch")[1].count("8 of 8 pictures") == 1


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """52 shards, all but four of them indexed."""
    return write_queried(tmp_path_factory.mktemp("indexed") / "run", are_flat=True)


def lose_current(folder):
    shutil.rmtree(folder / "index")


def damage_current(folder):
    (folder / "index" / "current.json").write_text('{"version": 1}')


def damage_part(folder):
    [rows] = (folder / "index").rglob("rows.parquet")
    rows.write_bytes(b"x" * rows.stat().st_size)


def lose_shard(folder):
    (folder / metadata_key(7)).unlink()


def leave(folder):
    pass


@pytest.mark.parametrize(
    ("change", "num_read", "warning"),
    [
        (leave, 4, ""), (lose_current, 52, ""), (damage_current, 52, "is not what was written"),
        (damage_part, 52, "is not what was written"), (lose_shard, 51, ""),
    ],
)  # fmt: skip
def test_status_counts_the_same_with_any_index(indexed, dgn, tmp_path, monkeypatch, caplog, change, num_read, warning):
    """It reads the shards that no index, or none that can be used, holds."""
    folder = tmp_path / "run"
    shutil.copytree(indexed, folder)
    change(folder)
    expected = Counter(row["status"] for row in every_row(folder))
    read = list[str]()

    def note(store, key, num_bytes, read_end=LocalStore.read_end):
        read.append(key)
        return read_end(store, key, num_bytes)

    monkeypatch.setattr(LocalStore, "read_end", note)
    code, out, _ = dgn("status", folder, "--json")
    content = json.loads(out)
    assert (code, content["statuses"], content["pictures_done"]) == (0, dict(expected), expected.total())
    assert len([key for key in read if key.startswith("metadata/")]) == num_read
    assert warning in caplog.text
    assert bool(warning) == bool(caplog.records)


def test_a_watch_sees_targets_that_are_added(indexed, dgn, tmp_path, monkeypatch):
    folder = shutil.copytree(indexed, tmp_path / "run")
    (folder / metadata_key(7)).rename(tmp_path / "shard")
    run = Run.at(str(folder))
    num = run.info().num_targets
    [last] = run.tables([51])

    def add(_):
        if not (folder / "extensions").exists():
            run.extend(run.info(), Extension("", num_targets=4, num_shards=1))
            return
        (tmp_path / "shard").rename(folder / metadata_key(7))
        run.commit(52, "0" * 8, last.to_pylist(), {})

    monkeypatch.setattr(status.time, "sleep", add)
    code, out, _ = dgn("status", folder, "--watch")
    lines = [line.partition(" (")[0] for line in out.splitlines() if "pictures" in line]
    assert code == 0
    assert [line.rpartition(" of ")[2] for line in lines] == [f"{num} pictures", *[f"{num + 4} pictures"] * 2]
    assert lines[-1] == f"{num + last.num_rows} of {num + 4} pictures"


def test_failed_lists_what_is_not_ok_and_what_is_missing(rendered, dgn, tmp_path):
    shutil.copytree(rendered, tmp_path / "run")
    edit_rows(tmp_path / "run", lambda row: row | {"status": "ok", "reason": None})
    code, out, _ = dgn("failed", tmp_path / "run")
    assert (code, out) == (0, "0 shards missing after 0 failed attempts, 0 pictures not ok\n")
    edit_rows(tmp_path / "run", lambda row: row | {"status": "dead", "reason": "silent"} if row["unit"] == 7 else None)
    (tmp_path / "run" / "metadata" / "000001.parquet").unlink()
    Run.at(str(tmp_path / "run")).note_failure(1, "0123abcd", "OSError: no\x1b luck", {})
    code, out, _ = dgn("failed", tmp_path / "run")
    first, second, last = out.splitlines()
    assert code == 0
    assert first.startswith("shard 000001 attempt 0123abcd ")
    assert first.endswith(r": OSError: no\x1b luck")
    assert second == "fc8-00007-untrained-s0: dead, silent"
    assert last == "1 shard missing after 1 failed attempt, 1 picture not ok"
