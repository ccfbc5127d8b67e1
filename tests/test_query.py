"""Questions to a run's rows: answered as by Python over every row, reading no more than an answer needs."""

import csv
import io
import json
import math
import random
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import jobs.table
from cluster.index import update_index
from cluster.query import BEST_FIRST, COLUMNS, Rows, parse_condition
from cluster.run import NUM_READERS, Run, metadata_key
from cluster.storage import LocalStore, open_store
from dgn.errors import DgnError
from tests.fake_runs import write_fake_run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """416 rows of three layers in 52 shards, all but four of them indexed."""
    folder = tmp_path_factory.mktemp("fake") / "run"
    targets = ["filters:conv1_1", "filters:conv3_1:0-63", "classes:0-79"]
    run = write_fake_run(str(folder), targets=targets, seeds=2, shard_size=8)
    away = [folder / metadata_key(shard) for shard in (0, 5, 20, 51)]
    for path in away:
        path.rename(path.with_suffix(".away"))
    update_index(run)
    for path in away:
        path.with_suffix(".away").rename(path)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    """Every row, by another way than the index."""
    return [row for path in sorted((folder / "metadata").iterdir()) for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def run(folder):
    return Run(open_store(str(folder)))


def fulfils(row, column, sign, value):
    found = row[column]
    if found is None:
        return sign == "!="
    if sign == "~":
        return value.lower() in found.lower()
    return {
        "=": found == value, "!=": found != value, ">": found > value, ">=": found >= value, "<": found < value,
        "<=": found <= value,
    }[sign]  # fmt: skip


def best_first(rows, by):
    def key(row):
        value = row[by]
        by_activation = math.inf if row["activation"] is None else -row["activation"]
        sign = -1 if BEST_FIRST[by] == "descending" else 1
        return (value is None, 0 if value is None else sign * value, by_activation, row["target_id"])

    return sorted(rows, key=key)


def test_random_questions_are_answered_as_over_every_row(run, rows):
    stream = random.Random(3)
    asked = ["layer", "mode", "unit", "label", "status", "activation", "rank", "probability", "seed", "shard", "reason"]
    num_some = 0
    for _ in range(150):
        conditions = []
        for _ in range(stream.randrange(3)):
            column = stream.choice(asked)
            value = stream.choice([row[column] for row in rows if row[column] is not None])
            signs = ["=", "!=", ">=", "<=", ">", "<"] + (["~"] if isinstance(value, str) else [])
            conditions.append((column, stream.choice(signs), value))
        by, top = stream.choice(list(BEST_FIRST)), stream.choice([None, 1, 7, 50])
        columns = stream.sample(COLUMNS, 4)
        found = Rows(run).select(
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

    def list(self, prefix, is_hidden=False):
        self.requests.append(f"list {prefix}")
        return super().list(prefix, is_hidden)


def test_the_best_of_a_layer_are_read_from_few_row_groups(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "run")
    store = CountingStore(str(tmp_path / "run"))
    monkeypatch.setattr("cluster.index.GROUP_ROWS", 16)  # 26 row groups
    monkeypatch.setattr("cluster.index.PART_ROWS", 160)  # three parts
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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("activation", "is no condition: expected COLUMN"),
        ("label<=", "is no condition: expected COLUMN"),
        ("label===heron", "is no condition: expected COLUMN"),
        ("activation>nan", "expected a value of type float"),
        ("judge_rank=1", "what judges say is in --sql's table judged"),
        ("thumbnail=1", "unknown column 'thumbnail': expected one of run_id, target_id"),
        ("top5=1", "cannot compare column 'top5'"),
        ("rank=abc", "'rank=abc': expected a value of type int32"),
        ("rank=1.5", "expected a value of type int32"),
        ("unit=99999999999", "expected a value of type int32"),
        ("rank~1", "~ looks into text, rank is of type int32"),
        ("rendered_at>yesterday", "expected a value of type timestamp"),
    ],
)
def test_bad_conditions_are_one_line(text, says, run, dgn):
    with pytest.raises(DgnError, match=re.escape(says)):
        parse_condition(text)
    code, out, err = dgn("query", run.store.url, "--where", text)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_equality_may_be_written_as_in_python(run, dgn):
    once, twice = (dgn("query", run.store.url, "--where", f"layer{sign}fc8")[1] for sign in ("=", "=="))
    assert once == twice
    assert "fc8" in once


