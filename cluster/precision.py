"""Which arithmetic the precision `auto` stands for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

from dgn.cluster import fleet
from dgn.cost.tuned import Tuned
from dgn.engine import engine_for

log = logging.getLogger("dgn")


def resolve_precision(
    precision: str, has_gpus: bool, tuned: Mapping[str, Tuned] | None = None
) -> Literal["float32", "bfloat16"]:
    """What `auto` stands for: bfloat16 if the cluster's GPUs, or this machine's CPU, multiply it in hardware.

    If this machine's device was tuned, and is of the kind that renders, then the precision that was faster.
    """
    if precision in ("float32", "bfloat16"):
        return precision  # type: ignore[return-value]
    here = engine_for()
    own = tuned.get(here.model) if tuned and here.is_gpu == has_gpus else None
    if own:
        log.info("tuned: %s is faster on this machine's %s", own.precision, own.device)
        return own.precision
    has_bfloat16 = fleet.gpus_have_bfloat16() if has_gpus else engine_for("cpu").has_bfloat16
    return "bfloat16" if has_bfloat16 else "float32"
