"""`dgn sheet`: contact sheets of a run, one of everything or a set as the paper's authors published theirs.

A set has the classes in hundreds (classes-000-099.png), other layers by name and, from a hundred filters on, in
hundreds too (conv5_1-000-099.png), and mixes.png. A PDF shows the same on pages of A4. Pictures of one unit stand
together, by seed and mode. Paper: Figures 4, 8 and 9.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import ExifTags, Image, ImageDraw, ImageFont

from cluster.query import Condition, Rows, condition
from cluster.run import NUM_READERS, Run
from dgn import picture
from dgn.errors import DgnError, RunDamaged, printable
from dgn.targets import MODES
from jobs.files import check_empty, check_replaceable, told_in_one_line, whole_or_not_at_all
from jobs.progress import pictures_shown
from jobs.status import open_run

MARGIN_PX = 6
LINE_UNITS, LINE_PICTURES = 10, 20  # at most, unless --columns says otherwise
PAGE_UNITS = (100, 10, 1)  # on a sheet of a set: as the authors published theirs; fewer where each has many pictures
NAME_LINES = 4  # at most, for a mix: its parts are its name
QUALITY = 90  # of JPEG, in PDF too, and WebP
A4_MM = (297, 210)
PRINT_MARGIN_MM = 7  # most printers leave 4 or 5 white
PRINT_COLUMNS = 8  # captions are then of 6 pt, pictures of 34 mm; with fewer --columns these do not grow
PICTURES_AT_A_TIME = 64
MAX_CHARS = 200  # of a text that somebody else wrote
# 89 million, 270 MB in memory: what is larger Pillow opens with a warning only, browsers and printers often not at all
MAX_PIXELS = 89_478_485
MAX_SIDE_PX = {".png": 2**20, ".webp": 16_383, ".jpg": 65_500, ".jpeg": 65_500, ".pdf": 65_500}  # a PDF holds JPEGs
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
MADE_BY = "dgn sheet"  # how a sheet is known: the software in a picture's Exif, the producer of a PDF
MARKS = (MADE_BY.encode(), MADE_BY.encode("utf_16_be"))
SHOWN = (
    "target_id", "layer", "unit", "units", "label", "mode", "seed", "discriminator", "status", "reason", "activation",
    "rank", "file_name",
)  # fmt: skip
Font = ImageFont.FreeTypeFont
Named = dict[str, list[tuple[int, Sequence[int]]]]  # groups, each with its unit's number, by the name of their sheets


@dataclass(frozen=True)
class Sheet:
    """Groups of rows by their numbers in the table; a group is the pictures of one unit or mix."""

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
        """Column and line of each picture. A group that does not fit into the rest of a line begins the next."""
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
        """Width and height of the page of A4 that it is printed on."""
        printed_px = max(self.columns, PRINT_COLUMNS) * self.cell_px[0] + MARGIN_PX
        width = round(printed_px * A4_MM[0] / (A4_MM[0] - 2 * PRINT_MARGIN_MM))
        return width, round(width * A4_MM[1] / A4_MM[0])

    def fits(self, suffix: str) -> bool:
        width, height = self.a4_px if suffix == ".pdf" else self.size_px
        return max(width, height) <= MAX_SIDE_PX[suffix] and width * height <= MAX_PIXELS


def sheet_command(
    url: str, out: Path, flags: dict[str, str | None], top: int | None, columns: int | None, picture_px: int, pdf: bool
) -> None:
    """`flags`: layer and mode, None where not given."""
    with told_in_one_line(out):
        suffix = "" if out.is_dir() else out.suffix.lower()
        _check_out(out, suffix, pdf)
    if flags["mode"] is not None and flags["mode"] not in MODES:
        raise DgnError(f"unknown mode '{flags['mode']}': expected one of {', '.join(MODES)}")
    conditions = [condition(name, "=", value) for name, value in flags.items() if value is not None]
    run = open_run(url)
    rows = Rows(run)
    table, groups = _selected(rows, conditions, top)
    _check_columns(columns, table, groups)
    sheets, pages = list[Sheet](), list[Sheet]()
    if suffix in PICTURES:
        sheets = [_sheet(out.stem, table, groups, columns, picture_px)]
    else:
        by_name = _by_name(table, groups, top is not None)
        if not suffix:
            sheets = _set_of_sheets(table, by_name, columns, picture_px)
        if suffix == ".pdf" or pdf:
            pages = _pages_of_a4(table, by_name, columns, picture_px)
    for one in sheets:
        _check_size(one, suffix or ".png", suffix in PICTURES)
    for one in pages:
        _check_size(one, ".pdf", False)
    with (
        whole_or_not_at_all(out.parent if suffix else out) as folder,
        pictures_shown(sum(one.num_pictures for one in (*sheets, *pages))) as advance,
        ThreadPoolExecutor(NUM_READERS) as readers,
    ):
        for one in sheets:
            _save(folder / (out.name if suffix else f"{one.name}.png"), _draw(one, run, table, readers))
            advance(one.num_pictures)
        for number, one in enumerate(pages):
            drawn = _draw(one, run, table, readers)
            _add_page(folder / (out.name if suffix else "sheets.pdf"), drawn, one.a4_px, number, out.stem)
            advance(one.num_pictures)
    missing = "" if conditions or top else _of_all(table.num_rows, rows.info.num_targets)
    where = {".pdf": f"{len(pages)} pages of {out}", "": f"{len(sheets)} sheets in {out}"}.get(suffix, out)
    print(f"{table.num_rows:,}{missing} pictures on {where}")


def _check_out(out: Path, suffix: str, pdf: bool) -> None:
    """Raises: DgnError."""
    if not out.absolute().parent.is_dir() or suffix not in ("", ".pdf", *PICTURES):
        raise DgnError(
            f"cannot write the sheet {out}: expected a file ({', '.join(PICTURES)}, .pdf) or a folder, "
            "in a folder that exists"
        )
    if pdf and suffix in PICTURES:
        raise DgnError(f"--pdf goes with a folder: for a PDF alone give {out.with_suffix('.pdf')} in place of {out}")
    if suffix:
        check_replaceable(out, "sheet", MARKS)
    else:
        check_empty(out)


def _check_columns(columns: int | None, table: pa.Table, groups: Sequence[Sequence[int]]) -> None:
    """Raises: DgnError where a line would end within a pair."""
    modes = table["mode"].to_pylist()
    if columns and columns % 2 and any(len({modes[n] for n in group}) > 1 for group in groups):
        raise DgnError(
            f"--columns {columns}: expected an even number, because both modes stand side by side; --mode shows one"
        )


def _of_all(num: int, num_targets: int) -> str:
    return f" of {num_targets:,}" if num < num_targets else ""


def _selected(rows: Rows, conditions: list[Condition], top: int | None) -> tuple[pa.Table, list[list[int]]]:
    """The rows and their groups, in order of depth and unit, or best first each by itself.

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
        raise RunDamaged(f"{rows.run.store.url} has rows without a seed: dgn verify tells what else is wrong")
    if top:
        return table, [[n] for n in range(table.num_rows)]
    depth = {layer: n for n, layer in enumerate(layers)}
    what = [target_id.rsplit("-", 2)[0] for target_id in table["target_id"].to_pylist()]  # without mode and seed
    modes = [MODES.index(mode) if mode in MODES else len(MODES) for mode in table["mode"].to_pylist()]
    depths = [depth[layer] for layer in table["layer"].to_pylist()]
    of_unit = list(zip(depths, table["unit"].is_null().to_pylist(), map(_natural, what), strict=True))  # mixes behind
    key = list(zip(of_unit, table["seed"].to_pylist(), modes, strict=True))
    order = sorted(range(table.num_rows), key=key.__getitem__)
    return table, [list(group) for _, group in itertools.groupby(order, key=of_unit.__getitem__)]