def test_nothing_to_copy_makes_no_folder(run, dgn, tmp_path):
    line = ["query", run.store.url, "--where", "label=nosuch", "--copy-to", tmp_path / "copied"]
    code, _, err = dgn(*line)
    assert (code, err) == (0, "no picture to copy\n")
    assert not list(tmp_path.iterdir())


def test_a_run_without_pictures_says_so(dgn, tmp_path):
    run = write_fake_run(str(tmp_path / "run"), targets=["classes:0-3"], has_pictures=False)
    shutil.rmtree(tmp_path / "run" / "metadata")
    code, out, err = dgn("query", run.store.url, "--format", "json")
    assert (code, json.loads(out), err) == (0, [], f"{run.store.url} has no pictures yet\n")


@pytest.mark.parametrize(("chars", "first"), [(160, "{}"), (50, "target_id     {}")])
def test_a_table_that_does_not_fit_has_a_line_for_each_value(run, dgn, monkeypatch, chars, first):
    monkeypatch.setattr(jobs.table, "PIPED_CHARS", chars)
    out = dgn("query", run.store.url, "--top", 3)[1]
    best = json.loads(dgn("query", run.store.url, "--top", 3, "--columns", "target_id", "--format", "json")[1])
    lines = [line.strip() for line in out.splitlines() if "-s0" in line]
    assert len(lines) == len(best) == 3
    assert all(line.startswith(first.format(one["target_id"])) for line, one in zip(lines, best, strict=True))


