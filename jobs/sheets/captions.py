"""The captions below pictures."""

from __future__ import annotations

from typing import Any

EXAMPLES = "examples"  # in place of a mode: photographs instead of a picture


def caption(row: dict[str, Any], has_seeds: bool) -> tuple[str, list[str], list[str], str]:
    """Name, variants of origin and scores from long to short, and the status if not ok."""
    if row["mode"] == EXAMPLES:
        return name_of(row), ["photographs that excite it most", "photographs"], [""], ""
    mode, seed = row["mode"], f", seed {row['seed']}" if has_seeds else ""
    origins = [f"{mode}, {row['discriminator']}{seed}", f"{mode}{seed}"]
    if row["status"] == "nonfinite" or row["activation"] is None:
        return name_of(row), origins, [""], "nonfinite"
    outcome = "" if row["status"] == "ok" else f", {row['status'].replace('_', ' ')}"
    rank, activation = f"rank {row['rank']}", f"{row['activation']:.3g}"
    scores = [f"{rank}, activation {activation}", f"{rank}, act. {activation}", f"act. {activation}", activation]
    return name_of(row), origins, scores, outcome


def name_of(row: dict[str, Any]) -> str:
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
