"""What driver and actors tell each other. Without torch, which half of them can do without."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import ray

from cluster.plan import Plan
from dgn.recipes import RenderConfig


@dataclass(frozen=True)
class RunContext:
    """What every actor of a run is given once, small enough to be pickled to each."""

    url: str
    run_id: str
    plan: Plan
    render: RenderConfig
    fingerprint: dict[str, Any]
    batch_size: int | None  # None: chosen from the device's memory


@dataclass(frozen=True)
class ShardReport:
    """What an actor tells the driver about a shard that it finished. `won`: this attempt is the one committed."""

    shard: int
    num_pictures: int
    statuses: dict[str, int]
    seconds: float
    won: bool


@dataclass(frozen=True)
class Place:
    """Where an actor lives. `node`: Ray's id of the machine."""

    node: str
    host: str
    device: str

    @classmethod
    def here(cls, device: str) -> Place:
        return cls(ray.get_runtime_context().get_node_id(), platform.node(), device)
