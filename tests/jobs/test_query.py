"""`dgn query`: the same rows in every format, pictures copied whole or not at all."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from dgn.jobs.common import printing
from dgn.runs.layout import metadata_key
from dgn.runs.schema import QUERY_COLUMNS
from dgn.runs.stores import open_store
from tests.helpers.fake_runs import write_fake_run
from tests.helpers.queried import best_first, write_queried
from tests.helpers.rows import assert_one_line, edit_rows, every_row, names_in


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_queried(tmp_path_factory.mktemp("queried") / "run", are_flat=True)


@pytest.fixture(scope="module")
def rows(folder):
    return every_row(folder)


def test_every_format_shows_the_same(folder, rows, dgn):
    expected = best_first([row for row in rows if row["layer"] == "fc8"], "probability")[:5]
    command = ["query", folder, "--where", "layer=fc8", "--by", "probability", "--top", 5]
    command += ["--columns", "target_id,label,probability,top5"]
    as_json = json.loads(dgn(*command, "--format", "json")[1])
    assert [row["target_id"] for row in as_json] == [row["target_id"] for row in expected]
    assert [row["top5"] for row in as_json] == [row["top5"] for row in expected]
    as_csv = list(csv.DictReader(io.StringIO(dgn(*command, "--format", "csv")[1])))
    assert [float(row["probability"]) for row in as_csv] == [row["probability"] for row in expected]
    table = dgn(*command)[1]
    assert all(row["target_id"] in table for row in expected)
    assert "5 rows" in table


def test_flags_are_conditions(folder, rows, dgn):
    def asked(*flags):
        return [row["target_id"] for row in json.loads(dgn("query", folder, *flags, "--format", "json")[1])]

    found = asked("--layer", "conv1_1", "--mode", "untrained", "--min-activation", 20, "--status", "ok", "--top", 9)
    expected = [row for row in rows if row["layer"] == "conv1_1" and row["status"] == "ok" and row["activation"] >= 20]
    assert found == [row["target_id"] for row in best_first(expected, "activation")[:9]]
    assert asked("--where", "layer=fc8", "--top", 3) == asked("--where", "layer==fc8", "--top", 3)
    assert asked("--mode", "pretrained", "--layer", "fc8") == []


def test_columns_that_are_asked_for_are_shown(folder, rows, dgn):
    [row] = [row for row in rows if row["target_id"] == "fc8-00007-untrained-s0"]
    asked = ["query", folder, "--where", f"target_id={row['target_id']}"]
    assert row["file_name"] in dgn(*asked, "--columns", "target_id,file_name")[1]
    sql = f"SELECT target_id, file_name FROM rows WHERE target_id = '{row['target_id']}'"
    assert row["file_name"] in dgn(*asked[:2], "--sql", sql)[1]
    assert row["file_name"] not in dgn(*asked)[1]
    assert json.loads(dgn(*asked, "--format", "json")[1])[0]["file_name"] == row["file_name"]


@pytest.mark.parametrize(("chars", "first"), [(160, "{}"), (50, "target_id     {}")])
def test_a_table_that_does_not_fit_has_a_line_for_each_value(folder, dgn, monkeypatch, chars, first):
    monkeypatch.setattr(printing, "PIPED_CHARS", chars)
    out = dgn("query", folder, "--top", 3)[1]
    best = json.loads(dgn("query", folder, "--top", 3, "--columns", "target_id", "--format", "json")[1])
    lines = [line.strip() for line in out.splitlines() if "-s0" in line]
    assert len(lines) == len(best) == 3
    assert all(line.startswith(first.format(one["target_id"])) for line, one in zip(lines, best, strict=True))


def test_markup_is_text(folder, dgn):
    code, out, err = dgn("query", folder, "--sql", "SELECT '[red]' AS \"[/x]\"")
    assert (code, err) == (0, "")
    assert "[/x]" in out
    assert "[red]" in out


def test_json_has_no_numbers_that_are_not_finite(folder, dgn):
    sql = "SELECT 'nan'::FLOAT AS a, ['inf'::FLOAT, 1.5] AS b, {'c': '-inf'::DOUBLE} AS d, MAP {1: 'nan'::FLOAT} AS e"
    out = dgn("query", folder, "--sql", sql, "--format", "json")[1]
    assert json.loads(out, parse_constant=pytest.fail) == [
        {"a": None, "b": [None, 1.5], "d": {"c": None}, "e": [[1, None]]}
    ]


def test_parquet_comes_out_whole(folder, rows):
    command = [sys.executable, "-m", "dgn.jobs", "query", folder, "--columns", "all", "--format", "parquet"]
    finished = subprocess.run(command, capture_output=True, check=True)
    table = pq.read_table(io.BytesIO(finished.stdout))
    assert table.column_names == list(QUERY_COLUMNS)
    assert table.to_pylist() == [{name: row[name] for name in QUERY_COLUMNS} for row in best_first(rows, "activation")]


def test_a_run_without_pictures(dgn, tmp_path):
    run = write_fake_run(str(tmp_path / "run"), targets=["classes:0-3"], has_pictures=False)
    shutil.rmtree(tmp_path / "run" / "metadata")
    code, out, err = dgn("query", run.store.url, "--format", "json")
    assert (code, json.loads(out), err) == (0, [], f"{run.store.url} has no pictures yet\n")


def test_bad_input_is_one_line_and_nothing_is_written(folder, dgn, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for arguments, says in (
        (["--layer", "conv9_9"], "no pictures of layer 'conv9_9': it has conv1_1, conv3_1, fc8"),
        (["--layer", "fc8", "--where", "layer=conv9"], "no pictures of layer 'conv9': it has conv1_1, conv3_1, fc8"),
        (["--where", "layer~conv9"], "no pictures of a layer ~ 'conv9': it has conv1_1, conv3_1, fc8"),
        (["--columns", "target_id,nix"], "unknown column 'nix'"),
        (["--status", "fine"], "unknown status 'fine'"),
        (["--mode", "trained"], "unknown mode 'trained'"),
        (["--where", "rank=abc"], "'rank=abc': expected a value of type int32"),
        (["--columns", "layer,unit, layer"], "--columns: 2 columns are called 'layer': name it once"),
        (["--copy-to", tmp_path / "full"], "exists and holds x: give a new or an empty folder"),
        (["--copy-to", tmp_path / "full" / "x"], "is a file: give a new or an empty folder"),
        (["--copy-to", tmp_path / "full" / "x" / "y"], "x/y: Not a directory"),
        (["--copy-to", "/proc/x"], "cannot write to /proc/x: No such file or directory"),
        (["--copy-to", tmp_path / ("x" * 300)], "File name too long"),
        (["--sql", "SELECT 1", "--top", "3"], "--sql selects and orders rows and columns itself"),
        (["--sql", "SELECT 1", "--by", "activation"], "--sql selects and orders rows and columns itself"),
        (["--sql", "SELECT 1", "--columns", "layer"], "--sql selects and orders rows and columns itself"),
        (["--sql", ""], "--sql: expected one SELECT, got 0 statements"),
        (["--sql", f"COPY rows TO '{tmp_path}/out.csv'"], "file system operations are disabled"),
        (["--sql", "SELECT layer FROM rows", "--copy-to", tmp_path / "new"], "needs the column file_name"),
        *(
            (["--sql", f"SELECT {value} AS file_name", "--copy-to", tmp_path / "new"], "is not a picture of a run")
            for value in ("1", "'run.json'", "'images/../run.json'", "'metadata/000000.png'", "['a']")
        ),
    ):
        assert_one_line(dgn("query", folder, *arguments), 2, says)
    assert names_in(tmp_path) == ["full"]


@pytest.mark.parametrize("by_sql", [False, True])
def test_pictures_are_copied(folder, rows, dgn, tmp_path, by_sql):
    asked = (
        ["--sql", "SELECT file_name FROM rows WHERE shard = 3"]
        if by_sql
        else ["--where", "shard=3", "--columns", "unit"]
    )
    code, _, err = dgn("query", folder, *asked, "--copy-to", tmp_path / "copied")
    expected = {Path(row["file_name"]).name for row in rows if row["shard"] == 3 and row["file_name"]}
    assert code == 0
    assert "copied to" in err
    assert set(names_in(tmp_path / "copied")) == expected
    for path in (tmp_path / "copied").iterdir():
        assert Image.open(path).size == (224, 224)


def test_nothing_to_copy_makes_no_folder(folder, dgn, tmp_path):
    code, _, err = dgn("query", folder, "--where", "label=nosuch", "--copy-to", tmp_path / "copied")
    assert (code, err) == (0, "no picture to copy\n")
    assert not list(tmp_path.iterdir())


def test_a_missing_picture_leaves_no_copies(folder, dgn, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    next((tmp_path / "run" / "images").rglob("*.png")).unlink()
    answer = dgn("query", tmp_path / "run", "--copy-to", tmp_path / "copied")
    assert_one_line(answer, 1, "is missing; dgn verify lists everything that is wrong")
    assert not (tmp_path / "copied").exists()


@pytest.mark.parametrize("by_sql", [False, True])
def test_copies_are_the_rows_pictures_or_none(folder, dgn, tmp_path, by_sql):
    """A row of a run without an index names the picture of another row, or what is not a picture."""
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    shutil.rmtree(run / "index")
    (run / "images" / "other").mkdir()
    for name in ("00.png", "own.png"):
        shutil.copy(run / "images" / "fake" / "00000000" / "00.png", run / "images" / "other" / name)
    asked = ["--sql", "SELECT file_name, sha256 FROM rows"] if by_sql else []
    for changes, ends_with, says in (
        ({"file_name": "images/other/own.png", "sha256": "0" * 64}, 1, "own.png is not its row's picture"),
        ({"file_name": "images/other/own.png", "sha256": None}, 1, "bytes have another sha256"),
        ({"file_name": "images/other/00.png"}, 2, "would be one file 00.png"),
        ({"file_name": "run.json"}, 2, "file_name run.json is not a picture of a run"),
    ):
        edit_rows(run, lambda row, new=changes: row | new if row["target_id"] == "fc8-00007-untrained-s0" else None)
        assert_one_line(dgn("query", run, *asked, "--copy-to", tmp_path / "new" / "copied"), ends_with, says)
        assert names_in(tmp_path) == ["run"]


def test_copies_go_into_an_empty_folder_that_one_stands_in(folder, dgn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dgn("query", folder, "--top", 3, "--columns", "unit", "--copy-to", ".")[0] == 0
    assert 0 < len(list(tmp_path.iterdir())) <= 3
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".dgn-0123").mkdir()
    answer = dgn("query", folder, "--copy-to", "killed")
    assert_one_line(answer, 2, "killed exists and holds .dgn-0123 (left by a killed command: delete it)")


def test_a_damaged_run_is_one_line(folder, dgn, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    for path in (tmp_path / "run" / "index").glob("*/rows.parquet"):
        path.write_bytes(path.read_bytes()[:-200])
    for flags in ((), ("--sql", "SELECT label FROM rows")):
        assert_one_line(dgn("query", tmp_path / "run", *flags), 1, "dgn index --rebuild makes it again")
    (tmp_path / "run" / metadata_key(5)).write_bytes(b"")
    answer = dgn("index", tmp_path / "run", "--rebuild")
    assert_one_line(answer, 1, f"{metadata_key(5)} is not what was committed", "dgn resume renders the shard again")


def test_from_s3(folder, bucket, dgn, rows):
    store = open_store(f"s3://{bucket}/run")
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".png":
            store.write(str(path.relative_to(folder)), path.read_bytes())
    found = json.loads(dgn("query", store.url, "--top", 4, "--format", "json")[1])
    assert [row["target_id"] for row in found] == [row["target_id"] for row in best_first(rows, "activation")[:4]]
    found = json.loads(dgn("query", store.url, "--sql", "SELECT count(*) AS n FROM rows", "--format", "json")[1])
    assert found == [{"n": len(rows)}]


def test_the_index_says_what_it_holds(folder, dgn, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    for flags, parts in (((), "2 parts"), (("--rebuild",), "1 part"), ((), "1 part")):
        code, out, err = dgn("index", tmp_path / "run", *flags)
        sizes = re.fullmatch(rf"416 of 416 rows in {parts}: (\d+) kB of rows, (\d+) kB of thumbnails\n", out)
        assert (code, err, bool(sizes)) == (0, "", True), out
        for name, shown in (("rows", sizes[1]), ("thumbs", sizes[2])):
            current = json.loads((tmp_path / "run" / "index" / "current.json").read_text())
            paths = [tmp_path / "run" / "index" / part["id"] / f"{name}.parquet" for part in current["parts"]]
            assert int(shown) == round(sum(path.stat().st_size for path in paths) / 1000)
