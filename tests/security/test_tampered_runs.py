"""A run that somebody edited: rows stay in their run, errors are one line, and no text steers the terminal."""

import io
import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dgn.runs.layout import sha256
from dgn.text import printable
from tests.helpers.hostile import TERMINAL, edit_rows, ends_in_one_line


@pytest.mark.parametrize("name", ["../outside.png", "images/../../outside.png", "ABSOLUTE", "LINK", "a\0b"])
def test_no_row_leads_out_of_its_run(name, run, dgn, tmp_path):
    """Outside lies a real picture, which the commands would take if they could reach it."""
    outside = tmp_path / "outside.png"
    shutil.copy(next((run / "images").rglob("*.png")), outside)
    if name == "LINK":
        (run / "images" / "elsewhere").symlink_to(tmp_path)
        name = "images/elsewhere/outside.png"
    edit_rows(run, file_name=str(outside) if name == "ABSOLUTE" else name)
    for line in (("verify", run), ("sheet", run, tmp_path / "sheet.png")):
        ends_in_one_line(dgn(*line), "leads out of the run", with_code=1)
    assert not (tmp_path / "sheet.png").exists()
    assert dgn("query", run)[0] == dgn("gc", run, "--uncommitted")[0] == 0  # names are shown and compared, not read
    assert outside.exists()


@pytest.mark.parametrize("folder", ["images", "metadata", "failures"])
def test_a_folder_that_is_a_link_out_of_the_run_is_refused(folder, run, dgn, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.rmtree(run / folder, ignore_errors=True)
    victim = elsewhere / "000009" / "x" / "photo.png"
    victim.parent.mkdir(parents=True)
    victim.touch()
    (run / folder).symlink_to(elsewhere)
    for command in ("gc", "verify", "failed"):
        code, _, error = dgn(command, run, *(["--uncommitted"] if command == "gc" else []))
        if code:
            assert error.count("\n") == 1, error
    assert victim.exists()


LAYERS = {
    "network": "vgg16-mini", "units": {"conv1_1": 8, "fc8": 24}, "class_layer": "fc8", "filter_layers": ["conv1_1"],
    "labels": [], "aliases": {},
}  # fmt: skip
EDITED = {
    "no object": lambda content: [],
    "no fingerprint": lambda content: {**content, "fingerprint": "x"},
    "a hash less": lambda content: {**content, "fingerprint": {"schema_version": 1, "discriminator": "vgg16-mini"}},
    "no preset": lambda content: {**content, "config": {}},
    "negative": lambda content: {**content, "num_shards": -1},
    "a word": lambda content: {**content, "num_shards": "many"},
    "endless": lambda content: {**content, "num_shards": 10**30},
    "nothing": lambda content: {},
    "layers of billions": lambda content: {
        **content,
        "layers": LAYERS | {"units": {"fc8": 10**10}, "filter_layers": []},
    },
    "an unknown layer": lambda content: {**content, "layers": LAYERS | {"class_layer": "fc9"}},
}


@pytest.mark.parametrize("edit", EDITED)
def test_an_edited_run_json_is_one_line(edit, run, dgn, tmp_path):
    path = run / "run.json"
    path.write_text(json.dumps(EDITED[edit](json.loads(path.read_text()))))
    commands = ("status", "failed", "query", "verify", "gc", "resume")
    for line in (*((command, run) for command in commands), ("sheet", run, tmp_path / "sheet.png")):
        ends_in_one_line(dgn(*line), str(run))


@pytest.mark.parametrize("config", [{"preset": "standard", "seeds": "x"}, {"preset": "standard", "unknown": 1}])
def test_edited_settings_are_one_line(config, run, dgn):
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": config}))
    for command in ("verify", "resume"):
        ends_in_one_line(dgn(command, run), "does not fit this dgn")


def without(name):
    return lambda table: table.drop_columns([name])


def retyped(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


def not_utf8(table):
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"x"], pa.binary()).buffers())
    return table.set_column(table.column_names.index("label"), "label", bad)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (without("status"), "no column status"),
        (retyped("status", [1, 2]), "no column status of type string"),
        (retyped("status", pa.nulls(2, pa.string())), "rows without a status"),
        (not_utf8, "not a whole Parquet file"),
    ],
)
def test_edited_rows_are_one_line(edit, says, run, dgn, tmp_path):
    [path] = (run / "metadata").iterdir()
    pq.write_table(edit(pq.read_table(path)), path)
    commands = ("verify", "query", "failed", "status") if says != "not a whole Parquet file" else ("verify", "query")
    for line in (*((command, run) for command in commands), ("sheet", run, tmp_path / "sheet.png")):
        ends_in_one_line(dgn(*line), says, with_code=1)


def test_a_picture_that_is_not_ours_is_not_scored(run, dgn):
    """Its row's sha256 was edited with it."""
    png = io.BytesIO()
    Image.new("RGB", (1, 1)).save(png, "PNG")
    row = edit_rows(run, sha256=sha256(png.getvalue()))
    (run / row["file_name"]).write_bytes(png.getvalue())
    code, out, error = dgn("verify", run)
    assert (code, error.count("\n")) == (1, 1)
    assert f"{row['file_name']}: a picture of the run is 1 x 1 px" in out


def test_what_others_wrote_does_not_steer_the_terminal(run, dgn, tmp_path):
    edit_rows(run, label=TERMINAL, status="dead", reason=TERMINAL)
    note = run / "failures" / "000000" / "aaaaaaaa.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"shard": 7, "attempt": TERMINAL, "failed_at": TERMINAL, "error": TERMINAL}))
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**content, "run_id": TERMINAL}))
    for line in (
        ("query", run), ("query", run, "--format", "csv"), ("query", run, "--format", "json"), ("failed", run),
        ("status", run), ("verify", run), ("sheet", run, tmp_path / "sheet.png"),
    ):  # fmt: skip
        code, out, error = dgn(*line)
        assert code == 0 or line[0] == "verify", error
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", (out + error).replace("\r\n", "\n")), line
        if line[0] in ("query", "failed"):
            assert "[bold]x[/]" in out.replace("\n", ""), "shown as it is, not interpreted as markup"
    edit_rows(run, target_id=TERMINAL, file_name=f"../{TERMINAL}")
    for command in ("verify", "failed"):
        code, out, error = dgn(command, run)
        assert "\x1b" not in out + error
    assert printable(TERMINAL) == r"\x1b[31m\x1b]0;owned\x07[bold]x[/]\nline"
    assert printable("Süßwasser 鶴 …") == "Süßwasser 鶴 …"
