"""`dgn judge`: what is judged stays, what is missing or out of date is judged again, what is damaged is named."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from dgn.errors import DgnError
from dgn.networks import embedded
from dgn.networks.registry import network_named
from dgn.networks.weights import load_weights
from dgn.pictures.second_opinion import check_independent
from dgn.runs.judgements import write_judgements
from dgn.runs.stores import open_store
from tests.helpers.judged import BY, FOLDER, check_compacted, judged_rows
from tests.helpers.rows import assert_one_line, times


@pytest.fixture
def run(judged, tmp_path):
    shutil.copytree(judged, tmp_path / "run")
    return tmp_path / "run"


def test_sql_joins_them(judged, dgn):
    pytest.importorskip("duckdb")
    columns = ("target_id", "judge_rank", "turn_rank")
    sql = f"""SELECT {", ".join(columns)} FROM rows JOIN judged USING (target_id) WHERE "by" LIKE 'v%' AND rank >= 1"""
    found = json.loads(dgn("query", judged, "--sql", sql, "--format", "json")[1])
    expected = judged_rows(judged)
    assert {one["target_id"]: one for one in found} == {
        name: {column: row[column] for column in columns} for name, row in expected.items()
    }


def test_sql_sees_no_table_where_nothing_is_judged(rendered, dgn):
    pytest.importorskip("duckdb")
    answer = dgn("query", rendered, "--sql", "SELECT * FROM judged")
    assert_one_line(
        answer, 2, "there are no judgements yet, and no table judged: dgn judge RUN --by NETWORK makes them"
    )


def judged_at(folder):
    """When each shard's file was written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "judgements" / FOLDER).iterdir()}


def test_what_is_judged_stays_and_what_is_missing_is_made_again(run, dgn):
    before, expected = judged_at(run), judged_rows(run)
    index = (run / "index/current.json").read_bytes()
    assert dgn("judge", run, *BY)[0] == 0
    assert judged_at(run) == before
    assert (run / "index/current.json").read_bytes() == index
    (run / "judgements" / FOLDER / "000003.parquet").unlink()
    code, out, _ = dgn("judge", run, *BY)
    assert code == 0
    assert out.startswith("2 pictures in ")
    assert {name: time for name, time in judged_at(run).items() if before[name] != time}.keys() == {"000003.parquet"}
    assert judged_rows(run) == expected
    check_compacted(run, expected)


def test_an_interrupted_judge_leaves_whole_files_and_is_continued(run, dgn, monkeypatch):
    expected = judged_rows(run)
    shutil.rmtree(run / "judgements")
    shutil.rmtree(run / "index")
    written = []

    def write(*arguments, **options):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments)
        write_judgements(*arguments, **options)

    monkeypatch.setattr("dgn.jobs.judge.write_judgements", write)
    code, _, err = dgn("judge", run, *BY)
    assert code == 130
    assert "repeat the command to continue" in err
    assert {path.name for path in (run / "judgements" / FOLDER).iterdir()} == {"000000.parquet", "000001.parquet"}
    monkeypatch.undo()
    before = judged_at(run)
    assert dgn("judge", run, *BY)[0] == 0
    assert judged_at(run).items() > before.items()
    assert judged_rows(run) == expected
    check_compacted(run, expected)


def test_a_shard_that_was_rendered_again_is_judged_again(run, dgn):
    before, old = judged_at(run), judged_rows(run)
    (run / "metadata/000002.parquet").unlink()
    assert dgn("resume", run)[0] == 0
    again = pq.read_table(run / "metadata/000002.parquet").to_pylist()
    names = {row["target_id"] for row in again}
    assert old[again[0]["target_id"]]["attempt"] != again[0]["attempt"]
    check_compacted(run, {name: row for name, row in old.items() if name not in names})
    assert dgn("judge", run, *BY)[0] == 0
    assert {name for name, time in judged_at(run).items() if before[name] != time} == {"000002.parquet"}
    found = judged_rows(run)
    assert {found[name]["attempt"] for name in names} == {again[0]["attempt"]}
    check_compacted(run, found)


def test_judges_that_prove_nothing_are_refused(rendered, dgn, tmp_path):
    from torchvision.models import squeezenet1_0

    save_file(squeezenet1_0().state_dict(), tmp_path / "squeeze.safetensors")
    torch.save(load_weights("vgg16-mini").state, tmp_path / "same.pth")
    before = times(rendered)
    for flags, words in (
        (["--by", "vgg16-mini"], ["the network that made these pictures"]),
        (["--by", "vgg16-mini", "--weights", tmp_path / "same.pth"], ["the network that made these pictures"]),
        (["--by", "squeezenet1_0", "--weights", tmp_path / "squeeze.safetensors"], ["other classes", "1000", "24"]),
        (["--by", "vgg16-mini-b", "--weights", tmp_path / "squeeze.safetensors"], ["does not fit vgg16-mini-b"]),
        (["--by", "nonsense"], ["nonsense"]),
        (["--by", "vgg16-mini-b", "--discriminator-weights", tmp_path / "none.pth"], ["--discriminator-weights FILE"]),
        (
            ["--by", "vgg16-mini-b", "--discriminator-weights", embedded.weights_path("vgg16-mini-b")],
            ["not the weights file of this run", "--discriminator-weights FILE"],
        ),
        ([], ["--by NETWORK"]),
        (["--summary"], ["no judgements"]),
    ):
        assert_one_line(dgn("judge", rendered, *flags), 2, *words)
    assert times(rendered) == before


