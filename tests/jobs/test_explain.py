"""`dgn explain`: where pictures come from, what it writes, that a stopped one is finished, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dgn.jobs.explanations.sheet import CELL_PX, GAP_PX, PICTURE_PX, TITLE_PX
from dgn.networks.embedded.drawings import LABELS
from dgn.runs.explanations import SCHEMA
from tests.helpers.photographs import write_drawings
from tests.helpers.rows import assert_one_line, contents, every_row, names_in, times

LAYER = ("--layers", "conv1_1")  # the run has pictures of its filters 0 and 1
TOP = ("--top", 8)  # as many as there are


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two drawings, one of them twice, a broken file and one of another kind."""
    folder = write_drawings(tmp_path_factory.mktemp("photographs"), 2)
    shutil.copy(folder / LABELS[0] / "0000.png", folder / "again.png")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture(scope="module")
def explained(rendered, photographs, tmp_path_factory):
    from dgn.jobs.explain import command

    out = tmp_path_factory.mktemp("explained") / "out"
    command(run=str(rendered), out=out, photographs=[str(photographs)], layers=LAYER[1], top=TOP[1])
    return out


@pytest.fixture(scope="module")
def rows(explained):
    table = pq.read_table(explained / "explain.parquet")
    assert table.schema.remove_metadata() == SCHEMA
    return table.to_pylist()


def test_pictures_are_the_runs_own_or_drawn_with_its_settings(explained, rows, rendered):
    theirs = {row["target_id"]: row for row in every_row(rendered)}
    ours = {row["target_id"]: row for row in every_row(explained / "run")}
    assert {row["target_id"] for row in rows} == ours.keys() | (theirs.keys() & {row["target_id"] for row in rows})
    assert not ours.keys() & theirs.keys()
    assert {row["run"] for row in rows} == {str(rendered), str(explained / "run")}
    for row in rows:
        held = theirs if row["run"] == str(rendered) else ours
        picture = held[row["target_id"]]
        assert (row["file_name"], row["status"]) == (picture["file_name"], picture["status"])
        assert row["file_name"] is None or Path(row["run"], row["file_name"]).is_file()
    before, after = (json.loads((run / "run.json").read_text()) for run in (rendered, explained / "run"))
    assert after["fingerprint"]["render"] == before["fingerprint"]["render"]
    assert after["fingerprint"]["weights_sha256"] == before["fingerprint"]["weights_sha256"]


def test_rows_say_what_each_filter_and_the_group_add(rows):
    for sheet in {row["sheet"] for row in rows}:
        of_sheet = [row for row in rows if row["sheet"] == sheet]
        filters, [group] = of_sheet[:-1], of_sheet[-1:]
        assert [row["place"] for row in of_sheet] == [*range(1, len(filters) + 1), 0]
        falls = [row["fall"] for row in filters]
        assert falls == sorted(falls, reverse=True)
        assert falls[-1] > 0
        assert (group["unit"], group["weight"]) == (None, None)
        assert all(row["label"] == LABELS[row["class"]] for row in of_sheet)
        assert group["target_id"].startswith(f"conv1_1-{'_'.join(_weighted(row) for row in filters)}-untrained")


def _weighted(row):
    return f"{row['unit']}" if row["weight"] == 1 else f"{row['unit']}x{row['weight']:g}"


def test_a_sheet_shows_every_picture(explained, rows):
    assert names_in(explained) == ["0001.png", "again.png", "explain.parquet", "run"]
    of_sheet = [row for row in rows if row["sheet"] == "0001.png"]
    sheet = np.asarray(Image.open(explained / "0001.png"))
    y = PICTURE_PX + 2 * GAP_PX + TITLE_PX + GAP_PX
    assert sheet.shape[:2] == (
        y + CELL_PX + GAP_PX, max(4, len(of_sheet)) * (PICTURE_PX + GAP_PX) + GAP_PX
    )  # fmt: skip
    for n, row in enumerate([of_sheet[-1], *of_sheet[:-1]]):  # the group first
        picture = Image.open(Path(row["run"], row["file_name"])).convert("RGB")
        wanted = np.asarray(picture.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS))
        x = GAP_PX + n * (PICTURE_PX + GAP_PX)
        assert np.array_equal(sheet[y : y + PICTURE_PX, x : x + PICTURE_PX], wanted)


def test_a_stopped_explanation_is_finished(explained, rendered, photographs, dgn, tmp_path):
    """Without its sheets and one of its shards, as if it had been killed."""
    out = tmp_path / "out"
    shutil.copytree(explained / "run", out / "run")
    shutil.rmtree(out / "run" / "index")
    [first, *others] = sorted((out / "run" / "metadata").iterdir())
    first.unlink()
    kept = times(out / "run" / "metadata")
    code, printed, err = dgn("explain", rendered, out, photographs, *LAYER, *TOP)
    assert code == 0, err
    assert others
    assert all(path.stat().st_mtime_ns == kept[path] for path in others)
    assert contents(out).keys() >= {"0001.png", "again.png", "explain.parquet"}
    assert (out / "0001.png").read_bytes() == (explained / "0001.png").read_bytes()
    last = printed.splitlines()[-1]
    assert last.startswith(f"2 sheets in {out}, with ")
    assert "; 1 unreadable, such as broken.png: " in last
    assert f"; left out: 1 .txt in {photographs}" in last
    assert_one_line(dgn("explain", rendered, out, photographs), 2, "exists and holds 0001.png and 2 more")


def test_another_class_by_a_single_filter(rendered, photographs, dgn, tmp_path):
    """One filter is no group."""
    photograph = photographs / LABELS[1] / "0001.png"
    code, _, err = dgn("explain", rendered, tmp_path / "out", photograph, *LAYER, "--top", 1, "--class", "star")
    assert code == 0, err
    [row] = pq.read_table(tmp_path / "out" / "explain.parquet").to_pylist()
    assert (row["label"], row["place"], row["weight"]) == ("star", 1, 1)
    about = json.loads(pq.read_schema(tmp_path / "out" / "explain.parquet").metadata[b"dgn"])
    assert (about["schema_version"], about["top"], about["layers"]) == (1, 1, ["conv1_1"])


def test_bad_input_ends_in_one_line_before_anything_is_written(rendered, photographs, dgn, tmp_path):
    out = tmp_path / "out"
    for name in ("full", "empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG")
    for arguments, says in (
        ((rendered, tmp_path / "full", photographs), "exists and holds x: give a new or an empty folder"),
        ((tmp_path / "none", out, photographs), "no run at"),
        ((rendered, out, tmp_path / "none.jpg"), "none.jpg is not there: expected a photograph, or a folder of them"),
        ((rendered, out, tmp_path / "empty"), "no pictures in"),
        ((rendered, out, tmp_path / "broken"), "none of 1 photograph can be read, such as a.png: "),
        ((rendered, out, photographs, "--layers", "fc8"), "'fc8' is not a filter layer of vgg16-mini"),
        ((rendered, out, photographs, "--layers", "conv9"), "'conv9' is not a layer of vgg16-mini"),
        ((rendered, out, photographs, "--class", "stork"), "unknown class 'stork'"),
        ((rendered, out, photographs, "--top", 0), "--top"),
        ((rendered, out, photographs, "--weights", tmp_path / "missing.pth"), "missing.pth"),
    ):
        assert_one_line(dgn("explain", *arguments), 2, says)
    assert not out.exists()
