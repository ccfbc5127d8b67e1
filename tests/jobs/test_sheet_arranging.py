"""How pictures are arranged on sheets and pages, and which words fit below them: without drawing one."""

from dgn.jobs.sheets.arranging import group_by_sheet, make_sheet, pages_of_a4, select_groups, set_of_sheets
from dgn.jobs.sheets.captions import caption
from dgn.jobs.sheets.text import fitting, length, longest
from dgn.runs.conditions import condition
from dgn.runs.query import Rows
from dgn.runs.run import Run
from dgn.runs.stores import open_store
from tests.helpers.sheets import CELL_H, CELL_W, FONT, MARGIN


def test_by_itself_a_sheet_has_as_many_units_in_a_line_as_lines(pairs):
    """The pictures of six classes again and again, as if there were so many units."""
    table, groups = select_groups(Rows(Run(open_store(str(pairs)))), [], None)
    for num, size, columns, lines in (
        (1, 1, 1, 1), (2, 1, 2, 1), (5, 1, 3, 2), (64, 1, 8, 8), (97, 1, 10, 10), (100, 1, 10, 10), (400, 1, 10, 40),
        (11, 2, 8, 3), (20, 2, 10, 4), (100, 2, 20, 10), (9, 4, 12, 3), (100, 4, 20, 20), (2, 24, 20, 4),
    ):  # fmt: skip
        units = [(group * 6)[:size] for group in (groups * num)[:num]]
        one = make_sheet("x", table, units, None, 224)
        assert one.size_px == (columns * CELL_W + MARGIN, lines * CELL_H + MARGIN), (num, size)


def test_on_a4_a_unit_stays_together_where_it_can(pairs):
    """48 pictures, in units of several sizes: how many are on each page of four lines."""
    table, groups = select_groups(Rows(Run(open_store(str(pairs)))), [], None)
    pictures = [n for group in groups for n in group] * 2
    for size, columns, num_pictures in (
        (1, None, [32, 16]), (2, None, [32, 16]), (3, None, [24, 24]), (4, None, [32, 16]), (6, None, [24, 24]),
        (12, None, [24, 24]), (48, None, [32, 16]), (1, 4, [16, 16, 16]), (1, 16, [48]), (2, 40, [48]),
    ):  # fmt: skip
        units = [pictures[n : n + size] for n in range(0, 48, size)]
        for picture_px in (32, 224, 500):
            pages = pages_of_a4(table, {"x": list(enumerate(units))}, columns, picture_px)
            if picture_px == 224:
                assert [page.num_pictures for page in pages] == num_pictures, (size, columns)
            assert [n for page in pages for group in page.groups for n in group] == pictures
            for page in pages:
                assert all(side < a4 for side, a4 in zip(page.size_px, page.a4_px, strict=True))


def test_units_with_many_pictures_have_fewer_units_a_sheet(several):
    """The picture of each of 17 classes again and again: as if there were so many seeds."""
    table, groups = select_groups(Rows(Run(open_store(str(several)))), [condition("layer", "=", "fc8")], None)
    units = [*range(10), *range(95, 101), 250]
    for times, names in (
        (80, ["classes-000-099", "classes-100-199", "classes-200-299"]),
        (100, ["classes-000-009", "classes-090-099", "classes-100-109", "classes-250-259"]),
        (1000, [f"classes-{unit:03d}-{unit:03d}" for unit in units]),
    ):
        by_name = group_by_sheet(table, [group * times for group in groups], False)
        sheets = set_of_sheets(table, by_name, None, 224)
        assert [one.name for one in sheets] == names
        assert all(one.fits(".png") for one in sheets)
        assert sum(one.num_pictures for one in sheets) == len(units) * times


def test_captions():
    row = {
        "label": "star", "unit": 4, "units": [], "layer": "fc8", "mode": "untrained", "discriminator": "vgg16-mini",
        "seed": 3, "rank": 27, "activation": 2.2119, "status": "ok",
    }  # fmt: skip
    origins = ["untrained, vgg16-mini", "untrained"]
    scores = ["rank 27, activation 2.21", "rank 27, act. 2.21", "act. 2.21", "2.21"]
    assert caption(row, False) == ("star", origins, scores, "")
    with_seed = ["untrained, vgg16-mini, seed 3", "untrained, seed 3"]
    assert caption(row | {"label": None, "layer": "conv5_1"}, True) == ("conv5_1", with_seed, scores, "")
    assert caption(row | {"status": "not_converged"}, False)[2:] == (scores, ", not converged")
    dead = caption(row | {"status": "dead", "activation": 0.0}, False)
    assert (dead[2][0], dead[3]) == ("rank 27, activation 0", ", dead")
    assert caption(row | {"status": "nonfinite"}, False) == ("star", origins, [""], "nonfinite")
    assert [longest(texts, 14, 224) for texts in (origins, scores)] == [origins[0], scores[0]]
    assert [longest(texts, 10, 64) for texts in (origins, scores)] == ["untrained", "act. 2.21"]
    assert longest(scores, 10, 32) == "2.21"
    assert longest(scores, 10, 1) == "2.21"
    assert longest(["a\nb" * 100_000, "a"], 14, 224) == "a"
    assert caption(row | {"unit": None, "units": None, "label": None}, False)[0] == "mix"
    assert fitting("star", FONT, 200) == "star"
    assert fitting("", FONT, 200) == ""
    for text in ("a label that is too long", "ein viel zu langes Wörterverzeichnis", "журавль, журавль, журавль"):
        cut = fitting(text, FONT, 80)
        assert cut == text[: len(cut) - 1] + "…"
        assert length(cut, FONT) <= 80
    assert fitting("star", FONT, 1) == "…"
    assert fitting("\x1b[31m\n", FONT, 999) == r"\x1b[31m\n"
