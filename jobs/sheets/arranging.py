"""Arranges a run's rows in groups, groups on sheets, and sheets on pages."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from dgn.errors import DgnError, RunDamaged
from dgn.jobs.sheets.captions import name_of
from dgn.jobs.sheets.text import wrapped
from dgn.runs.conditions import Condition
from dgn.runs.query import Rows
from dgn.runs.run import VERIFY
from dgn.targets import mode_rank

MARGIN_PX = 6
LINE_UNITS, LINE_PICTURES = 10, 20  # at most, without --columns
PAGE_UNITS = (100, 10, 1)  # per sheet of a set: a hundred as the authors published, fewer if each has many pictures
NAME_LINES = 4  # at most, for a mix, whose name lists its parts
A4_MM = (297, 210)
PRINT_MARGIN_MM = 7  # most printers cannot print on the outer 4 or 5
PRINT_COLUMNS = 8  # with captions of 6 pt and pictures of 34 mm, which do not grow with fewer columns
# 270 MB in memory. Pillow warns about larger pictures, and browsers and printers often cannot open them.
MAX_PIXELS = 89_478_485
MAX_SIDE_PX = {".png": 2**20, ".webp": 16_383, ".jpg": 65_500, ".jpeg": 65_500, ".pdf": 65_500}  # PDFs hold JPEGs
SHOWN = (
    "target_id", "layer", "unit", "units", "label", "mode", "seed", "discriminator", "status", "reason", "activation",
    "rank", "file_name",
)  # fmt: skip
Named = dict[str, list[tuple[int, Sequence[int]]]]  # groups with their unit's number, by name of sheet


@dataclass(frozen=True)
class Sheet:
    """Groups of row numbers in the table; a group is the pictures of one unit or mix."""

    name: str
    groups: Sequence[Sequence[int]]
    columns: int
    picture_px: int
    name_lines: int

    @property
    def font_px(self) -> int:
        return max(10, self.picture_px // 16)

    @property
    def line_px(self) -> int:
        return self.font_px + 4

    @property
    def cell_px(self) -> tuple[int, int]:
        return self.picture_px + MARGIN_PX, self.picture_px + (self.name_lines + 2) * self.line_px + MARGIN_PX

    @property
    def num_pictures(self) -> int:
        return sum(len(group) for group in self.groups)

    def places(self) -> Iterator[tuple[int, int]]:
        """Column and line of each picture. A group too long for the rest of a line starts the next."""
        column = line = 0
        for group in self.groups:
            if column + min(len(group), self.columns) > self.columns:
                column, line = 0, line + 1
            for _ in group:
                if column == self.columns:
                    column, line = 0, line + 1
                yield column, line
                column += 1

    @property
    def size_px(self) -> tuple[int, int]:
        columns, lines = (max(numbers) + 1 for numbers in zip(*self.places(), strict=True))
        return columns * self.cell_px[0] + MARGIN_PX, lines * self.cell_px[1] + MARGIN_PX

    @property
    def a4_px(self) -> tuple[int, int]:
        """Width and height of the A4 page that it is printed on."""
        printed_px = max(self.columns, PRINT_COLUMNS) * self.cell_px[0] + MARGIN_PX
        width = round(printed_px * A4_MM[0] / (A4_MM[0] - 2 * PRINT_MARGIN_MM))
        return width, round(width * A4_MM[1] / A4_MM[0])

    def fits(self, suffix: str) -> bool:
        width, height = self.a4_px if suffix == ".pdf" else self.size_px
        return max(width, height) <= MAX_SIDE_PX[suffix] and width * height <= MAX_PIXELS


def select_groups(rows: Rows, conditions: list[Condition], top: int | None) -> tuple[pa.Table, list[list[int]]]:
    """The rows and their groups in order of depth and unit; with `top`, each row by itself, best first.

    Raises: DgnError, RunDamaged.
    """
    table = rows.select(conditions, SHOWN, top=top)
    layers = rows.layers() if not top or table.num_rows == 0 else []
    if table.num_rows == 0:
        if not layers:
            raise DgnError(f"{rows.run.store.url} has no pictures yet")
        asked = "".join(f" of {one.column} '{one.value}'" for one in conditions)
        raise DgnError(f"{rows.run.store.url} has no pictures{asked} yet: its layers are {', '.join(layers)}")
    if table["seed"].null_count:
        raise RunDamaged(f"{rows.run.store.url} has rows without a seed", VERIFY)
    if top:
        return table, [[n] for n in range(table.num_rows)]
    depth = {layer: n for n, layer in enumerate(layers)}
    what = [target_id.rsplit("-", 2)[0] for target_id in table["target_id"].to_pylist()]  # without mode and seed
    modes = [mode_rank(mode) for mode in table["mode"].to_pylist()]
    depths = [depth[layer] for layer in table["layer"].to_pylist()]
    of_unit = list(zip(depths, table["unit"].is_null().to_pylist(), map(_natural, what), strict=True))  # mixes last
    key = list(zip(of_unit, table["seed"].to_pylist(), modes, strict=True))
    order = sorted(range(table.num_rows), key=key.__getitem__)
    return table, [list(group) for _, group in itertools.groupby(order, key=of_unit.__getitem__)]


def _natural(text: str) -> list[tuple[str, int]]:
    """A sorting key that orders numbers in a text by value."""
    return [(word, int(part or 0)) for word, part in re.findall(r"(\D*)(\d{0,18})", text, re.ASCII)]


def group_by_sheet(table: pa.Table, groups: Sequence[Sequence[int]], is_best: bool) -> Named:
    """Numbered groups by name of sheet, in order of depth, mixes last."""
    layers, units, labels = (table[name].to_pylist() for name in ("layer", "unit", "label"))
    by_name: Named = {}
    for group in groups:
        layer, unit, label = (values[group[0]] for values in (layers, units, labels))
        if is_best or unit is None:
            numbered = by_name.setdefault("best" if is_best else "mixes", [])
            numbered.append((len(numbered), group))
        else:
            name = re.sub(r"[^\w.-]|^\.", "_", layer if label is None else "classes", flags=re.ASCII)
            by_name.setdefault(name, []).append((unit, group))
    return dict(sorted(by_name.items(), key=lambda item: item[0] == "mixes"))


def set_of_sheets(table: pa.Table, by_name: Named, columns: int | None, picture_px: int) -> list[Sheet]:
    sheets: list[Sheet] = []
    for name, numbered in by_name.items():
        for num_units in PAGE_UNITS:
            pages = _pages(name, numbered, num_units)
            found = [make_sheet(title, table, some, columns, picture_px) for title, some in pages.items()]
            if all(one.fits(".png") for one in found):
                break
        sheets += found
    return sheets


def pages_of_a4(table: pa.Table, by_name: Named, columns: int | None, picture_px: int) -> list[Sheet]:
    """Pages with as many lines as fit."""
    pages: list[Sheet] = []
    for name, numbered in by_name.items():
        groups = [group for _, group in numbered]
        columns_of_a4 = columns or _columns(groups, PRINT_COLUMNS, PRINT_COLUMNS)
        whole = make_sheet(name, table, groups, columns_of_a4, picture_px)
        height = whole.a4_px[1] * (1 - 2 * PRINT_MARGIN_MM / A4_MM[1])
        num_lines = int(height - MARGIN_PX) // whole.cell_px[1]
        places, by_page = whole.places(), dict[int, list[Sequence[int]]]()
        for group in groups:
            for page, part in itertools.groupby(group, key=lambda _: next(places)[1] // num_lines):
                by_page.setdefault(page, []).append(list(part))
        pages += [replace(whole, groups=some) for some in by_page.values()]
    return pages


def _pages(name: str, numbered: list[tuple[int, Sequence[int]]], num_units: int) -> dict[str, list[Sequence[int]]]:
    """Groups by the name of their sheet, which gives the range of its units."""
    last = max(number for number, _ in numbered) // num_units * num_units + num_units - 1
    if last < PAGE_UNITS[0] == num_units and name != "classes":
        return {name: [group for _, group in numbered]}
    digits, pages = max(3, len(str(last))), dict[str, list[Sequence[int]]]()
    for number, group in numbered:
        first = number // num_units * num_units
        pages.setdefault(f"{name}-{first:0{digits}d}-{first + num_units - 1:0{digits}d}", []).append(group)
    return pages


def make_sheet(
    name: str, table: pa.Table, groups: Sequence[Sequence[int]], columns: int | None, picture_px: int
) -> Sheet:
    """Without `columns`, the sheet is about square in units."""
    if columns is None:
        columns = _columns(groups, LINE_PICTURES, min(LINE_UNITS, math.ceil(math.sqrt(len(groups)))))
    sheet = Sheet(name, groups, columns, picture_px, name_lines=1)
    of_sheet = table.select(["unit", "units", "label", "layer"]).take(list(itertools.chain.from_iterable(groups)))
    names = {name_of(row) for row in of_sheet.filter(of_sheet["unit"].is_null()).to_pylist()}
    num_lines = (len(wrapped(name, sheet.font_px, picture_px, NAME_LINES)) for name in names)
    return Sheet(name, groups, columns, picture_px, max(num_lines, default=1))


def _columns(groups: Sequence[Sequence[int]], num_pictures: int, num_units: int) -> int:
    """Columns for whole units, at most `num_units` and `num_pictures`; for part of a unit if one has more pictures."""
    largest = max(len(group) for group in groups)
    return min(max(num_pictures // largest, 1), num_units) * min(largest, num_pictures)
