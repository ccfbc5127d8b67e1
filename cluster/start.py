"""Ray for a run: joined, or started with processes that import what workers need while the driver does."""

from __future__ import annotations

import logging
import math
import os
import re

from dgn.cluster import connection
from dgn.runs.config import RunConfig
from dgn.runs.run import Run
from dgn.runs.stores import open_store
from dgn.targets import MODES

log = logging.getLogger("dgn")

WORKER_MODULE = "dgn.cluster.worker"
COUNTED = re.compile(r"(?:[^:,]+:)+(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)")  # targets that say how many they are


def start_ray(config: RunConfig) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts Ray here unless that was done. Raises: DgnError."""
    if not connection.is_connected():
        log.info("Ray starts")
        connection.connect(config.log_format, WORKER_MODULE, most_workers(config))


def start_ray_ahead(url: str, config: RunConfig) -> None:
    """Starts Ray here if nothing is at `url` yet, so that its processes import PyTorch while this one does.

    A run that is there may be whole, or of other settings. Then Ray is not needed. Raises: DgnError.
    """
    if not os.environ.get("RAY_ADDRESS") and not Run(open_store(url).impatient()).begun():
        start_ray(config)


def most_workers(config: RunConfig) -> int:
    """Workers on this machine, at most, as far as the settings tell without the network."""
    asked = config.workers_range[1] if config.workers_range else math.inf
    targets = sum(_count(written) for written in config.targets) * len(config.modes or MODES) * config.seeds
    return max(1, int(min(asked, targets, os.cpu_count() or 1)))


def _count(written: str) -> float:
    counted = COUNTED.fullmatch(written)
    if not counted:
        return math.inf
    ends = [part.split("-") for part in counted[1].split(",")]
    return sum(max(1, int(one[-1]) - int(one[0]) + 1) for one in ends)
