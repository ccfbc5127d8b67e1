"""Ray for a run: joined, or started with processes that import what workers need while the driver does."""

from __future__ import annotations

import logging
import math
import os
import re
from pathlib import Path

from ray._common import utils as ray_utils
from ray._private.accelerators import NvidiaGPUAcceleratorManager

from dgn.cluster import connection
from dgn.cluster.rules import WORKER_BYTES
from dgn.runs.config import RunConfig
from dgn.runs.run import Run
from dgn.runs.stores import open_store
from dgn.targets import MODES

log = logging.getLogger("dgn")

WORKER_MODULE = "dgn.cluster.worker"
COUNTED = re.compile(r"(?:classes|filters:[^:,]+):(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)")  # that say how many they are


def start_ray(config: RunConfig, num_shards: float) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts Ray here unless that was done. Raises: DgnError.

    Args:
        num_shards: at most, so that no more processes of workers are prepared.
    """
    if not connection.is_connected():
        log.info("Ray starts")
        connection.connect(config.log_format, WORKER_MODULE, most_workers(config, num_shards))


def start_ray_ahead(url: str, config: RunConfig) -> None:
    """Starts Ray here if it will be needed, so that its processes import PyTorch while this one does.

    A run that is there may be whole, or of other settings, and a file that is not there ends the command. Then nothing
    is started. Raises: DgnError.
    """
    is_here = not os.environ.get("RAY_ADDRESS") and all(Path(path).expanduser().exists() for path in _files(config))
    if is_here and not Run(open_store(url).impatient()).begun():
        targets = sum(_count(written) for written in config.targets) * len(config.modes or MODES) * config.seeds
        start_ray(config, targets if config.shard_size == "auto" else targets / config.shard_size)


def most_workers(config: RunConfig, num_shards: float) -> int:
    """Workers on this machine, at most: as many as there are shards, and cores and memory or GPUs for them."""
    num_gpus = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    for_memory = ray_utils.get_system_memory() // WORKER_BYTES
    room = num_gpus / (config.gpus_per_worker or 1) if num_gpus else min(os.cpu_count() or 1, for_memory)
    asked = config.workers_range[1] if config.workers_range else math.inf
    return max(1, math.ceil(min(int(room), asked, num_shards)))


def _files(config: RunConfig) -> list[str]:
    """Files of this machine that the settings name."""
    named = [config.weights, config.labels]
    return [path for path in named if path is not None and "://" not in path]


def _count(written: str) -> float:
    counted = COUNTED.fullmatch(written)
    if not counted:
        return math.inf
    ends = [part.split("-") for part in counted[1].split(",")]
    return sum(max(1, int(one[-1]) - int(one[0]) + 1) for one in ends)
