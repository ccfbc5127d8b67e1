"""A picture's row: from the outcome of one target to the values of `schema.COLUMNS`."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dgn.runs.layout import image_key, sha256
from dgn.runs.schema import PNG

if TYPE_CHECKING:
    from dgn.networks.layers import Layers
    from dgn.pictures.scoring import ScoredPicture
    from dgn.targets import Target

Row = dict[str, Any]


@dataclass(frozen=True)
class Provenance:
    """Where a row comes from."""

    run_id: str
    shard: int
    attempt: str
    device: str


def make_row(
    scored: ScoredPicture,
    layers: Layers,
    origin: Provenance,
    png: bytes | None = None,
    thumbnail: bytes | None = None,
    target: Target | None = None,
    is_packed: bool = False,
) -> Row:
    """The row of one target.

    Args:
        png, thumbnail: the encoded picture, or None without a picture.
        target: the one of whose tries this picture is the best; None for the picture's own.
        is_packed: whether the row holds its PNG itself; where that lies is known when the shard is committed.
    """
    result, scores = scored.result, scored.scores
    target = target or result.target
    row: Row = {
        "run_id": origin.run_id,
        "target_id": target.target_id,
        "shard": origin.shard,
        "attempt": origin.attempt,
        "layer": target.layer,
        "unit": target.unit,
        "units": [asdict(unit) for unit in target.units],
        "label": layers.label(target),
        "mode": target.mode,
        "seed": result.target.seed,
        "discriminator": layers.network,
        "status": str(scored.status),
        "reason": scored.reason,
        "optimised_activation": result.optimised_activation,
        "activation_curve": list(result.activation_curve),
        "updates": result.num_updates,
        "file_name": None,
        "seconds": result.seconds,
        "device": origin.device,
        "host": platform.node(),
        "rendered_at": datetime.now(UTC),
    }
    if is_packed:
        row[PNG] = png
    if scores is None or png is None:
        return row
    _, height, width = result.picture_3HW.shape
    return row | {
        "activation": scores.activation,
        "unrounded_activation": scored.unrounded_activation,
        "rank": scores.rank,
        "probability": scores.probability,
        "top5": [asdict(top) for top in scores.top5],
        "others_sum": scores.others_sum,
        "file_name": None if is_packed else image_key(origin.shard, origin.attempt, target.target_id),
        "sha256": sha256(png),
        "bytes": len(png),
        "width": width,
        "height": height,
        "thumbnail": thumbnail,
    }