def test_other_labels_are_named_by_the_first_that_differs():
    judge, own = load_weights("vgg16-mini-b"), load_weights("vgg16-mini")
    assert check_independent(judge, own) == ""
    with pytest.raises(DgnError, match="class 0 is tench there"):
        check_independent(type(judge)(network_named("squeezenet1_0"), {}, "0" * 64, "x.pth"), own)


def test_a_judge_without_labels_is_believed_and_one_line_says_so(rendered, tmp_path, dgn, caplog):
    shutil.copytree(rendered, tmp_path / "run")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom tests.helpers.own_networks import Plain\n\n"
        "def build(classes=24):\n    torch.manual_seed(0)\n    return Plain(classes=classes)\n\n"
        "def other():\n    return build(23)\n"
    )
    sees = ("--input-size", "32", "--mean", "0.5", "--std", "0.25")
    assert dgn("judge", tmp_path / "run", "--by", f"{tmp_path}/net.py:build", *sees)[0] == 0
    said = "net.py:build has no labels: dgn cannot check that the classes are the same, in the same order"
    assert caplog.messages.count(said) == 1
    refused = dgn("judge", tmp_path / "run", "--by", f"{tmp_path}/net.py:other", *sees)
    assert_one_line(refused, 2, "it has other classes (23 there, 24 here)")
    assert dgn("judge", tmp_path / "run", *BY)[0] == 0
    assert caplog.messages.count(said) == 1


def test_weights_that_moved(run, dgn, tmp_path):
    shutil.rmtree(run / "judgements")
    moved = tmp_path / "moved.safetensors"
    shutil.copy(embedded.weights_path("vgg16-mini"), moved)
    info = json.loads((run / "run.json").read_text())
    info["config"]["weights"] = "/nowhere/gone.safetensors"
    (run / "run.json").write_text(json.dumps(info))
    assert_one_line(dgn("judge", run, *BY), 2, "--discriminator-weights FILE", "gone.safetensors")
    assert dgn("judge", run, *BY, "--discriminator-weights", moved)[0] == 0
    assert len(judged_rows(run)) == 8


@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
def test_a_damaged_picture_is_one_line_and_the_others_are_judged(run, dgn, damage):
    shutil.rmtree(run / "judgements")
    [picture] = run.glob("images/*/*/fc8-00001-*.png")
    match damage:
        case "missing":
            picture.unlink()
        case "cut":
            picture.write_bytes(picture.read_bytes()[:-100])
        case "another":
            [other] = run.glob("images/*/*/fc8-00002-*.png")
            shutil.copy(other, picture)
    code, out, err = dgn("judge", run, *BY)
    assert (code, err.count("\n")) == (1, 1)
    assert out.startswith("6 pictures in ")
    assert all(word in err for word in ("1 shard could not be judged", picture.name, "dgn verify"))
    assert len(judged_at(run)) == 4
    expected = judged_rows(run)
    assert len(expected) == 6
    check_compacted(run, expected)


def all_by(table, column, value):
    return table.set_column(table.column_names.index(column), column, pa.array([value] * len(table)))


@pytest.mark.parametrize(
    ("forge", "says"),
    [
        (lambda table: table.drop_columns(["turn_rank"]), "no column turn_rank"),
        (lambda table: all_by(table, "by", "mallory"), "not all of its judgements are by the judge"),
        (
            lambda table: all_by(table, "by_weights_sha256", f"{FOLDER[-8:]}/../../x"),
            "not all of its judgements are by",
        ),
    ],
)
def test_a_file_that_was_edited_is_named(run, dgn, forge, says):
    path = run / "judgements" / FOLDER / "000001.parquet"
    pq.write_table(forge(pq.read_table(path)), path)
    shutil.rmtree(run / "index")
    assert_one_line(dgn("index", run), 1, "000001.parquet", says, "dgn judge")
    path.write_bytes(b"PAR1")
    assert_one_line(dgn("index", run), 1, "000001.parquet", "not a whole Parquet file")


@pytest.mark.parametrize(
    ("field", "value"), [("name", "../../../etc/passwd"), ("by", "a/b"), ("weights_sha256", "x"), ("shards", [[5, 1]])]
)
def test_an_index_that_was_edited_leads_nowhere(run, dgn, field, value):
    path = run / "index/current.json"
    content = json.loads(path.read_text())
    content["parts"][0]["judged"][0][field] = value
    path.write_text(json.dumps(content))
    assert_one_line(dgn("judge", run, "--summary"), 1, "not what was written", "dgn index --rebuild")


def test_in_a_bucket(judged, bucket, dgn):
    pytest.importorskip("duckdb")
    url = f"s3://{bucket}/run"
    store = open_store(url)
    for path in judged.rglob("*"):
        if path.is_file() and path.relative_to(judged).parts[0] not in ("judgements", "index"):
            store.write(str(path.relative_to(judged)), path.read_bytes())
    code, out, _ = dgn("judge", url, *BY)
    assert code == 0
    assert out.startswith("8 pictures in s3://")
    sql = "SELECT target_id, judge_rank, blur_rank FROM judged"
    found = json.loads(dgn("query", url, "--sql", sql, "--format", "json")[1])
    expected = judged_rows(judged)
    assert {one["target_id"]: (one["judge_rank"], one["blur_rank"]) for one in found} == {
        name: (row["judge_rank"], row["blur_rank"]) for name, row in expected.items()
    }


@pytest.mark.parametrize("flag", ["--weights", "--discriminator-weights"])
def test_a_summary_takes_no_weights(flag, judged, dgn):
    answer = dgn("judge", judged, "--summary", flag, "x.pth")
    assert_one_line(answer, 2, "--summary", "leave out the flags that describe one")
