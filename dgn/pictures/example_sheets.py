"""A subject's examples as one picture: its nine photographs, 3 x 3, each with a box where the unit responds most."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from dgn.errors import DgnError
from dgn.pictures.codec import THUMBNAIL_PX
from dgn.text import in_one_line

ACROSS = 3
NUM_BEST = ACROSS**2  # photographs of a subject; paper: Figures 6 and 7
GAP_PX = 4
SIDE_PX = ACROSS * THUMBNAIL_PX + (ACROSS - 1) * GAP_PX
BOX, EDGE = "#ffd400", "black"

Box = tuple[float | None, float | None, float | None, float | None]


def draw_example_sheet(photographs: Sequence[tuple[bytes, Box]]) -> bytes:
    """A WebP file of 296 x 296 px.

    Args:
        photographs: at most NUM_BEST thumbnails, the strongest first, and left, top, right and bottom of their boxes in
            shares of the side; None for none.
    """
    sheet = Image.new("RGB", (SIDE_PX, SIDE_PX), "white")
    pen = ImageDraw.Draw(sheet)
    for n, (thumbnail, box) in enumerate(photographs):
        x, y = ((THUMBNAIL_PX + GAP_PX) * place for place in (n % ACROSS, n // ACROSS))
        with Image.open(io.BytesIO(thumbnail), formats=["WEBP"]) as image:
            sheet.paste(image, (x, y))
        left, top, right, bottom = box
        if left is not None and top is not None and right is not None and bottom is not None:
            draw_box(pen, (x, y), THUMBNAIL_PX, (left, top, right, bottom))
    buffer = io.BytesIO()
    sheet.save(buffer, format="WEBP", quality=80)
    return buffer.getvalue()


def draw_box(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], side_px: int, box: tuple[float, float, float, float]
) -> None:
    """On a picture whose upper left corner is `at`.

    Args:
        box: left, top, right and bottom in shares of the side.
    """
    x, y, most = *at, side_px - 1
    left, top, right, bottom = box
    corners = [x + left * most, y + top * most, x + right * most, y + bottom * most]
    inner = [corners[0] + 1, corners[1] + 1, corners[2] - 1, corners[3] - 1]
    pen.rectangle(corners, outline=EDGE)  # so that the box is seen on photographs of any colour
    pen.rectangle(inner, outline=BOX)


def decode_example_sheet(data: bytes) -> Image.Image:
    """Raises: DgnError for other bytes than `draw_example_sheet` returns."""
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
            if image.size == (SIDE_PX, SIDE_PX):
                return image.convert("RGB")
    except (OSError, ValueError) as error:
        raise DgnError(f"not a sheet of examples: {in_one_line(error)}") from error
    raise DgnError(f"not a sheet of examples: {image.width} x {image.height} px")
