"""Questions in SQL: they see all rows, and nothing else of this machine."""

import re
import shutil

import pytest

from dgn.errors import DgnError, RunDamaged
from dgn.runs.index import update_index
from dgn.runs.layout import metadata_key
from dgn.runs.query import Rows
from dgn.runs.run import Run
from dgn.runs.sql import select
from dgn.runs.stores import open_store
from tests.helpers.queried import write_queried
from tests.helpers.rows import every_row

pytest.importorskip("duckdb")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_queried(tmp_path_factory.mktemp("queried") / "run", are_flat=True)


@pytest.fixture
def queried(folder):
    return Rows(Run(open_store(str(folder))))


def test_sql_sees_all_rows(queried, folder):
    rows = every_row(folder)
    query = "SELECT layer, mode, count(*) AS n, max(activation) AS best FROM rows GROUP BY ALL ORDER BY ALL"
    found = select(queried, query).to_pylist()
    for one in found:
        own = [row for row in rows if (row["layer"], row["mode"]) == (one["layer"], one["mode"])]
        assert one["n"] == len(own)
        assert one["best"] == max(row["activation"] for row in own if row["activation"] is not None)
    assert sum(one["n"] for one in found) == len(rows)


BAD = {
    "": "--sql: expected one SELECT, got 0 statements",
    "-- nothing": "--sql: expected one SELECT, got 0 statements",
    "SELECT 1; SELECT 2": "--sql: expected one SELECT, got 2 statements",
    "SELECT layer, mode AS layer FROM rows": "--sql: 2 columns are called 'layer': tell them apart with AS",
    "SELECT * FROM Judged": "there are no judgements yet, and no table judged: dgn judge RUN --by NETWORK makes them",
    "SELEC": "--sql: Parser Error",
    "SELECT nix FROM rows": "--sql: Binder Error",
    "COPY rows TO '/tmp/dgn-out.csv'": "file system operations are disabled",
    "SELECT * FROM read_text('/etc/hostname')": "file system operations are disabled",
}


@pytest.mark.parametrize("sql", BAD)
def test_what_is_wrong_is_one_line(sql, queried):
    with pytest.raises(DgnError, match=re.escape(BAD[sql])) as caught:
        select(queried, sql)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def damaged(store, sql="SELECT label FROM rows"):
    with pytest.raises(RunDamaged) as caught:
        select(Rows(Run(store)), sql)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("is_in_bucket", [False, True])
def test_a_file_that_is_missing_or_damaged_is_named(folder, tmp_path, is_in_bucket, request):
    shutil.copytree(folder, tmp_path / "run")
    store = open_store(f"s3://{request.getfixturevalue('bucket')}/run" if is_in_bucket else str(tmp_path / "run"))
    if is_in_bucket:
        for path in (tmp_path / "run").rglob("*"):
            if path.is_file() and path.suffix != ".png":
                store.write(str(path.relative_to(tmp_path / "run")), path.read_bytes())
    [key] = [key for key in store.list("index") if key.endswith("rows.parquet")]
    for data in (store.read(key)[:-200], None):
        store.delete(key) if data is None else store.write(key, data)
        assert key in (said := damaged(store))
        assert said.endswith("dgn index --rebuild makes it again")
    update_index(Run(store), rebuild=True)
    assert select(Rows(Run(store)), "SELECT label FROM rows").num_rows == 416
    store.write(metadata_key(5), b"")
    for key in list(store.list("index")):
        store.delete(key)
    assert "000005.parquet" in (said := damaged(store))
    assert said.endswith("dgn verify lists everything that is wrong")