def test_other_bad_input_is_one_line_and_nothing_written(run, dgn, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for arguments, says in (
        (["--layer", "conv9_9"], "no pictures of layer 'conv9_9': it has conv1_1, conv3_1, fc8"),
        (["--columns", "target_id,nix"], "unknown column 'nix'"),
        (["--status", "fine"], "unknown status 'fine'"),
        (["--columns", "layer,unit, layer"], "--columns: 2 columns are called 'layer': name it once"),
        (["--copy-to", tmp_path / "full"], "exists and holds x: give a folder that does not, or an empty one"),
        (["--copy-to", tmp_path / "full" / "x"], "is a file: give a folder that does not, or an empty one"),
        (["--copy-to", tmp_path / "full" / "x" / "y"], "x/y: Not a directory"),
        (["--copy-to", "/proc/x"], "cannot write to /proc/x: No such file or directory"),
        (["--copy-to", tmp_path / ("x" * 300)], "File name too long"),
        (["--sql", "SELECT 1", "--top", "3"], "--sql says by itself"),
        (["--sql", "SELECT 1", "--by", "activation"], "--sql says by itself"),
        (["--sql", "SELECT 1", "--columns", "layer"], "--sql says by itself"),
        (["--sql", ""], "--sql: expected one SELECT, got 0 statements"),
        (["--sql", "SELECT 1; SELECT 2"], "--sql: expected one SELECT, got 2 statements"),
        (["--sql", "SELECT layer, mode AS layer FROM rows"], "--sql: 2 columns are called 'layer': tell them apart"),
        (["--sql", "SELECT * FROM Judged"], "no judgements yet: dgn judge RUN --by NETWORK makes them"),
        (["--sql", "SELEC"], "--sql: Parser Error"),
        (["--sql", "-- nothing"], "--sql: expected one SELECT, got 0 statements"),
        (["--sql", "SELECT nix FROM rows"], "--sql: Binder Error"),
        (["--sql", f"COPY rows TO '{tmp_path}/out.csv'"], "file system operations are disabled"),
        (["--sql", "SELECT * FROM read_text('/etc/hostname')"], "file system operations are disabled"),
        (["--sql", "SELECT layer FROM rows", "--copy-to", tmp_path / "new"], "needs the column file_name"),
        *(
            (["--sql", f"SELECT {value} AS file_name", "--copy-to", tmp_path / "new"], "is no picture of a run")
            for value in ("1", "'run.json'", "'images/../run.json'", "'metadata/000000.png'", "['a']")
        ),
    ):
        code, out, err = dgn("query", run.store.url, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), (arguments, err)
        assert says in err
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_every_format_tells_the_same(run, rows, dgn):
    expected = best_first([row for row in rows if row["layer"] == "fc8"], "probability")[:5]
    line = ["query", run.store.url, "--where", "layer=fc8", "--by", "probability", "--top", 5]
    line += ["--columns", "target_id,label,probability,top5"]
    as_json = json.loads(dgn(*line, "--format", "json")[1])
    assert [row["target_id"] for row in as_json] == [row["target_id"] for row in expected]
    assert [row["top5"] for row in as_json] == [row["top5"] for row in expected]
    as_csv = list(csv.DictReader(io.StringIO(dgn(*line, "--format", "csv")[1])))
    assert [float(row["probability"]) for row in as_csv] == [row["probability"] for row in expected]
    table = dgn(*line)[1]
    assert all(row["target_id"] in table for row in expected)
    assert "5 rows" in table


def test_columns_that_are_asked_for_are_shown(run, rows, dgn):
    [row] = [row for row in rows if row["target_id"] == "fc8-00007-untrained-s0"]
    asked = ["query", run.store.url, "--where", f"target_id={row['target_id']}"]
    assert row["file_name"] in dgn(*asked, "--columns", "target_id,file_name")[1]
    sql = f"SELECT target_id, file_name FROM rows WHERE target_id = '{row['target_id']}'"
    assert row["file_name"] in dgn(*asked[:2], "--sql", sql)[1]
    assert row["file_name"] not in dgn(*asked)[1]
    assert json.loads(dgn(*asked, "--format", "json")[1])[0]["file_name"] == row["file_name"]


def test_markup_is_text(run, dgn):
    code, out, err = dgn("query", run.store.url, "--sql", "SELECT '[red]' AS \"[/x]\"")
    assert (code, err) == (0, "")
    assert "[/x]" in out
    assert "[red]" in out


def test_json_has_no_numbers_that_are_not_finite(run, dgn):
    sql = "SELECT 'nan'::FLOAT AS a, ['inf'::FLOAT, 1.5] AS b, {'c': '-inf'::DOUBLE} AS d, MAP {1: 'nan'::FLOAT} AS e"
    out = dgn("query", run.store.url, "--sql", sql, "--format", "json")[1]
    assert json.loads(out, parse_constant=pytest.fail) == [
        {"a": None, "b": [None, 1.5], "d": {"c": None}, "e": [[1, None]]}
    ]


def test_parquet_comes_out_whole(run, rows):
    import subprocess
    import sys

    line = [sys.executable, "-m", "jobs", "query", run.store.url, "--columns", "all", "--format", "parquet"]
    done = subprocess.run(line, capture_output=True, check=True, cwd=ROOT)
    table = pq.read_table(io.BytesIO(done.stdout))
    assert table.column_names == list(COLUMNS)
    assert table.to_pylist() == [{name: row[name] for name in COLUMNS} for row in best_first(rows, "activation")]


def test_sql_sees_all_rows(run, rows, dgn):
    query = "SELECT layer, mode, count(*) AS n, max(activation) AS best FROM rows GROUP BY ALL ORDER BY ALL"
    found = json.loads(dgn("query", run.store.url, "--sql", query, "--format", "json")[1])
    for one in found:
        own = [row for row in rows if (row["layer"], row["mode"]) == (one["layer"], one["mode"])]
        assert one["n"] == len(own)
        assert one["best"] == max(row["activation"] for row in own if row["activation"] is not None)
    assert sum(one["n"] for one in found) == len(rows)


@pytest.mark.parametrize("by_sql", [False, True])
def test_pictures_are_copied(run, rows, dgn, tmp_path, by_sql):
    asked = (
        ["--sql", "SELECT file_name FROM rows WHERE shard = 3"]
        if by_sql
        else ["--where", "shard=3", "--columns", "unit"]
    )
    code, _, err = dgn("query", run.store.url, *asked, "--copy-to", tmp_path / "copied")
    expected = {Path(row["file_name"]).name for row in rows if row["shard"] == 3 and row["file_name"]}
    assert code == 0
    assert "copied to" in err
    assert {path.name for path in (tmp_path / "copied").iterdir()} == expected
    for path in (tmp_path / "copied").iterdir():
        assert Image.open(path).size == (224, 224)


def test_a_missing_picture_is_told_and_nothing_is_left(folder, dgn, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    next((copy / "images").rglob("*.png")).unlink()
    code, _, err = dgn("query", copy, "--copy-to", tmp_path / "copied")
    assert (code, err.count("\n")) == (1, 1)
    assert "is missing: dgn verify tells what else is" in err
    assert not (tmp_path / "copied").exists()


def change_row(folder, target_id, changes):
    for path in (folder / "metadata").iterdir():
        table = pq.read_table(path)
        changed = [row | changes if row["target_id"] == target_id else row for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(changed, schema=table.schema), path)


@pytest.mark.parametrize("by_sql", [False, True])
def test_copies_are_the_rows_pictures_or_none(folder, dgn, tmp_path, by_sql):
    """One row of a run without an index is another's."""
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "index")
    images = tmp_path / "run" / "images"
    (images / "other").mkdir()
    for name in ("00.png", "own.png"):
        shutil.copy(images / "fake" / "00000000" / "00.png", images / "other" / name)
    asked = ["--sql", "SELECT file_name, sha256 FROM rows"] if by_sql else []
    line = ["query", tmp_path / "run", *asked, "--copy-to", tmp_path / "new" / "copied"]
    for changes, ends_with, says in (
        ({"file_name": "images/other/own.png", "sha256": "0" * 64}, 1, "own.png has"),
        ({"file_name": "images/other/own.png", "sha256": None}, 1, "sha256 differs"),
        ({"file_name": "images/other/00.png"}, 2, "would be one file 00.png"),
        ({"file_name": "run.json"}, 2, "file_name run.json is no picture of a run"),
    ):
        change_row(tmp_path / "run", "fc8-00007-untrained-s0", changes)
        code, out, err = dgn(*line)
        assert (code, out, err.count("\n")) == (ends_with, "", 1)
        assert says in err
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_copies_go_into_an_empty_folder_that_one_stands_in(run, dgn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dgn("query", run.store.url, "--top", 3, "--columns", "unit", "--copy-to", ".")[0] == 0
    assert 0 < len(list(tmp_path.iterdir())) <= 3
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".dgn-0123").mkdir()
    code, _, err = dgn("query", run.store.url, "--copy-to", "killed")
    assert (code, err.count("\n")) == (2, 1)
    assert "killed exists and holds .dgn-0123 (what a command left that was killed: delete it)" in err


@pytest.mark.parametrize("is_in_bucket", [False, True])
def test_sql_tells_of_a_file_of_the_index_that_is_gone_or_damaged(folder, dgn, tmp_path, is_in_bucket, request):
    shutil.copytree(folder, tmp_path / "run")
    store = open_store(f"s3://{request.getfixturevalue('bucket')}/run" if is_in_bucket else str(tmp_path / "run"))
    if is_in_bucket:
        for path in (tmp_path / "run").rglob("*"):
            if path.is_file() and path.suffix != ".png":
                store.write(str(path.relative_to(tmp_path / "run")), path.read_bytes())
    [key] = [key for key in store.list("index") if key.endswith("rows.parquet")]
    line = ["query", store.url, "--sql", "SELECT label FROM rows"]
    for data in (store.read(key)[:-200], None):
        store.delete(key) if data is None else store.write(key, data)
        code, out, err = dgn(*line)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert key in err
        assert "--rebuild makes it again" in err
        assert "Traceback" not in err
    assert dgn("index", store.url, "--rebuild")[0] == 0
    assert dgn(*line)[0] == 0
    store.write(metadata_key(5), b"")
    shutil.rmtree(tmp_path / "run" / "index")
    for key in list(store.list("index")):
        store.delete(key)
    assert "000005.parquet" in (err := dgn(*line)[2])
    assert "dgn verify tells what else is wrong" in err


def test_from_s3(folder, bucket, dgn, rows):
    store = open_store(f"s3://{bucket}/run")
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".png":
            store.write(str(path.relative_to(folder)), path.read_bytes())
    line = ["query", store.url, "--top", 4, "--format", "json"]
    assert [row["target_id"] for row in json.loads(dgn(*line)[1])] == [
        row["target_id"] for row in best_first(rows, "activation")[:4]
    ]
    found = json.loads(dgn("query", store.url, "--sql", "SELECT count(*) AS n FROM rows", "--format", "json")[1])
    assert found == [{"n": len(rows)}]
    assert store.client.meta.config.max_pool_connections == NUM_READERS


def readme_snippets():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("snippet", readme_snippets()[1:], ids=lambda snippet: snippet.split()[1])
def test_the_readmes_queries_in_other_programs(snippet, folder, tmp_path, rows):
    """Each asks for the ten best of fc8, untrained, and leaves them in `best`."""
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    update_index(Run(open_store(str(copy))))
    names = {}
    exec(readme_snippets()[0].replace("RUN", str(copy)) + snippet, names)
    best = names["best"]
    if not isinstance(best, pa.Table):
        best = pa.Table.from_pandas(best) if hasattr(best, "iloc") else best.to_arrow()
    expected = best_first([row for row in rows if (row["layer"], row["mode"]) == ("fc8", "untrained")], "activation")
    assert best["target_id"].to_pylist() == [row["target_id"] for row in expected[:10]]


def test_the_readme_shows_four_programs():
    text = "".join(readme_snippets())
    assert all(name in text for name in ("pyarrow", "duckdb", "pandas", "polars"))
