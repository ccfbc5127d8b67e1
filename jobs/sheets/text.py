"""Text that fits: fonts, lengths, line breaks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import ImageFont

from dgn.text import printable

MAX_CHARS = 200  # of a text from elsewhere
Font = ImageFont.FreeTypeFont


def font_of(text: str, px: int) -> Font:
    return _fonts(px)[0 if text.replace("…", "").isascii() else 1]


@cache
def _fonts(px: int) -> tuple[Font, Font]:
    """Pillow's own font, which has only ASCII, and one with more alphabets."""
    import matplotlib

    own = ImageFont.load_default(px)
    assert isinstance(own, Font)
    return own, ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", px)


def length(text: str, px: int) -> float:
    return font_of(text, px).getlength(text)


def fitting(text: str, px: int, width_px: float) -> str:
    """The text with control characters escaped, cut to what fits."""
    text = printable(text[:MAX_CHARS])
    while len(text) > 1 and length(text, px) > width_px:
        text = text.rstrip("…")[:-1] + "…"
    return text


def longest(texts: Sequence[str], px: int, width_px: float) -> str:
    """The first text that fits, or the last. Texts run from long to short."""
    return next((text for text in texts if fitting(text, px, width_px) == text), texts[-1])


def wrapped(text: str, px: int, width_px: float, most: int) -> list[str]:
    """The text in at most `most` lines that fit."""
    lines: list[str] = []
    for word in printable(text[:MAX_CHARS]).split(" "):
        if lines and (len(lines) == most or length(f"{lines[-1]} {word}", px) <= width_px):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [fitting(line, px, width_px) for line in lines]
