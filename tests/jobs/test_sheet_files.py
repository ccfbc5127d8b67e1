"""What `dgn sheet` writes over, and what it refuses: whole sheets or none, and one line for everything else."""

import shutil

import pytest
from PIL import Image

from tests.helpers.fake_runs import write_fake_run
from tests.helpers.rows import edit_rows, every_row
from tests.helpers.sheets import CELL_H, CELL_W, MARGIN, opened


@pytest.fixture
def own(pairs, tmp_path):
    """A run to change."""
    shutil.copytree(pairs, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "pdf"])
def test_only_a_sheet_is_overwritten(suffix, pairs, dgn, tmp_path):
    (tmp_path / "sheet").mkdir()
    sheet, photo, link = (tmp_path / folder / f"{'x' * 200}.{suffix}" for folder in ("sheet", "photo", "link"))
    assert dgn("sheet", pairs, sheet, "--picture-px", 64)[0] == 0
    assert dgn("sheet", pairs, sheet, "--picture-px", 32)[0] == 0
    photo.parent.mkdir()
    Image.effect_noise((300, 300), 50).save(photo, title="a letter" if suffix == "pdf" else "")
    link.parent.mkdir()
    link.symlink_to(sheet)
    before = {path: path.read_bytes() for path in (photo, sheet)}
    for path in (photo, link):
        code, out, err = dgn("sheet", pairs, path, "--picture-px", 32)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{path.name} exists and is not a sheet by dgn: give another name, or move it away" in err
    assert before == {path: path.read_bytes() for path in (photo, sheet)}
    assert link.is_symlink()


@pytest.mark.parametrize(
    "label", ["журавль", "鶴", "طائر", "🐦", "e\u0301\u0327", "\u202eabc", "\x1b[31m", "a\nb", " ", "x" * 100_000]
)
def test_any_label_can_be_drawn(label, own, dgn, tmp_path):
    edit_rows(own, lambda row: row | {"label": label, "reason": label} | ({"file_name": None} if row["seed"] else {}))
    code, _, err = dgn("sheet", own, tmp_path / "sheet.png", "--columns", 4)
    assert (code, err) == (0, "")
    assert opened(tmp_path / "sheet.png").size == (4 * CELL_W + MARGIN, 6 * CELL_H + MARGIN)


def test_rows_of_others_lead_nowhere(own, dgn, tmp_path):
    edit_rows(own, lambda row: row | {"label": None, "layer": ("../../up", "/root", ".x")[row["unit"] % 3]})
    assert dgn("sheet", own, tmp_path / "sheets", "--picture-px", 32)[0] == 0
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == [
        "_._.._up.png", "_root-000-099.png", "_root-100-199.png", "_x.png",
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "sheets"]
    for changes in ({"layer": None}, {"seed": None, "layer": "up"}):
        edit_rows(own, lambda row, changes=changes: row | changes)
        code, _, err = dgn("sheet", own, tmp_path / "none.png")
        assert (code, err.count("\n")) == (1, 1)
        assert f"rows without a {next(iter(changes))}" in err
    edit_rows(own, lambda row: row | {"layer": "fc8", "seed": 0, "mode": "upside", "target_id": "9" * 5000})
    assert dgn("sheet", own, tmp_path / "odd.png")[0] == 0
    edit_rows(own, lambda row: row | {"unit": None, "units": [None, {"layer": None, "unit": None, "weight": None}]})
    assert dgn("sheet", own, tmp_path / "odd.png")[0] == 0


@pytest.mark.parametrize("out", ["sheet.png", "sheet.pdf", "sheets"])
def test_nothing_half_is_left_where_a_picture_is_missing_or_damaged(out, own, dgn, tmp_path):
    rows = sorted(every_row(own), key=lambda row: (row["unit"], row["seed"], row["mode"] == "pretrained"))
    path = own / rows[-1]["file_name"]
    whole = path.read_bytes()
    if out != "sheets":
        (tmp_path / out).write_text("a sheet of yesterday, by dgn sheet")
    damages = {
        "not a whole PNG file": whole[: len(whole) // 2], "not a PNG file": b"GIF89a", "is missing": None,
    }  # fmt: skip
    for says, data in damages.items():
        path.unlink() if data is None else path.write_bytes(data)
        code, said, err = dgn("sheet", own, tmp_path / out)
        assert (code, said, err.count("\n")) == (1, "", 1)
        assert says in err
        assert rows[-1]["file_name"] in err
        if out == "sheets":
            assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
        else:
            assert sorted(path.name for path in tmp_path.iterdir()) == ["run", out]
            assert (tmp_path / out).read_text() == "a sheet of yesterday, by dgn sheet"


def test_bad_input_is_one_line(several, dgn, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").touch()
    (tmp_path / "used" / ".dgn-0123").mkdir()
    for line, says in (
        (("used",), "holds .dgn-0123 (left by a killed command: delete it) and 1 more: give a new or an empty folder"),
        (("x" * 300 + ".png",), "File name too long"), (("x" * 300,), "File name too long"),
        (("/proc/x.png",), "cannot write to /proc: No such file"), (("/proc/x",), "cannot write to /proc/x: No such"),
        (("x.gif",), "expected a file (.png"), (("nowhere/x.png",), "in an existing folder"),
        (("nowhere/x",), "in an existing folder"), (("used",), "exists"), (("x.png", "--pdf"), "x.pdf"),
        (("x.png", "--mode", "upside"), "unknown mode 'upside'"),
        (("x.png", "--layer", "fc7"), "has no pictures of layer 'fc7' yet: its layers are conv1_1, conv5_1, fc8"),
        (("x.png", "--layer", "conv1_1", "--mode", "pretrained"), "of layer 'conv1_1' of mode 'pretrained'"),
        (("x.png", "--columns", "0"), "--columns"), (("x.png", "--top", "0"), "--top"),
    ):  # fmt: skip
        code, out, err = dgn("sheet", several, tmp_path / line[0], *line[1:])
        assert (code, out, err.count("\n")) == (2, "", 1), line
        assert says in err
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "used", "used/.dgn-0123", "used/letter.txt",
    ]  # fmt: skip


def test_a_run_without_pictures(several, dgn, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(several / "run.json", tmp_path / "run")
    for flags in ((), ("--layer", "fc8"), ("--top", 3)):
        code, out, err = dgn("sheet", tmp_path / "run", tmp_path / "x.png", *flags)
        assert (code, out, err) == (2, "", f"dgn: {tmp_path / 'run'} has no pictures yet\n")


def test_a_sheet_that_nothing_could_open_is_refused_before_a_picture_is_read(dgn, tmp_path):
    write_fake_run(str(tmp_path / "run"), seeds=2, targets=["classes"], has_pictures=False)
    for line, says in (
        (("x.png",), "2,000 pictures would be 4,606 x 28,406 px"), (("x.jpg", "--columns", 6), "65,500 px per side"),
        (("x.png",), "give a folder"), (("x.webp", "--picture-px", 64, "--columns", 6), "16,383 px per side"),
        (("sheets", "--picture-px", 10_000), "2 pictures would be"),
        (("x.pdf", "--picture-px", 3000), "32 pictures would be 25,244 x 17,849 px, but .pdf"),
    ):  # fmt: skip
        code, _, err = dgn("sheet", tmp_path / "run", tmp_path / line[0], *line[1:])
        assert (code, err.count("\n")) == (2, 1)
        assert says in err
        assert ("give a folder" in err) == (line[0] in ("x.png", "x.jpg", "x.webp"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
