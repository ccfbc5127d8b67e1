"""An explanation as one picture: the photograph with the answer, and a line per layer with the filters' pictures.

Below each filter's picture is the photograph, bright where the filter responds, with a box around its strongest
response, and below that what the answer loses without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dgn.errors import DgnError, RunDamaged
from dgn.jobs.sheets.text import fitting, font_of, wrapped
from dgn.networks.layers import Layers
from dgn.pictures.codec import decode_png
from dgn.pictures.example_sheets import draw_box
from dgn.pictures.explaining import Evidence, Explanation
from dgn.runs.run import VERIFY
from dgn.targets import Mode

PICTURE_PX = 192
GAP_PX = 8
FONT_PX, LINE_PX = 13, 18
TITLE_PX = 17
DARKEST = 0.25  # of the photograph, where a filter is silent
CELL_PX = 2 * (PICTURE_PX + GAP_PX // 2) + 2 * LINE_PX + GAP_PX
LEAST_COLUMNS = 4  # for the header's text
Pictures = Mapping[str, Mapping[str, Any]]  # rows by target_id, each with the `run` that holds the picture


def draw_sheet(explanation: Explanation, layers: Layers, pictures: Pictures, mode: Mode, seed: int) -> Image.Image:
    """Raises: RunDamaged for a picture that is missing or not a PNG."""
    lines = explanation.evidence
    num_columns = max(LEAST_COLUMNS, *map(len, lines.values()))
    width = num_columns * (PICTURE_PX + GAP_PX) + GAP_PX
    height = PICTURE_PX + 2 * GAP_PX + sum(TITLE_PX + 2 * GAP_PX + (CELL_PX if some else 0) for some in lines.values())
    page = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    page.paste(_resized(explanation.photograph.seen_HW3), (GAP_PX, GAP_PX))
    text_x = PICTURE_PX + 3 * GAP_PX
    y = GAP_PX
    for text, px, fill in _header(explanation, layers):
        for line in wrapped(text, px, width - text_x - GAP_PX, 2):
            pen.text((text_x, y), line, fill=fill, font=font_of(line, px))
            y += px + GAP_PX
    y = PICTURE_PX + 2 * GAP_PX
    for layer, some in lines.items():
        title = fitting(_title(layer, some, explanation, layers), TITLE_PX, width - 2 * GAP_PX)
        pen.text((GAP_PX, y), title, fill="black", font=font_of(title, TITLE_PX))
        y += TITLE_PX + GAP_PX
        for n, one in enumerate(sorted(some, key=lambda one: one.weight is not None)):  # the group first
            picture = pictures[one.target(mode, seed).target_id]
            _draw_cell(page, (GAP_PX + n * (PICTURE_PX + GAP_PX), y), one, picture, explanation)
        y += (CELL_PX if some else 0) + GAP_PX
    return page


def _header(explanation: Explanation, layers: Layers) -> list[tuple[str, int, str]]:
    """Lines with their size and colour."""
    answers = " · ".join(
        f"{layers.class_name(class_)}{'' if probability is None else f' {probability:.2f}'}"
        for class_, probability in explanation.answers
    )
    probability = "" if explanation.probability is None else f", probability {explanation.probability:.2f}"
    asked = "" if explanation.class_ == explanation.answers[0][0] else " (not its answer)"
    return [
        (f"{layers.class_name(explanation.class_)}{probability}{asked}", TITLE_PX, "black"),
        (explanation.photograph.name, FONT_PX, "dimgrey"),
        (f"{layers.network}: {answers}", FONT_PX, "dimgrey"),
        ("Each line: the filters of a layer that speak most for it, drawn together and one by one; below, where they "
         "respond on the photograph.", FONT_PX, "dimgrey"),
        (f"The numbers: how the class's value, {explanation.value:.3g}, changes without them.", FONT_PX, "dimgrey"),
    ]  # fmt: skip


def _title(layer: str, some: Sequence[Evidence], explanation: Explanation, layers: Layers) -> str:
    if not some:
        return f"{layer}: none of its {layers.units[layer]:,} filters speaks for it"
    num = sum(one.weight is not None for one in some)
    last = some[-1]
    changes = f"value {explanation.value:.3g} → {explanation.value - last.fall:.3g}"
    if explanation.probability is not None and last.probability_without is not None:
        changes = f"probability {explanation.probability:.2f} → {last.probability_without:.2f}, {changes}"
    return f"{layer}: {num} of {layers.units[layer]:,} filters; without {'them' if num > 1 else 'it'} {changes}"


def _draw_cell(
    page: Image.Image, at: tuple[int, int], one: Evidence, picture: Mapping[str, Any], explanation: Explanation
) -> None:
    x, y = at
    pen = ImageDraw.Draw(page)
    drawn = _picture(picture)
    if drawn is None:
        pen.rectangle([x, y, x + PICTURE_PX - 1, y + PICTURE_PX - 1], outline="grey")
        for n, text in enumerate(wrapped(picture["reason"] or "no picture", FONT_PX, PICTURE_PX - 2 * FONT_PX, 8)):
            pen.text((x + FONT_PX, y + FONT_PX + n * LINE_PX), text, fill="dimgrey", font=font_of(text, FONT_PX))
    else:
        page.paste(drawn, at)
    y += PICTURE_PX + GAP_PX // 2
    page.paste(_resized(_lit(explanation.photograph.seen_HW3, one.map_HW)), (x, y))
    if one.box is not None:
        draw_box(pen, (x, y), PICTURE_PX, one.box)
    y += PICTURE_PX + GAP_PX // 2
    name = "together" if one.weight is None else f"filter {one.units[0].unit}, weight {one.weight:g}"
    status = "" if picture["status"] == "ok" else f", {picture['status'].replace('_', ' ')}"
    for n, (text, fill) in enumerate(((name, "black"), (f"{-one.fall:+.3g}{status}", "dimgrey"))):
        shown = fitting(text, FONT_PX, PICTURE_PX)
        pen.text((x, y + n * LINE_PX), shown, fill=fill, font=font_of(shown, FONT_PX))


def _lit(seen_HW3: NDArray[np.uint8], map_HW: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """The photograph, dark where the map is 0."""
    if map_HW is None:
        return seen_HW3
    height, width = seen_HW3.shape[:2]
    map_image = Image.fromarray(map_HW).resize((width, height), Image.Resampling.BILINEAR)
    light_HW1 = DARKEST + (1 - DARKEST) * np.asarray(map_image)[..., None] / 255
    return (seen_HW3 * light_HW1).round().astype(np.uint8)


def _resized(picture_HW3: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(picture_HW3).resize((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)


def _picture(row: Mapping[str, Any]) -> Image.Image | None:
    """Raises: RunDamaged."""
    if row["file_name"] is None:
        return None
    try:
        return _resized(decode_png(row["run"].picture(row["file_name"], row["sha256"])))
    except RunDamaged:
        raise
    except DgnError as error:
        raise RunDamaged(f"{row['run'].store.url}/{row['file_name']}: {error}", VERIFY) from error
