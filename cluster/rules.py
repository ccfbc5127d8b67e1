"""The numbers behind the schedule's decisions."""

from __future__ import annotations

from dataclasses import dataclass

WORKER_BYTES = 1.2e9  # of a worker, without its network's weights; measured, docs/performance.md


@dataclass(frozen=True)
class Workers:
    """How many workers a run may hold, and what each holds of its machine."""

    at_most: int
    gpus_each: float
    cpus_each: float
    at_least: int = 1  # when work is scarce, all but these and one spare are given back
    is_asked: bool = True  # a person set the number; otherwise it follows the machines


@dataclass(frozen=True)
class Rules:
    """When to wait, to ask, to try again, and to give up."""

    max_charges: int = 3  # failures charged to a shard, after which it is quarantined
    max_uncharged: int = 20  # other failures of a shard, after which it is quarantined too
    together_s: float = 2.0  # after a charged failure, in which the death of an older worker has the same cause
    max_store_failures: int = 10  # in a row, after which the store counts as unusable
    store_check_s: float = 30.0  # between the driver's checks of a store that fails for workers
    store_pause_s: float = 30.0  # before a worker is replaced, because the next one may get the same faulty machine
    max_start_rounds: int = 3  # rounds in which every worker died before it was ready
    start_pause_s: float = 2.0  # after a failed start, times the number of such rounds
    start_patience_s: float = 1800.0  # after as many failed starts and no success, while others may still come
    start_deadline_s: float = 1800.0  # for a worker to become ready, including the wait for a machine
    pulse_s: float = 20.0  # between questions whether the work on a shard advances
    silence_s: float = 600.0  # without a step (an update, a picture, a retry of the store), after which a shard hangs
    straggler_factor: float = 2.0  # times the usual time of its kind, after which a shard is rendered a second time
