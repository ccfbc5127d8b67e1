"""An audit as one HTML page: every class's picture, and what it contains beside the class, the worst first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dgn
from dgn.jobs.audits.examples import examples_of
from dgn.jobs.audits.remarks import remarks_on
from dgn.jobs.common.pages import image_url, picture_of, templates, webp_url
from dgn.jobs.common.printing import percent
from dgn.pictures.codec import encode_thumbnail
from dgn.runs.audit import Audit
from dgn.runs.conditions import condition
from dgn.runs.query import Rows
from dgn.runs.run import Run

TEMPLATES = Path(__file__).parent
LEAST_SEEN = 0.01  # probability of a class that is shown
WIDTH, HEIGHT = 240, 96  # of a plot, in SVG units


def render_page(audit: Audit, pictures: Sequence[dict[str, Any]], top: int) -> str:
    """The whole page, with the first `top` pictures. Raises: RunDamaged for one that cannot be read."""
    shown = pictures[:top]
    environment = templates(TEMPLATES)
    environment.filters |= {"percent": percent, "line": _line}
    items = [
        one | {"image": image_url(picture_of(audit.run, one["file_name"]))} | examples
        for one, examples in zip(shown, examples_of(audit, shown), strict=True)
    ]
    return environment.get_template("audit.html.j2").render(
        command="audit", version=dgn.__version__, audit=audit, items=items, num_pictures=len(pictures),
        remarks=remarks_on(audit, pictures), thumbnails=_thumbnails(audit),
        unit_pictures=_unit_pictures(audit.run, shown), num_seeds=len({one["seed"] for one in pictures}),
        class_name=audit.own.layers.class_name, least_seen=LEAST_SEEN, width=WIDTH, height=HEIGHT,
    )  # fmt: skip


def _line(path: Sequence[dict[str, Any]], name: str) -> str:
    """Points of an SVG line along the layers: 1 is at the top, 0 and less at the bottom."""
    step = WIDTH / max(len(path) - 1, 1)
    return " ".join(
        f"{n * step:.1f},{HEIGHT * (1 - min(max(layer[name], 0.0), 1.0)):.1f}" for n, layer in enumerate(path)
    )


def _thumbnails(audit: Audit) -> dict[str, dict[str, str]]:
    """Photographs of all classes by name, each with its class and its image."""
    if audit.every is None:
        return {}
    labels = [audit.own.layers.class_name(class_) for class_ in audit.every.classes_N.tolist()]
    urls = map(webp_url, audit.every.thumbnails)
    return {
        name: {"label": label, "image": url} for name, label, url in zip(audit.every.names, labels, urls, strict=True)
    }


def _unit_pictures(run: Run, shown: Sequence[dict[str, Any]]) -> dict[tuple[str, int], str]:
    """The run's pictures of the units that are named, the best of each."""
    rows, found = Rows(run), dict[tuple[str, int], str]()
    named = {(unit["layer"], unit["unit"]) for one in shown for unit in one.get("units") or ()}
    for layer in sorted({layer for layer, _ in named} & set(rows.layers())):
        of_layer = rows.select([condition("layer", "=", layer)], ["unit", "file_name"])
        for row in of_layer.to_pylist():
            key = layer, row["unit"]
            if key in named and key not in found and row["file_name"] is not None:
                found[key] = webp_url(encode_thumbnail(picture_of(run, row["file_name"])))
    return found
