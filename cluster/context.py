"""What driver and actors tell each other. Without torch, which half of them can do without."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray

from cluster.plan import Plan
from dgn.recipes import RenderConfig

if TYPE_CHECKING:
    from dgn.tuning import Tuned


@dataclass(frozen=True)
class RunContext:
    """What every actor of a run is given once, small enough to be pickled to each."""

    url: str
    run_id: str
    plan: Plan
    render: RenderConfig
    fingerprint: dict[str, Any]
    batch_size: int | None  # None: as tuned, or chosen from the device's memory
    tuned: Mapping[str, Tuned] = field(default_factory=dict)  # by device model


@dataclass(frozen=True)
class ShardReport:
    """What an actor tells the driver about a shard that it finished. `won`: this attempt is the one committed.

    `busy_s` of `span_s`, from the worker's first shard to this one's last picture, its device was at work.
    """

    shard: int
    num_pictures: int
    statuses: dict[str, int]
    seconds: float  # from the shard's beginning to its commit
    won: bool
    busy_s: float = 0.0
    span_s: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where an actor lives. `node`: Ray's id of the machine."""

    node: str
    host: str
    device: str

    @classmethod
    def here(cls, device: str) -> Place:
        return cls(ray.get_runtime_context().get_node_id(), platform.node(), device)
