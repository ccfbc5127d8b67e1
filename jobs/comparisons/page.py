"""A comparison as one HTML page: pairs of pictures side by side, the most changed first."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

import dgn
from dgn.jobs.common.pages import image_url, picture_of, templates
from dgn.runs.comparison import Side

TEMPLATES = Path(__file__).parent


def render_page(table: pa.Table, sides: dict[str, Side], names: dict[str, str], judge: str, top: int) -> str:
    """The whole page, with the `top` most changed pairs.

    Args:
        names: of the runs, a and b.

    Raises: RunDamaged for a picture that cannot be read.
    """
    pairs = [
        pair | {f"image_{side}": image_url(picture_of(sides[side].run, pair[f"file_name_{side}"])) for side in sides}
        for pair in table.slice(0, top).to_pylist()
    ]
    return templates(TEMPLATES).get_template("compare.html.j2").render(
        command="compare", pairs=pairs, num_pairs=table.num_rows, names=names, judge=judge, version=dgn.__version__,
        networks={side: one.network.layers.network for side, one in sides.items()},
    )  # fmt: skip
