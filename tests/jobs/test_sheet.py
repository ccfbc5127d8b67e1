"""Contact sheets, measured: which picture stands where, under which caption, on sheets of which names."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dgn.jobs.sheets.captions import caption
from dgn.jobs.sheets.text import length, wrapped
from dgn.runs.index import update_index
from dgn.runs.run import Run
from dgn.runs.schema import SCHEMA
from dgn.runs.stores import open_store
from tests.helpers.rows import edit_rows, every_row
from tests.helpers.sheets import CELL_H, CELL_W, FONT, LINE, MARGIN, assert_shows, at, opened, pages_of, png

FIREBRICK, GREY = (178, 34, 34), (128, 128, 128)


@pytest.fixture
def own(pairs, tmp_path):
    """A run to change."""
    shutil.copytree(pairs, tmp_path / "run")
    return tmp_path / "run"


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
        assert f"--columns {columns}: expected an even number, as the modes stand side by side" in err
    for flags in (("--mode", "untrained"), ("--top", 10)):
        assert dgn("sheet", pairs, tmp_path / "odd.png", "--columns", 5, *flags)[0] == 0
        assert opened(tmp_path / "odd.png").width == 5 * CELL_W + MARGIN - (CELL_W if flags[0] == "--mode" else 0)


def test_a_unit_that_does_not_fit_into_the_rest_of_a_line_begins_the_next(pairs, dgn, tmp_path):
    """The first unit has one picture, all others have four: 1 + 4 of 6, then 4."""
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


def test_the_best(several, dgn, tmp_path):
    shutil.copytree(several, tmp_path / "run")
    edit_rows(tmp_path / "run", lambda row: row | {"activation": float(row["unit"] * 7 % 101)})
    rows = sorted(every_row(tmp_path / "run"), key=lambda row: (-row["activation"], row["target_id"]))
    assert dgn("sheet", tmp_path / "run", tmp_path / "best.webp", "--top", 7)[0] == 0
    assert opened(tmp_path / "best.webp").size == (3 * CELL_W + MARGIN, 3 * CELL_H + MARGIN)
    code, out, _ = dgn("sheet", tmp_path / "run", tmp_path / "best", "--top", 7)
    assert (code, out) == (0, f"7 pictures on 1 sheet in {tmp_path / 'best'}\n")
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
    captions = {caption(row, False)[0] for row in rows}
    long = "0.5 × conv5_1:3 + 17 + -2 × conv4_1:7"
    assert captions == {"brambling + bullfrog", "ostrich + 0.5 × bullfrog", long}
    lines = wrapped(long, FONT, 224, 4)
    assert " ".join(lines) == long
    assert len(lines) == 2
    assert all(length(text, FONT) <= 224 for text in lines)
    order = [None, "ostrich + bullfrog", "brambling + bullfrog"]  # by their units as numbers: 9 before 10
    rows.sort(key=lambda row: (order.index(row["label"]), row["seed"], row["mode"] == "pretrained"))
    sheet = opened(tmp_path / "sheets" / "mixes.png")
    assert sheet.size == (8 * CELL_W + MARGIN, 2 * (CELL_H + LINE) + MARGIN)
    for n, row in enumerate(rows):
        assert (at(sheet, n % 8, n // 8, name_lines=2)[0] == png(own, row)).all()
    assert dgn("sheet", own, tmp_path / "sheet.png", "--columns", 4)[0] == 0
    assert opened(tmp_path / "sheet.png").size == (4 * CELL_W + MARGIN, 6 * (CELL_H + LINE) + MARGIN)


def has_colour(pixels, colour):
    return bool((pixels == colour).all(-1).any())


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
    assert np.ptp(red) > 0.9 * length("not converged", FONT), "whole; the figures before it are cut"


def test_from_s3(several, bucket, dgn, tmp_path):
    store = open_store(f"s3://{bucket}/run")
    for path in several.rglob("*"):
        if path.is_file():
            store.write(str(path.relative_to(several)), path.read_bytes())
    for name, url in (("local.png", several), ("s3.png", store.url)):
        code, _, err = dgn("sheet", url, tmp_path / name, "--picture-px", 48)
        assert (code, err) == (0, "")
    assert (tmp_path / "local.png").read_bytes() == (tmp_path / "s3.png").read_bytes()
