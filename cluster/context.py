"""What driver and workers send each other."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from dgn.cost.tuned import Tuned
from dgn.method.recipes import RenderConfig
from dgn.runs.photographs import PhotographPlan
from dgn.runs.plan import Plan
from dgn.targets import Target


@dataclass(frozen=True)
class RunContext:
    """What every worker of a run receives once; small enough to be pickled to each."""

    url: str
    run_id: str
    plan: Plan
    render: RenderConfig
    fingerprint: dict[str, Any]
    batch_size: int | None  # None: as tuned, or chosen by the device's memory
    tuned: Mapping[str, Tuned] = field(default_factory=dict)  # by device model
    is_packed: bool = False  # whether pictures go into their shard's file


@dataclass(frozen=True)
class ExamplesContext:
    """What every worker of a job over photographs receives once.

    Args:
        url: of the examples.
        subjects: what a target of the run seeks, each once.
        true_classes: of photographs, by the folder that they lie in.
    """

    url: str
    run_id: str
    plan: PhotographPlan
    subjects: tuple[Target, ...]
    true_classes: Mapping[str, int]


@dataclass(frozen=True)
class ShardReport:
    """What a worker reports about a shard that it finished."""

    shard: int
    num_pictures: int
    statuses: dict[str, int]
    seconds: float  # from the shard's start to its commit
    # Its device was busy for `busy_s` of the `span_s` from the worker's first shard to this one's last picture.
    busy_s: float = 0.0
    span_s: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where a worker lives."""

    node: str  # Ray's id of the machine
    host: str
    device: str
    remark: str = ""  # for people, about how its classifier is run

    @classmethod
    def here(cls, device: str, remark: str = "") -> Place:
        return cls(ray.get_runtime_context().get_node_id(), platform.node(), device, remark)
