"""What happens to a run (events) and what to do about it (decisions): the language of `schedule.py`.

Plain values. Workers and attempts are numbered by the schedule; the driver knows which Ray actor is which.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


@dataclass(frozen=True)
class Attempt:
    """One try at one shard on one worker."""

    number: int
    shard: int
    worker: int


class Cause(StrEnum):
    """Why an attempt failed, as metrics, notes and rules name it."""

    ERROR = "error"  # an exception in the attempt, or the worker process died over it
    MEMORY = "memory"  # the device or the machine ran out of memory
    DEADLINE = "deadline"  # the shard made no step for a long time
    STORAGE = "storage"  # the worker's store failed for good
    MACHINE = "machine"  # the machine died or fell silent
    PREEMPTED = "preempted"  # the machine was about to be taken away
    WORKER = "worker"  # the worker died over another shard, or together with others


# Causes that say nothing about the shard.
NOT_CHARGED = frozenset({Cause.MACHINE, Cause.PREEMPTED, Cause.STORAGE, Cause.WORKER})
OF_THE_MACHINE = frozenset({Cause.MACHINE, Cause.PREEMPTED})


# Events: what the driver saw.


@dataclass(frozen=True)
class WorkerReady:
    worker: int
    node: str  # Ray's id of its machine


@dataclass(frozen=True)
class StartFailed:
    """A worker died before it was ready.

    Args:
        has_died: with its machine or process, which says little about the next one.
        is_folder_missing: because its machine does not see the run's folder.
    """

    worker: int
    has_died: bool
    is_folder_missing: bool = False


@dataclass(frozen=True)
class ShardRendered:
    """The pictures are made and being saved; the device is free."""

    attempt: Attempt


@dataclass(frozen=True)
class ShardCommitted:
    attempt: Attempt
    seconds: float  # from the shard's start to its commit


@dataclass(frozen=True)
class AttemptFailed:
    """An exception in one attempt; the worker itself still answers."""

    attempt: Attempt
    cause: Cause


@dataclass(frozen=True)
class WorkerLost:
    worker: int
    cause: Cause


@dataclass(frozen=True)
class StepsCounted:
    """A worker's answer to AskSteps; None if it did not answer."""

    attempt: Attempt
    steps: int | None


@dataclass(frozen=True)
class MachinesLeaving:
    """The machines that are being drained now, after a spot notice or by a person."""

    nodes: frozenset[str]


@dataclass(frozen=True)
class PlacesCounted:
    """How many workers the cluster's machines have room for."""

    num_places: int


@dataclass(frozen=True)
class StoreChecked:
    is_usable: bool


@dataclass(frozen=True)
class TimePassed:
    """About a second has passed: time to look after attempts that hang and workers that do not become ready."""


Event = (
    WorkerReady | StartFailed | ShardRendered | ShardCommitted | AttemptFailed | WorkerLost | StepsCounted
    | MachinesLeaving | PlacesCounted | StoreChecked | TimePassed
)  # fmt: skip


# Decisions: what the driver carries out.

Follows = Literal["nothing", "retry", "quarantine"]


@dataclass(frozen=True)
class StartWorker:
    worker: int


@dataclass(frozen=True)
class EndWorker:
    worker: int
    is_late: bool = False  # it did not become ready in time


@dataclass(frozen=True)
class RenderShard:
    attempt: Attempt
    is_straggler: bool = False  # another attempt at the shard is slow


@dataclass(frozen=True)
class FinishShard:
    """The worker is to commit a shard that it has rendered."""

    attempt: Attempt


@dataclass(frozen=True)
class AskSteps:
    attempt: Attempt


@dataclass(frozen=True)
class NoteDone:
    """A shard is whole, by this attempt."""

    attempt: Attempt


@dataclass(frozen=True)
class NoteFailure:
    """An attempt has failed. What follows from it for its shard: nothing, another try, or quarantine."""

    attempt: Attempt
    cause: Cause
    follows: Follows
    num_failures: int  # of this shard so far
    beside: int | None = None  # the shard that the worker was rendering when it was lost with both


@dataclass(frozen=True)
class MoveShard:
    """A shard on a leaving machine is to begin elsewhere."""

    attempt: Attempt


@dataclass(frozen=True)
class CheckStore:
    """The driver is to try the store itself, and answer with StoreChecked."""


@dataclass(frozen=True)
class EndRun:
    """The run cannot continue: no worker starts, the folder is not shared, or the store is unusable.

    Args:
        failure: the worker that did not start or the attempt that failed; None for the driver's own look at the store.
    """

    reason: Literal["starts", "folder", "store"]
    num_tries: int
    failure: int | Attempt | None = None


Decision = (
    StartWorker | EndWorker | RenderShard | FinishShard | AskSteps | NoteDone | NoteFailure | MoveShard | CheckStore
    | EndRun
)  # fmt: skip
