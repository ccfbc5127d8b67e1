"""HTML pages of one file: a template, and pictures inside the page. Nothing is fetched, nothing runs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from dgn.errors import DgnError, RunDamaged
from dgn.pictures.codec import decode_png
from dgn.runs.run import Run
from dgn.text import printable

SHARED = Path(__file__).parent  # its templates


def templates(folder: Path) -> Environment:
    """The templates in a folder, and those of SHARED that they extend."""
    return Environment(
        loader=FileSystemLoader([folder, SHARED]), autoescape=True, undefined=StrictUndefined, finalize=_finalize,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def _finalize(value: Any) -> Any:
    """Shows control characters of texts from elsewhere; afterwards jinja escapes everything but Markup."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def webp_url(webp: bytes) -> str:
    """A WebP file that dgn itself encoded, for the source of an image."""
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def image_url(image: Image.Image | NDArray[np.uint8]) -> str:
    """A picture that was decoded, encoded again, so that a page never holds bytes that were not decoded."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "WEBP", quality=80)
    return webp_url(buffer.getvalue())


def picture_of(run: Run, file_name: str) -> NDArray[np.uint8]:
    """A run's picture, (H, W, 3) uint8 RGB. Raises: RunDamaged if it cannot be read."""
    png = run.unchecked_picture(file_name)
    try:
        return decode_png(png)
    except DgnError as error:
        raise RunDamaged(f"{run.store.url}/{file_name}: {error}", "dgn verify lists the damage") from error
