"""Questions about a run's rows: answered as by Python over every row, reading no more than an answer needs."""

import random
import shutil

import pytest

from dgn.errors import DgnError
from dgn.runs.conditions import parse_condition
from dgn.runs.index import update_index
from dgn.runs.query import Rows
from dgn.runs.run import NUM_READERS, Run
from dgn.runs.schema import QUERY_COLUMNS
from dgn.runs.stores import open_store
from dgn.runs.stores.local import LocalStore
from tests.helpers.queried import best_first, fulfils, write_queried
from tests.helpers.rows import every_row


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_queried(tmp_path_factory.mktemp("queried") / "run", are_flat=True)


@pytest.fixture(scope="module")
def rows(folder):
    return every_row(folder)


@pytest.fixture
def run(folder):
    return Run(open_store(str(folder)))


def test_random_questions_are_answered_as_over_every_row(run, rows):
    stream = random.Random(3)
    asked = ["layer", "mode", "unit", "label", "status", "activation", "rank", "probability", "seed", "shard", "reason"]
    num_some = 0
    for n in range(150):
        if n % 10 == 0:
            opened = Rows(run)
        conditions = []
        for _ in range(stream.randrange(3)):
            column = stream.choice(asked)
            value = stream.choice([row[column] for row in rows if row[column] is not None])
            signs = ["=", "!=", ">=", "<=", ">", "<"] + (["~"] if isinstance(value, str) else [])
            conditions.append((column, stream.choice(signs), value))
        by, top = stream.choice(["activation", "probability", "rank"]), stream.choice([None, 1, 7, 50])
        columns = stream.sample(QUERY_COLUMNS, 4)
        found = opened.select(
            [parse_condition(f"{column}{sign}{value!r}".replace("'", "")) for column, sign, value in conditions],
            columns, by, top,
        )  # fmt: skip
        expected = best_first([row for row in rows if all(fulfils(row, *one) for one in conditions)], by)[:top]
        assert found.column_names == columns
        assert found.to_pylist() == [{name: row[name] for name in columns} for row in expected]
        num_some += 0 < len(expected) < len(rows)
    assert num_some > 50  # else the questions were empty ones


def test_all_rows_once(run, rows):
    found = [row for table in Rows(run).tables(["target_id", "activation"]) for row in table.to_pylist()]
    assert len(found) == len(rows)
    assert {row["target_id"]: row["activation"] for row in found} == {r["target_id"]: r["activation"] for r in rows}
    assert Rows(run).layers() == ["conv1_1", "conv3_1", "fc8"]
    assert Rows(run).dataset().count_rows() == len(rows)


@pytest.mark.parametrize(("columns", "by"), [(["colour"], "activation"), (["thumbnail"], "rank"), (["unit"], "unit")])
def test_other_columns_are_refused(run, columns, by):
    with pytest.raises(DgnError, match=f"unknown column '{'unit' if by == 'unit' else columns[0]}': expected one of"):
        Rows(run).select([], columns, by)


class CountingStore(LocalStore):
    """A local store that counts its requests."""

    def __init__(self, folder):
        super().__init__(folder)
        self.requests = []

    def read(self, key):
        self.requests.append(key)
        return super().read(key)

    def read_range(self, key, start, stop):
        self.requests.append(key)
        return super().read_range(key, start, stop)

    def read_end(self, key, num_bytes):
        self.requests.append(key)
        return super().read_end(key, num_bytes)

    def list(self, prefix, is_hidden=False):
        self.requests.append(f"list {prefix}")
        return super().list(prefix, is_hidden)


def test_the_best_of_a_layer_are_read_from_few_row_groups(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "run")
    store = CountingStore(str(tmp_path / "run"))
    monkeypatch.setattr("dgn.runs.index_parts.GROUP_ROWS", 16)  # 26 row groups
    monkeypatch.setattr("dgn.runs.index.PART_ROWS", 160)  # three parts
    index = update_index(Run(store), rebuild=True)
    assert len(index.parts) == 3
    store.requests.clear()
    rows = Rows(Run(store))
    asked = [parse_condition("layer=fc8"), parse_condition("mode=untrained")]
    found = rows.select(asked, top=5)
    assert found.num_rows == 5
    assert not [request for request in store.requests if request.startswith(("list", "metadata"))]
    assert len(store.requests) <= 10  # run.json, current.json, two footers, four row groups of four and their columns
    opened = len(store.requests)
    assert rows.select(asked, top=5).equals(found)
    assert len(store.requests) - opened <= 6


def test_from_s3(folder, bucket, rows):
    store = open_store(f"s3://{bucket}/run")
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".png":
            store.write(str(path.relative_to(folder)), path.read_bytes())
    found = Rows(Run(store)).select([], ["target_id"], top=4)["target_id"].to_pylist()
    assert found == [row["target_id"] for row in best_first(rows, "activation")[:4]]
    assert Rows(Run(store)).dataset().count_rows() == len(rows)
    assert store.client.meta.config.max_pool_connections == NUM_READERS