def _natural(text: str) -> list[tuple[str, int]]:
    """Sorts numbers in a text by their value."""
    return [(word, int(part or 0)) for word, part in re.findall(r"(\D*)(\d{0,18})", text, re.ASCII)]


def _by_name(table: pa.Table, groups: Sequence[Sequence[int]], is_best: bool) -> Named:
    """Numbered groups by what they show, in order of depth, mixes last."""
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


def _set_of_sheets(table: pa.Table, by_name: Named, columns: int | None, picture_px: int) -> list[Sheet]:
    sheets: list[Sheet] = []
    for name, numbered in by_name.items():
        for num_units in PAGE_UNITS:
            pages = _pages(name, numbered, num_units)
            found = [_sheet(title, table, some, columns, picture_px) for title, some in pages.items()]
            if all(one.fits(".png") for one in found):
                break
        sheets += found
    return sheets


def _pages_of_a4(table: pa.Table, by_name: Named, columns: int | None, picture_px: int) -> list[Sheet]:
    """As many lines on each as there is room for."""
    pages: list[Sheet] = []
    for name, numbered in by_name.items():
        groups = [group for _, group in numbered]
        columns_of_a4 = columns or _columns(groups, PRINT_COLUMNS, PRINT_COLUMNS)
        whole = _sheet(name, table, groups, columns_of_a4, picture_px)
        height = whole.a4_px[1] * (1 - 2 * PRINT_MARGIN_MM / A4_MM[1])
        num_lines = int(height - MARGIN_PX) // whole.cell_px[1]
        places, by_page = whole.places(), dict[int, list[Sequence[int]]]()
        for group in groups:
            for page, part in itertools.groupby(group, key=lambda _: next(places)[1] // num_lines):
                by_page.setdefault(page, []).append(list(part))
        pages += [replace(whole, groups=some) for some in by_page.values()]
    return pages


def _pages(name: str, numbered: list[tuple[int, Sequence[int]]], num_units: int) -> dict[str, list[Sequence[int]]]:
    """Groups by the name of their sheet, which tells the units that have a place on it."""
    last = max(number for number, _ in numbered) // num_units * num_units + num_units - 1
    if last < PAGE_UNITS[0] == num_units and name != "classes":
        return {name: [group for _, group in numbered]}
    digits, pages = max(3, len(str(last))), dict[str, list[Sequence[int]]]()
    for number, group in numbered:
        first = number // num_units * num_units
        pages.setdefault(f"{name}-{first:0{digits}d}-{first + num_units - 1:0{digits}d}", []).append(group)
    return pages


def _sheet(name: str, table: pa.Table, groups: Sequence[Sequence[int]], columns: int | None, picture_px: int) -> Sheet:
    """Without `columns` there are about as many units in a line as lines, so that a small sheet is no ribbon."""
    if columns is None:
        columns = _columns(groups, LINE_PICTURES, min(LINE_UNITS, math.ceil(math.sqrt(len(groups)))))
    sheet = Sheet(name, groups, columns, picture_px, name_lines=1)
    of_sheet = table.select(["unit", "units", "label", "layer"]).take(list(itertools.chain.from_iterable(groups)))
    names = {_name(row) for row in of_sheet.filter(of_sheet["unit"].is_null()).to_pylist()}
    wrapped = (_wrapped(name, sheet.font_px, picture_px, NAME_LINES) for name in names)
    return Sheet(name, groups, columns, picture_px, max((len(lines) for lines in wrapped), default=1))


def _columns(groups: Sequence[Sequence[int]], num_pictures: int, num_units: int) -> int:
    """For whole units, at most so many, with at most so many pictures; for those of a part of a unit if it has more."""
    largest = max(len(group) for group in groups)
    return min(max(num_pictures // largest, 1), num_units) * min(largest, num_pictures)


def _check_size(sheet: Sheet, suffix: str, is_alone: bool) -> None:
    """Raises: DgnError for a sheet too large to be made, or to be opened by others."""
    if not sheet.fits(suffix):
        width, height = sheet.a4_px if suffix == ".pdf" else sheet.size_px
        raise DgnError(
            f"a sheet of {sheet.num_pictures:,} pictures would be {width:,} x {height:,} px, more than {suffix} or "
            f"other programs take ({MAX_SIDE_PX[suffix]:,} px a side, {MAX_PIXELS / 1e6:.0f} million in all): give "
            f"{'a folder as OUT, which gets several, or ' if is_alone else ''}other --picture-px or --columns"
        )


def _save(path: Path, page: Image.Image) -> None:
    about = Image.Exif()
    about[ExifTags.Base.Software] = MADE_BY
    page.save(path, quality=QUALITY, exif=about)


def _add_page(path: Path, drawn: Image.Image, a4_px: tuple[int, int], number: int, title: str) -> None:
    """Pillow appends to the file. Without dates, so that a run's PDF is the same at every try."""
    page = Image.new("RGB", a4_px, "white")
    dots_per_mm = a4_px[0] / A4_MM[0]
    page.paste(drawn, (round(PRINT_MARGIN_MM * dots_per_mm),) * 2)
    about = {"title": title, "producer": MADE_BY, "creationDate": None, "modDate": None}
    page.save(path, "PDF", append=number > 0, resolution=25.4 * dots_per_mm, quality=QUALITY, **about)


def _draw(sheet: Sheet, run: Run, table: pa.Table, readers: Executor) -> Image.Image:
    """Raises: RunDamaged for a picture that is missing or no PNG."""
    page = Image.new("RGB", sheet.size_px, "white")
    pen = ImageDraw.Draw(page)
    rows = table.take(list(itertools.chain.from_iterable(sheet.groups))).to_pylist()
    has_seeds = len({row["seed"] for row in rows}) > 1
    places = sheet.places()
    for start in range(0, len(rows), PICTURES_AT_A_TIME):
        some = rows[start : start + PICTURES_AT_A_TIME]
        for row, image in zip(some, readers.map(partial(_picture, run, sheet.picture_px), some), strict=True):
            column, line = next(places)
            x, y = MARGIN_PX + column * sheet.cell_px[0], MARGIN_PX + line * sheet.cell_px[1]
            if image is None:
                _draw_reason(pen, x, y, sheet, row)
            else:
                page.paste(image, (x, y))
            _draw_caption(pen, x, y + sheet.picture_px + 1, sheet, row, has_seeds)
    return page


def _picture(run: Run, side_px: int, row: dict[str, Any]) -> Image.Image | None:
    """Raises: RunDamaged."""
    if row["file_name"] is None:
        return None
    png = run.picture(row["file_name"])
    try:
        image = Image.fromarray(picture.decode(png))
    except DgnError as error:
        where = f"{run.store.url}/{row['file_name']}"
        raise RunDamaged(f"{where}: {error}; dgn verify tells what else is wrong") from error
    return image.resize((side_px, side_px), Image.Resampling.LANCZOS)


def _draw_reason(pen: ImageDraw.ImageDraw, x: int, y: int, sheet: Sheet, row: dict[str, Any]) -> None:
    """An outlined box in place of a picture, and why there is none."""
    side, inset = sheet.picture_px, sheet.font_px
    pen.rectangle([x, y, x + side - 1, y + side - 1], outline="grey")
    most = max(1, (side - 2 * inset) // sheet.line_px)
    for n, text in enumerate(_wrapped(row["reason"] or "no picture", sheet.font_px, side - 2 * inset, most)):
        pen.text((x + inset, y + inset + n * sheet.line_px), text, fill="dimgrey", font=_font(text, sheet.font_px))


def _draw_caption(pen: ImageDraw.ImageDraw, x: int, y: int, sheet: Sheet, row: dict[str, Any], has_seeds: bool) -> None:
    name, origins, scores, outcome = _caption(row, has_seeds)
    width, px = sheet.picture_px, sheet.font_px

    def write(text: str, line: int, fill: str, at: float = 0) -> None:
        pen.text((x + at, y + line * sheet.line_px), text, fill=fill, font=_font(text, px))

    number = "" if row["unit"] is None else str(row["unit"])  # of a class too: ImageNet has two cranes
    number_px = _length(number, px)
    write(number, 0, "dimgrey", width - number_px)
    names = [_fitting(name, px, width - number_px - px)] if number else _wrapped(name, px, width, sheet.name_lines)
    for n, text in enumerate(names):
        write(text, n, "black")
    write(_fitting(_longest(origins, px, width), px, width), len(names), "dimgrey")
    figures = _fitting(_longest(scores, px, width - _length(outcome, px)), px, width)
    write(figures, len(names) + 1, "dimgrey")
    figures_px = _length(figures, px)
    write(_fitting(outcome, px, width - figures_px), len(names) + 1, "firebrick", figures_px)


def _caption(row: dict[str, Any], has_seeds: bool) -> tuple[str, list[str], list[str], str]:
    """Name, origin and scores, each from long to short, and what is not ok."""
    mode, seed = row["mode"], f", seed {row['seed']}" if has_seeds else ""
    origins = [f"{mode}, {row['discriminator']}{seed}", f"{mode}{seed}"]
    if row["status"] == "nonfinite" or row["activation"] is None:
        return _name(row), origins, [""], "nonfinite"
    outcome = "" if row["status"] == "ok" else f", {row['status'].replace('_', ' ')}"
    rank, activation = f"rank {row['rank']}", f"{row['activation']:.3g}"
    scores = [f"{rank}, activation {activation}", f"{rank}, act. {activation}", f"act. {activation}", activation]
    return _name(row), origins, scores, outcome


def _name(row: dict[str, Any]) -> str:
    """A class's label, a filter's layer, or the parts of a mix with their weights."""
    if row["unit"] is not None:
        return row["label"] or row["layer"]
    units = [one for one in row["units"] or () if one]
    labels = row["label"].split(" + ") if row["label"] else []
    if len(labels) != len(units):
        labels = []
    parts, layer = [], None
    for n, one in enumerate(units):
        weight = "" if one["weight"] in (1, None) else f"{one['weight']:g} × "
        within = "" if one["layer"] == layer else f"{one['layer']}:"
        parts.append(weight + (labels[n] if labels else f"{within}{one['unit']}"))
        layer = one["layer"]
    return " + ".join(parts) or "mix"


def _font(text: str, px: int) -> Font:
    return _fonts(px)[0 if text.replace("…", "").isascii() else 1]


@cache
def _fonts(px: int) -> tuple[Font, Font]:
    """Pillow's own font, which has ASCII only, and one that knows more alphabets."""
    import matplotlib

    own = ImageFont.load_default(px)
    assert isinstance(own, Font)
    return own, ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", px)


def _length(text: str, px: int) -> float:
    return _font(text, px).getlength(text)


def _fitting(text: str, px: int, width_px: float) -> str:
    """The text, control characters as escapes, or as much of its beginning as fits."""
    text = printable(text[:MAX_CHARS])
    while len(text) > 1 and _length(text, px) > width_px:
        text = text.rstrip("…")[:-1] + "…"
    return text


def _longest(texts: Sequence[str], px: int, width_px: float) -> str:
    """Of texts from long to short the first that fits, or else the last."""
    return next((text for text in texts if _fitting(text, px, width_px) == text), texts[-1])


def _wrapped(text: str, px: int, width_px: float, most: int) -> list[str]:
    """The text in lines that fit, at most so many."""
    lines: list[str] = []
    for word in printable(text[:MAX_CHARS]).split(" "):
        if lines and (len(lines) == most or _length(f"{lines[-1]} {word}", px) <= width_px):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [_fitting(line, px, width_px) for line in lines]
