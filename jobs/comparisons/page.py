"""A comparison as one HTML page: pairs of pictures side by side, the most changed first."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

import dgn
from dgn.errors import DgnError, RunDamaged
from dgn.pictures.codec import decode_png
from dgn.runs.comparison import Side
from dgn.text import printable

TEMPLATES = Path(__file__).parent


def render_page(table: pa.Table, sides: dict[str, Side], names: dict[str, str], judge: str, top: int) -> str:
    """The whole page, with the `top` most changed pairs.

    Args:
        names: of the runs, a and b.

    Raises: RunDamaged for a picture that cannot be read.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=_finalize,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pairs = [
        pair | {f"image_{side}": _data_url(sides[side], pair[f"file_name_{side}"]) for side in sides}
        for pair in table.slice(0, top).to_pylist()
    ]
    return environment.get_template("compare.html.j2").render(
        pairs=pairs, num_pairs=table.num_rows, names=names, judge=judge, version=dgn.__version__,
        networks={side: one.network.layers.network for side, one in sides.items()},
    )  # fmt: skip


def _finalize(value: Any) -> Any:
    """Shows control characters of texts from elsewhere; afterwards jinja escapes everything but Markup."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _data_url(side: Side, file_name: str) -> str:
    """A picture, decoded and encoded again, so that a page never holds bytes that were not decoded."""
    png = side.run.unchecked_picture(file_name)
    try:
        picture_HW3 = decode_png(png)
    except DgnError as error:
        raise RunDamaged(f"{side.run.store.url}/{file_name}: {error}", "dgn verify lists the damage") from error
    buffer = io.BytesIO()
    Image.fromarray(picture_HW3).save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
