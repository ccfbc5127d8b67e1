"""Contact sheets, measured: which picture stands where, under which caption, on sheets of which names."""

import io
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.index import update_index
from cluster.query import Rows, condition
from cluster.rows import SCHEMA
from cluster.run import Run
from cluster.storage import open_store
from jobs.sheet import (
    _by_name,
    _caption,
    _fitting,
    _length,
    _longest,
    _pages_of_a4,
    _selected,
    _set_of_sheets,
    _sheet,
    _wrapped,
)
from tests.fake_runs import write_fake_run

MARGIN, FONT, LINE = 6, 14, 18
CELL_W, CELL_H = 224 + MARGIN, 224 + 3 * LINE + MARGIN
FIREBRICK, GREY, WHITE = (178, 34, 34), (128, 128, 128), (255, 255, 255)


def edit_rows(folder, edit):
    """Rewrites rows that were committed."""
    for path in sorted((folder / "metadata").iterdir()):
        rows = [edit(row) or row for row in pq.read_table(path).to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def as_ok(row):
    """A row whose picture there is, as fake runs make some that have none."""
    return row | {"status": "ok", "reason": None, "activation": 9.5, "rank": 1}


def as_mode(row, mode):
    return row | {"mode": mode, "target_id": row["target_id"].replace("-untrained-", f"-{mode}-")}


def every_row(folder):
    return [row for path in sorted((folder / "metadata").iterdir()) for row in pq.read_table(path).to_pylist()]


def write_run(folder, targets, seeds=1, both_modes=False):
    """All rows have a picture of the fake run's. `both_modes`: each again as pretrained, with another picture."""
    write_fake_run(str(folder), seeds=seeds, targets=targets, shard_size=16)
    names = sorted(str(path.relative_to(folder)) for path in (folder / "images").rglob("*.png"))
    count = iter(range(10**6))
    edit_rows(folder, lambda row: as_ok(row) | {"file_name": names[7 * next(count) % len(names)]})
    if both_modes:
        for path in sorted((folder / "metadata").iterdir()):
            rows = pq.read_table(path).to_pylist()
            again = [as_mode(row, "pretrained") | {"file_name": names[11 * next(count) % len(names)]} for row in rows]
            pq.write_table(pa.Table.from_pylist([*again, *rows], schema=SCHEMA), path)
    return folder


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Layers of 64 and of more filters, classes in three hundreds; 87 pictures."""
    targets = ["filters:conv1_1", "filters:conv5_1:0-5,130", "classes:0-9,95-99,100,250"]
    return write_run(tmp_path_factory.mktemp("several") / "run", targets)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Six classes in both modes from two seeds each."""
    return write_run(tmp_path_factory.mktemp("pairs") / "run", ["classes:95-100"], seeds=2, both_modes=True)


@pytest.fixture
def own(pairs, tmp_path):
    """One to tamper with."""
    shutil.copytree(pairs, tmp_path / "run")
    return tmp_path / "run"


def at(sheet, column, line, px=224, name_lines=1):
    """The picture at a place of a sheet, and its caption."""
    line_px = max(10, px // 16) + 4
    cell_h = px + (name_lines + 2) * line_px + MARGIN
    left, top = MARGIN + column * (px + MARGIN), MARGIN + line * cell_h
    return (
        np.asarray(sheet)[top : top + px, left : left + px],
        np.asarray(sheet)[top + px : top + cell_h - MARGIN, left : left + px],
    )


def png(folder, row, px=224):
    with Image.open(folder / row["file_name"]) as image:
        return np.asarray(image.resize((px, px), Image.Resampling.LANCZOS))


def has_colour(pixels, colour):
    return bool((pixels == colour).all(-1).any())


def opened(path):
    with Image.open(path) as sheet:
        sheet.load()
        return sheet


def assert_shows(sheet, folder, rows, columns, px=224):
    """These rows in this order, line by line; white behind the last."""
    width, height = columns, -(-len(rows) // columns)
    assert sheet.size == (
        min(width, len(rows)) * (px + MARGIN) + MARGIN,
        height * (px + 3 * (max(10, px // 16) + 4) + MARGIN) + MARGIN,
    )
    for n, row in enumerate(rows):
        picture, caption = at(sheet, n % columns, n // columns, px)
        assert (picture == png(folder, row, px)).all(), (n, row["target_id"])
        assert (caption != 255).any()
    for n in range(len(rows), height * columns if height > 1 else 0):
        assert (at(sheet, n % columns, n // columns, px)[0] == 255).all()


def test_modes_and_seeds_of_a_unit_stand_side_by_side(pairs, dgn, tmp_path):
    rows = sorted(every_row(pairs), key=lambda row: (row["unit"], row["seed"], row["mode"] == "pretrained"))
    code, out, err = dgn("sheet", pairs, tmp_path / "sheet.png", "--columns", 4)
    assert (code, out, err) == (0, f"24 pictures on {tmp_path / 'sheet.png'}\n", "")
    assert_shows(opened(tmp_path / "sheet.png"), pairs, rows, 4)
    assert dgn("sheet", pairs, tmp_path / "some.png", "--mode", "pretrained", "--layer", "fc8")[0] == 0
    assert_shows(opened(tmp_path / "some.png"), pairs, [row for row in rows if row["mode"] == "pretrained"], 6)
    for columns in (1, 5):
        code, out, err = dgn("sheet", pairs, tmp_path / "odd.png", "--columns", columns)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"--columns {columns}: expected an even number, because both modes stand side by side" in err
    for flags in (("--mode", "untrained"), ("--top", 10)):
        assert dgn("sheet", pairs, tmp_path / "odd.png", "--columns", 5, *flags)[0] == 0
        assert opened(tmp_path / "odd.png").width == 5 * CELL_W + MARGIN - (CELL_W if flags[0] == "--mode" else 0)


def test_a_unit_that_does_not_fit_into_the_rest_of_a_line_begins_the_next(pairs, dgn, tmp_path):
    """Of the first unit there is only one picture, four of every other: 1 + 4 of 6, then 4."""
    shutil.copytree(pairs, tmp_path / "run")
    rows = sorted(every_row(pairs), key=lambda row: (row["unit"], row["seed"], row["mode"] == "pretrained"))
    for path in (tmp_path / "run" / "metadata").iterdir():
        kept = [row for row in pq.read_table(path).to_pylist() if row["unit"] > 95 or row == rows[0]]
        pq.write_table(pa.Table.from_pylist(kept, schema=SCHEMA), path)
    assert dgn("sheet", tmp_path / "run", tmp_path / "sheet.png", "--columns", 6)[0] == 0
    sheet = opened(tmp_path / "sheet.png")
    assert sheet.size == (5 * CELL_W + MARGIN, 5 * CELL_H + MARGIN)
    assert (at(sheet, 0, 0)[0] == png(pairs, rows[0])).all()
    for n, row in enumerate(rows[4:8]):
        assert (at(sheet, 1 + n, 0)[0] == png(pairs, row)).all()
    for n, row in enumerate(rows[8:12]):
        assert (at(sheet, n, 1)[0] == png(pairs, row)).all()
    assert (at(sheet, 4, 1)[0] == 255).all()


def test_a_folder_has_classes_in_hundreds_and_a_sheet_for_each_layer(several, dgn, tmp_path):
    code, out, err = dgn("sheet", several, tmp_path / "sheets", "--picture-px", 32)
    assert (code, out, err) == (0, f"88 pictures on 6 sheets in {tmp_path / 'sheets'}\n", "")
    rows = sorted(every_row(several), key=lambda row: (row["layer"], row["unit"]))
    expected = {
        "classes-000-099.png": [r for r in rows if r["layer"] == "fc8" and r["unit"] < 100],
        "classes-100-199.png": [r for r in rows if r["layer"] == "fc8" and r["unit"] == 100],
        "classes-200-299.png": [r for r in rows if r["layer"] == "fc8" and r["unit"] == 250],
        "conv1_1.png": [r for r in rows if r["layer"] == "conv1_1"],
        "conv5_1-000-099.png": [r for r in rows if r["layer"] == "conv5_1" and r["unit"] < 100],
        "conv5_1-100-199.png": [r for r in rows if r["layer"] == "conv5_1" and r["unit"] == 130],
    }
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == sorted(expected)
    for name, shown in expected.items():
        columns = {"classes-000-099.png": 4, "conv1_1.png": 8}.get(name, 3)  # of 15, 64, 6 and 1
        assert_shows(opened(tmp_path / "sheets" / name), several, shown, columns, 32)


def test_by_itself_a_sheet_has_as_many_units_in_a_line_as_lines(pairs):
    """The pictures of six classes again and again, as if there were so many units."""
    table, groups = _selected(Rows(Run(open_store(str(pairs)))), [], None)
    for num, size, columns, lines in (
        (1, 1, 1, 1), (2, 1, 2, 1), (5, 1, 3, 2), (64, 1, 8, 8), (97, 1, 10, 10), (100, 1, 10, 10), (400, 1, 10, 40),
        (11, 2, 8, 3), (20, 2, 10, 4), (100, 2, 20, 10), (9, 4, 12, 3), (100, 4, 20, 20), (2, 24, 20, 4),
    ):  # fmt: skip
        units = [(group * 6)[:size] for group in (groups * num)[:num]]
        one = _sheet("x", table, units, None, 224)
        assert one.size_px == (columns * CELL_W + MARGIN, lines * CELL_H + MARGIN), (num, size)


def test_the_same_with_and_without_an_index(several, dgn, tmp_path):
    shutil.copytree(several, tmp_path / "run")
    update_index(Run(open_store(str(tmp_path / "run"))))
    for name, folder in (("plain", several), ("indexed", tmp_path / "run")):
        (tmp_path / name).mkdir()  # an empty folder is as good as none
        assert dgn("sheet", folder, tmp_path / name, "--picture-px", 32, "--pdf")[0] == 0
    plain, indexed = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("plain", "indexed")
    )
    assert plain.keys() == indexed.keys()
    assert all(plain[name] == indexed[name] for name in plain if name != "sheets.pdf")  # which has its folder's title


def pages_of(pdf):
    """(width and height in points, the picture) of each page: of an object that is there again, the last counts."""
    data = pdf.read_bytes()
    assert data.startswith(b"%PDF-")
    assert data.rstrip().endswith(b"%%EOF")
    objects = dict(re.findall(rb"(?<![^\n])(\d+) 0 obj(.*?)endobj", data, re.DOTALL))
    kids = re.findall(rb"/Type /Pages.*?/Kids \[ (.*?) \]|/Kids \[ (.*?) \]", data, re.DOTALL)[-1]
    pages = []
    for number in re.findall(rb"(\d+) 0 R", b"".join(kids)):
        width, height = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", objects[number]).groups()
        [image] = re.findall(rb"/image (\d+) 0 R", objects[number])
        jpeg = objects[image][objects[image].index(b"\xff\xd8") :]
        pages.append(((float(width), float(height)), Image.open(io.BytesIO(jpeg))))
    return pages


def test_a_pdf_is_pages_of_a4(several, dgn, tmp_path):
    """Eight columns and four lines: two pages of conv1_1's 64 filters, one of conv5_1's seven, one of 17 classes."""
    rows = sorted(every_row(several), key=lambda row: (row["layer"], row["unit"]))
    layers = [[row for row in rows if row["layer"] == layer] for layer in ("conv1_1", "conv5_1", "fc8")]
    in_order = [layers[0][:32], layers[0][32:], *layers[1:]]
    assert dgn("sheet", several, tmp_path / "sheets", "--pdf")[0] == 0
    code, out, _ = dgn("sheet", several, tmp_path / "book.pdf")
    assert (code, out) == (0, f"88 pictures on 4 pages of {tmp_path / 'book.pdf'}\n")
    for pdf in (tmp_path / "book.pdf", tmp_path / "sheets" / "sheets.pdf"):
        for shown, ((width, height), page) in zip(in_order, pages_of(pdf), strict=True):
            assert (width, height) == pytest.approx([297 / 25.4 * 72, 210 / 25.4 * 72], abs=0.3)
            points = width / page.width
            assert FONT * points > 6
            assert 224 * points / 72 * 25.4 < 40
            left = round(7 / 297 * page.width)
            assert (np.asarray(page)[: left + MARGIN - 8] > 250).all(), "white, but for JPEG's blocks"
            assert (np.asarray(page)[-left:] > 250).all()
            lines = -(-len(shown) // 8)
            size = (8 * CELL_W + MARGIN, lines * CELL_H + MARGIN)
            sheet = page.crop((left, left, left + size[0], left + size[1]))
            for n in range(8 * lines):
                picture = at(sheet, n % 8, n // 8)[0].astype(np.int16)
                expected = png(several, shown[n]) if n < len(shown) else np.full_like(picture, 255)
                assert np.abs(picture - expected).mean() < 6  # JPEG of noise
    before = (tmp_path / "book.pdf").read_bytes()
    assert dgn("sheet", several, tmp_path / "book.pdf")[0] == 0
    assert (tmp_path / "book.pdf").read_bytes() == before


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
        assert f"{path.name} is there and no sheet of dgn: give another name, or move it away" in err
    assert before == {path: path.read_bytes() for path in (photo, sheet)}
    assert link.is_symlink()


def test_on_a4_a_unit_stays_together_where_it_can(pairs):
    """Of 48 pictures as units of so many: how many stand on each page, of four lines."""
    table, groups = _selected(Rows(Run(open_store(str(pairs)))), [], None)
    pictures = [n for group in groups for n in group] * 2
    for size, columns, num_pictures in (
        (1, None, [32, 16]), (2, None, [32, 16]), (3, None, [24, 24]), (4, None, [32, 16]), (6, None, [24, 24]),
        (12, None, [24, 24]), (48, None, [32, 16]), (1, 4, [16, 16, 16]), (1, 16, [48]), (2, 40, [48]),
    ):  # fmt: skip
        units = [pictures[n : n + size] for n in range(0, 48, size)]
        for picture_px in (32, 224, 500):
            pages = _pages_of_a4(table, {"x": list(enumerate(units))}, columns, picture_px)
            if picture_px == 224:
                assert [page.num_pictures for page in pages] == num_pictures, (size, columns)
            assert [n for page in pages for group in page.groups for n in group] == pictures
            for page in pages:
                assert all(side < a4 for side, a4 in zip(page.size_px, page.a4_px, strict=True))


def test_the_best(several, dgn, tmp_path):
    shutil.copytree(several, tmp_path / "run")
    edit_rows(tmp_path / "run", lambda row: row | {"activation": float(row["unit"] * 7 % 101)})
    rows = sorted(every_row(tmp_path / "run"), key=lambda row: (-row["activation"], row["target_id"]))
    assert dgn("sheet", tmp_path / "run", tmp_path / "best.webp", "--top", 7)[0] == 0
    assert opened(tmp_path / "best.webp").size == (3 * CELL_W + MARGIN, 3 * CELL_H + MARGIN)
    code, out, _ = dgn("sheet", tmp_path / "run", tmp_path / "best", "--top", 7)
    assert (code, out) == (0, f"7 pictures on 1 sheets in {tmp_path / 'best'}\n")
    assert_shows(opened(tmp_path / "best" / "best.png"), several, rows[:7], 3)
    assert dgn("sheet", tmp_path / "run", tmp_path / "fc8.png", "--top", 7, "--layer", "fc8", "--columns", 5)[0] == 0
    assert_shows(opened(tmp_path / "fc8.png"), several, [row for row in rows if row["layer"] == "fc8"][:7], 5)


def as_mix(row, units, label):
    parts = [{"layer": layer, "unit": unit, "weight": weight} for layer, unit, weight in units]
    what = "__".join(f"{layer}-{unit}" for layer, unit, _ in units)
    target_id = f"{what}-{row['mode']}-s{row['seed']}"
    return row | {"unit": None, "units": parts, "label": label, "target_id": target_id}


def test_mixes_have_a_sheet_and_captions_that_name_their_parts(own, dgn, tmp_path):
    mixes = {
        95: ([("fc8", 10, 1.0), ("fc8", 30, 1.0)], "brambling + bullfrog"),
        96: ([("fc8", 9, 1.0), ("fc8", 30, 0.5)], "ostrich + bullfrog"),
        97: ([("conv5_1", 3, 0.5), ("conv5_1", 17, 1.0), ("conv4_1", 7, -2.0)], None),
    }
    edit_rows(own, lambda row: as_mix(row, *mixes[row["unit"]]) if row["unit"] in mixes else None)
    assert dgn("sheet", own, tmp_path / "sheets")[0] == 0
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == [
        "classes-000-099.png", "classes-100-199.png", "mixes.png",
    ]  # fmt: skip
    rows = [row for row in every_row(own) if row["unit"] is None]
    captions = {_caption(row, False)[0] for row in rows}
    long = "0.5 × conv5_1:3 + 17 + -2 × conv4_1:7"
    assert captions == {"brambling + bullfrog", "ostrich + 0.5 × bullfrog", long}
    lines = _wrapped(long, FONT, 224, 4)
    assert " ".join(lines) == long
    assert len(lines) == 2
    assert all(_length(text, FONT) <= 224 for text in lines)
    order = [None, "ostrich + bullfrog", "brambling + bullfrog"]  # by their units as numbers: 9 before 10
    rows.sort(key=lambda row: (order.index(row["label"]), row["seed"], row["mode"] == "pretrained"))
    sheet = opened(tmp_path / "sheets" / "mixes.png")
    assert sheet.size == (8 * CELL_W + MARGIN, 2 * (CELL_H + LINE) + MARGIN)
    for n, row in enumerate(rows):
        assert (at(sheet, n % 8, n // 8, name_lines=2)[0] == png(own, row)).all()
    assert dgn("sheet", own, tmp_path / "sheet.png", "--columns", 4)[0] == 0
    assert opened(tmp_path / "sheet.png").size == (4 * CELL_W + MARGIN, 6 * (CELL_H + LINE) + MARGIN)


def test_captions():
    row = {
        "label": "star", "unit": 4, "units": [], "layer": "fc8", "mode": "untrained", "discriminator": "vgg16-mini",
        "seed": 3, "rank": 27, "activation": 2.2119, "status": "ok",
    }  # fmt: skip
    origins = ["untrained, vgg16-mini", "untrained"]
    scores = ["rank 27, activation 2.21", "rank 27, act. 2.21", "act. 2.21", "2.21"]
    assert _caption(row, False) == ("star", origins, scores, "")
    with_seed = ["untrained, vgg16-mini, seed 3", "untrained, seed 3"]
    assert _caption(row | {"label": None, "layer": "conv5_1"}, True) == ("conv5_1", with_seed, scores, "")
    assert _caption(row | {"status": "not_converged"}, False)[2:] == (scores, ", not converged")
    dead = _caption(row | {"status": "dead", "activation": 0.0}, False)
    assert (dead[2][0], dead[3]) == ("rank 27, activation 0", ", dead")
    assert _caption(row | {"status": "nonfinite"}, False) == ("star", origins, [""], "nonfinite")
    assert [_longest(texts, 14, 224) for texts in (origins, scores)] == [origins[0], scores[0]]
    assert [_longest(texts, 10, 64) for texts in (origins, scores)] == ["untrained", "act. 2.21"]
    assert _longest(scores, 10, 32) == "2.21"
    assert _longest(scores, 10, 1) == "2.21"
    assert _longest(["a\nb" * 100_000, "a"], 14, 224) == "a"
    assert _caption(row | {"unit": None, "units": None, "label": None}, False)[0] == "mix"
    assert _fitting("star", FONT, 200) == "star"
    assert _fitting("", FONT, 200) == ""
    for text in ("a label that is too long", "ein viel zu langes Wörterverzeichnis", "журавль, журавль, журавль"):
        cut = _fitting(text, FONT, 80)
        assert cut == text[: len(cut) - 1] + "…"
        assert _length(cut, FONT) <= 80
    assert _fitting("star", FONT, 1) == "…"
    assert _fitting("\x1b[31m\n", FONT, 999) == r"\x1b[31m\n"


def test_what_is_not_ok_is_marked(own, dgn, tmp_path):
    states = {
        95: {"status": "nonfinite", "activation": None, "rank": None, "file_name": None, "reason": "not a number"},
        96: {"status": "dead", "activation": 0.0, "reason": "silent"},
        97: {"status": "not_converged", "rank": 1000, "activation": 12345.6, "reason": "another is first"},
    }
    edit_rows(own, lambda row: row | states.get(row["unit"], {}))
    assert dgn("sheet", own, tmp_path / "sheet.png", "--columns", 4)[0] == 0
    sheet = opened(tmp_path / "sheet.png")
    for line in range(6):
        for column in range(4):
            picture, caption = at(sheet, column, line)
            assert has_colour(caption, FIREBRICK) == (line < 3), (line, column)
            if line == 0:
                edges = (picture[0], picture[-1], picture[:, 0], picture[:, -1])
                assert all((edge == GREY).all() for edge in edges)
                inside = picture[1:-1, 1:-1]
                assert 0.9 < (inside == 255).mean() < 1, "white, with the reason written on it"
    last = at(sheet, 0, 2)[1][-LINE:]
    red = np.flatnonzero((last == FIREBRICK).all(-1).any(0))
    assert np.ptp(red) > 0.9 * _length("not converged", FONT), "whole; the figures before it are cut"


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
        "no whole PNG": whole[: len(whole) // 2], "is no PNG": b"GIF89a", "is missing": None,
    }  # fmt: skip
    for says, data in damages.items():
        path.unlink() if data is None else path.write_bytes(data)
        code, told, err = dgn("sheet", own, tmp_path / out)
        assert (code, told, err.count("\n")) == (1, "", 1)
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
        (("used",), "holds .dgn-0123 (what a command left that was killed: delete it) and 1 more: give a folder"),
        (("x" * 300 + ".png",), "File name too long"), (("x" * 300,), "File name too long"),
        (("/proc/x.png",), "cannot write to /proc: No such file"), (("/proc/x",), "cannot write to /proc/x: No such"),
        (("x.gif",), "expected a file (.png"), (("nowhere/x.png",), "in a folder that exists"),
        (("nowhere/x",), "in a folder that exists"), (("used",), "exists"), (("x.png", "--pdf"), "x.pdf"),
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
        (("x.png",), "2,000 pictures would be 4,606 x 28,406 px"), (("x.jpg", "--columns", 6), "65,500 px a side"),
        (("x.png",), "give a folder"), (("x.webp", "--picture-px", 64, "--columns", 6), "16,383 px a side"),
        (("sheets", "--picture-px", 10_000), "2 pictures would be"),
        (("x.pdf", "--picture-px", 3000), "32 pictures would be 25,244 x 17,849 px, more than .pdf"),
    ):  # fmt: skip
        code, _, err = dgn("sheet", tmp_path / "run", tmp_path / line[0], *line[1:])
        assert (code, err.count("\n")) == (2, 1)
        assert says in err
        assert ("give a folder" in err) == (line[0] in ("x.png", "x.jpg", "x.webp"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_units_with_many_pictures_have_fewer_units_a_sheet(several):
    """The picture of each of 17 classes again and again: as if there were so many seeds."""
    table, groups = _selected(Rows(Run(open_store(str(several)))), [condition("layer", "=", "fc8")], None)
    units = [*range(10), *range(95, 101), 250]
    for times, names in (
        (80, ["classes-000-099", "classes-100-199", "classes-200-299"]),
        (100, ["classes-000-009", "classes-090-099", "classes-100-109", "classes-250-259"]),
        (1000, [f"classes-{unit:03d}-{unit:03d}" for unit in units]),
    ):
        by_name = _by_name(table, [group * times for group in groups], False)
        sheets = _set_of_sheets(table, by_name, None, 224)
        assert [one.name for one in sheets] == names
        assert all(one.fits(".png") for one in sheets)
        assert sum(one.num_pictures for one in sheets) == len(units) * times


def test_from_s3(several, bucket, dgn, tmp_path):
    store = open_store(f"s3://{bucket}/run")
    for path in several.rglob("*"):
        if path.is_file():
            store.write(str(path.relative_to(several)), path.read_bytes())
    for name, url in (("local.png", several), ("s3.png", store.url)):
        code, _, err = dgn("sheet", url, tmp_path / name, "--picture-px", 48)
        assert (code, err) == (0, "")
    assert (tmp_path / "local.png").read_bytes() == (tmp_path / "s3.png").read_bytes()
