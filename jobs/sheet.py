"""`dgn sheet`: contact sheets of a run: one of everything, or a set like the paper's authors published.

A set has classes in hundreds (classes-000-099.png), filters by layer, in hundreds if there are more
(conv5_1-000-099.png), and mixes.png. A PDF shows the same on A4 pages. Pictures of one unit stand together, by seed
and mode, with `--examples` beside the photographs that excite it most. Paper: Figures 4 and 6 to 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer
from PIL import ExifTags, Image

from dgn.errors import DgnError
from dgn.jobs.common.arguments import RunArgument
from dgn.jobs.common.files import check_empty, check_replaceable, one_line_errors, whole_or_not_at_all
from dgn.jobs.common.progress import pictures_done
from dgn.jobs.sheets.arranging import (
    A4_MM,
    MAX_PIXELS,
    MAX_SIDE_PX,
    PRINT_MARGIN_MM,
    Sheet,
    group_by_sheet,
    make_sheet,
    pages_of_a4,
    select_groups,
    set_of_sheets,
)
from dgn.jobs.sheets.captions import EXAMPLES
from dgn.jobs.sheets.drawing import draw_sheet
from dgn.jobs.sheets.photographs import with_examples
from dgn.runs.conditions import condition
from dgn.runs.query import Rows
from dgn.runs.run import NUM_READERS, Run
from dgn.targets import MODES
from dgn.text import plural

QUALITY = 90  # of JPEG, also within PDF, and of WebP
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
MADE_BY = "dgn sheet"  # identifies a sheet: the software in a picture's Exif, the producer of a PDF
MARKS = (MADE_BY.encode(), MADE_BY.encode("utf_16_be"))


def command(
    run: RunArgument,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="A picture (.png, .jpg, .webp) for one sheet; a folder for a sheet per hundred classes, per layer, "
            "and of mixes; a .pdf for the same on A4 pages.",
        ),
    ],
    layer: Annotated[str | None, typer.Option(help="Only this layer.")] = None,
    mode: Annotated[str | None, typer.Option(help="Only this mode: untrained or pretrained.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only this many, those of highest activation.")] = None,
    columns: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures per row. Default: a square sheet of at most ten, or ten pairs; 8 in PDFs."),
    ] = None,
    picture_px: Annotated[int, typer.Option(min=32, help="Side of a picture in pixels; in print, set by A4.")] = 224,
    examples: Annotated[
        bool, typer.Option("--examples", help="Beside each unit's pictures, its nine photographs (dgn examples).")
    ] = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also write sheets.pdf into the folder OUT, for print.")] = False,
) -> None:
    with one_line_errors(out):
        suffix = "" if out.is_dir() else out.suffix.lower()
        _check_out(out, suffix, pdf)
    if mode is not None and mode not in MODES:
        raise DgnError(f"unknown mode '{mode}': expected one of {', '.join(MODES)}")
    asked = {"layer": layer, "mode": mode}
    conditions = [condition(name, "=", value) for name, value in asked.items() if value is not None]
    opened = Run.at(run)
    rows = Rows(opened)
    table, groups = select_groups(rows, conditions, top)
    num_pictures = table.num_rows
    if examples:
        table, groups = with_examples(opened, table, groups)
    _check_columns(columns, table, groups)
    sheets, pages = list[Sheet](), list[Sheet]()
    if suffix in PICTURES:
        sheets = [make_sheet(out.stem, table, groups, columns, picture_px)]
    else:
        by_name = group_by_sheet(table, groups, top is not None)
        if not suffix:
            sheets = set_of_sheets(table, by_name, columns, picture_px)
        if suffix == ".pdf" or pdf:
            pages = pages_of_a4(table, by_name, columns, picture_px)
    for one in sheets:
        _check_size(one, suffix or ".png", suffix in PICTURES)
    for one in pages:
        _check_size(one, ".pdf", False)
    with (
        whole_or_not_at_all(out.parent if suffix else out) as folder,
        pictures_done(sum(one.num_pictures for one in (*sheets, *pages))) as advance,
        ThreadPoolExecutor(NUM_READERS) as readers,
    ):
        for one in sheets:
            _save(folder / (out.name if suffix else f"{one.name}.png"), draw_sheet(one, opened, table, readers))
            advance(one.num_pictures)
        for number, one in enumerate(pages):
            drawn = draw_sheet(one, opened, table, readers)
            _add_page(folder / (out.name if suffix else "sheets.pdf"), drawn, one.a4_px, number, out.stem)
            advance(one.num_pictures)
    num_targets = num_pictures if conditions or top else rows.info.num_targets
    where = {".pdf": f"{plural(len(pages), 'page')} of {out}", "": f"{plural(len(sheets), 'sheet')} in {out}"}.get(
        suffix, out
    )
    print(f"{_of_all(num_pictures, num_targets)} on {where}")


def _check_out(out: Path, suffix: str, pdf: bool) -> None:
    """Raises: DgnError."""
    if not out.absolute().parent.is_dir() or suffix not in ("", ".pdf", *PICTURES):
        raise DgnError(
            f"cannot write the sheet {out}: expected a file ({', '.join(PICTURES)}, .pdf) or a folder, "
            "in an existing folder"
        )
    if pdf and suffix in PICTURES:
        raise DgnError(f"--pdf needs a folder: for a PDF alone give {out.with_suffix('.pdf')} instead of {out}")
    if suffix:
        check_replaceable(out, "sheet", MARKS)
    else:
        check_empty(out)


def _check_columns(columns: int | None, table: pa.Table, groups: Sequence[Sequence[int]]) -> None:
    """Raises: DgnError if lines would break what stands side by side: both modes, and photographs."""
    modes = table["mode"].to_pylist()
    together = max((len({modes[n] for n in group}) for group in groups), default=1)
    if columns and columns % together:
        how_many = {2: "an even number", 3: "a multiple of three"}[together]
        what = "the modes stand side by side" if EXAMPLES not in modes else "photographs stand beside their pictures"
        raise DgnError(f"--columns {columns}: expected {how_many}, as {what}")


def _of_all(num: int, num_targets: int) -> str:
    return f"{num:,} of {plural(num_targets, 'picture')}" if num < num_targets else plural(num, "picture")


def _check_size(sheet: Sheet, suffix: str, is_alone: bool) -> None:
    """Raises: DgnError for a sheet too large to make, or for other programs to open."""
    if not sheet.fits(suffix):
        width, height = sheet.a4_px if suffix == ".pdf" else sheet.size_px
        raise DgnError(
            f"a sheet of {plural(sheet.num_pictures, 'picture')} would be {width:,} x {height:,} px, but {suffix} and "
            f"other programs take at most {MAX_SIDE_PX[suffix]:,} px per side, {MAX_PIXELS / 1e6:.0f} million in all: "
            f"give {'a folder as OUT, for several sheets, or ' if is_alone else ''}other --picture-px or --columns"
        )


def _save(path: Path, page: Image.Image) -> None:
    about = Image.Exif()
    about[ExifTags.Base.Software] = MADE_BY
    page.save(path, quality=QUALITY, exif=about)


def _add_page(path: Path, drawn: Image.Image, a4_px: tuple[int, int], number: int, title: str) -> None:
    """Appends a page. Without dates, so that a run's PDF is always the same."""
    page = Image.new("RGB", a4_px, "white")
    dots_per_mm = a4_px[0] / A4_MM[0]
    page.paste(drawn, (round(PRINT_MARGIN_MM * dots_per_mm),) * 2)
    about = {"title": title, "producer": MADE_BY, "creationDate": None, "modDate": None}
    page.save(path, "PDF", append=number > 0, resolution=25.4 * dots_per_mm, quality=QUALITY, **about)
