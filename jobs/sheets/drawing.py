"""Draws a sheet: pictures, captions, and boxes in place of missing pictures."""

from __future__ import annotations

import itertools
from concurrent.futures import Executor
from functools import partial
from typing import Any

import pyarrow as pa
from PIL import Image, ImageDraw

from dgn.errors import DgnError, RunDamaged
from dgn.jobs.sheets.arranging import MARGIN_PX, Sheet
from dgn.jobs.sheets.captions import EXAMPLES, caption
from dgn.jobs.sheets.text import fitting, font_of, length, longest, wrapped
from dgn.pictures.codec import decode_png
from dgn.pictures.example_sheets import decode_example_sheet
from dgn.runs.run import VERIFY, Run

PICTURES_AT_A_TIME = 64


def draw_sheet(sheet: Sheet, run: Run, table: pa.Table, readers: Executor) -> Image.Image:
    """Raises: RunDamaged for a picture that is missing or not a PNG."""
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
    data = run.unchecked_picture(row["file_name"])
    try:
        image = decode_example_sheet(data) if row["mode"] == EXAMPLES else Image.fromarray(decode_png(data))
    except DgnError as error:
        where = f"{run.store.url}/{row['file_name']}"
        raise RunDamaged(f"{where}: {error}", VERIFY) from error
    return image.resize((side_px, side_px), Image.Resampling.LANCZOS)


def _draw_reason(pen: ImageDraw.ImageDraw, x: int, y: int, sheet: Sheet, row: dict[str, Any]) -> None:
    """An outlined box in place of a picture, with the reason."""
    side, inset = sheet.picture_px, sheet.font_px
    pen.rectangle([x, y, x + side - 1, y + side - 1], outline="grey")
    most = max(1, (side - 2 * inset) // sheet.line_px)
    for n, text in enumerate(wrapped(row["reason"] or "no picture", sheet.font_px, side - 2 * inset, most)):
        pen.text((x + inset, y + inset + n * sheet.line_px), text, fill="dimgrey", font=font_of(text, sheet.font_px))


def _draw_caption(pen: ImageDraw.ImageDraw, x: int, y: int, sheet: Sheet, row: dict[str, Any], has_seeds: bool) -> None:
    name, origins, scores, outcome = caption(row, has_seeds)
    width, px = sheet.picture_px, sheet.font_px

    def write(text: str, line: int, fill: str, at: float = 0) -> None:
        pen.text((x + at, y + line * sheet.line_px), text, fill=fill, font=font_of(text, px))

    number = "" if row["unit"] is None else str(row["unit"])  # also for classes, because ImageNet has two cranes
    number_px = length(number, px)
    write(number, 0, "dimgrey", width - number_px)
    names = [fitting(name, px, width - number_px - px)] if number else wrapped(name, px, width, sheet.name_lines)
    for n, text in enumerate(names):
        write(text, n, "black")
    write(fitting(longest(origins, px, width), px, width), len(names), "dimgrey")
    score = fitting(longest(scores, px, width - length(outcome, px)), px, width)
    write(score, len(names) + 1, "dimgrey")
    score_px = length(score, px)
    write(fitting(outcome, px, width - score_px), len(names) + 1, "firebrick", score_px)
