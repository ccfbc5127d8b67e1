"""The driver: the only scheduling loop. Actors are given shards one at a time; retries belong to the driver.

Ray keeps processes and nodes; it restarts nothing here. A shard gets three attempts, then quarantine; the run goes on
and ends with the list. Commits decide what counts, so a shard may be rendered twice but is never in the results twice.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import statistics
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError

from cluster.actor import RenderActor, RunContext, ShardReport
from cluster.run import Run, RunInfo, new_attempt
from dgn.discriminator import FrozenWeights
from dgn.errors import DgnError, ShardFailed, in_one_line

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
MAX_STARTS = 3  # actors in a row that die before they are ready: then something is wrong with all of them
FIRST_DEADLINE_S = 4 * 3600.0  # until a shard has finished and tells how long one takes
DEADLINE_FACTOR = 10.0
MIN_DEADLINE_S = 600.0
STRAGGLER_FACTOR = 2.0
POLL_S = 1.0
OLD_GPUS = ("K80", "P4", "P100", "V100", "T4")


@dataclass(frozen=True)
class Workers:
    """What the cluster's actors are: how many, and what each holds."""

    num: int
    gpus_each: float
    cpus_each: float


@dataclass
class Progress:
    """How far a run is; given to the observer after every change."""

    num_targets: int
    num_shards: int
    pictures_done: int = 0
    shards_done: int = 0
    pictures_before: int = 0  # made by earlier drivers
    statuses: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    workers_ready: int = 0
    quarantined: list[int] = field(default_factory=list)
    started_at: float = field(default_factory=time.monotonic)

    @property
    def pictures_per_minute(self) -> float:
        return 60 * (self.pictures_done - self.pictures_before) / max(time.monotonic() - self.started_at, 1e-9)


@dataclass
class _Task:
    """One attempt at one shard on one actor."""

    shard: int
    attempt: str
    worker: _Worker
    started_at: float


@dataclass(eq=False)
class _Worker:
    handle: Any


def connect() -> None:
    """Joins the cluster that RAY_ADDRESS or the job names, or starts Ray on this machine, on loopback."""
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(address="auto", logging_level=logging.WARNING)
        except (ConnectionError, RayError, RuntimeError) as error:
            address = os.environ["RAY_ADDRESS"]
            raise DgnError(
                f"no Ray cluster at RAY_ADDRESS={address}: {in_one_line(error)}; mend or unset it"
            ) from error
    else:
        ray.init(
            include_dashboard=False,
            logging_level=logging.WARNING,
            configure_logging=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",  # Ray's default is an address that other machines reach
        )


def choose_workers(num: int | None, gpus_each: float | None) -> Workers:
    """Workers for the cluster at hand: one per GPU, or one that has all CPUs where there is no GPU.

    Raises: DgnError where more is asked of GPUs than there are.
    """
    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0.0)
    if gpus_each is None:
        gpus_each = 1.0 if gpus else 0.0
    if gpus_each and not gpus:
        raise DgnError(f"--gpus-per-worker {gpus_each:g}: the cluster has no GPU; leave it out to render on CPUs")
    largest = max((node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    if gpus_each > largest:
        raise DgnError(f"--gpus-per-worker {gpus_each:g}: no machine of the cluster has more than {largest:g} GPUs")
    num = num or (max(1, int(gpus / gpus_each)) if gpus_each else 1)
    cpus = max((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=1.0)
    return Workers(num, gpus_each, 1.0 if gpus_each else max(1.0, cpus // num))


def has_old_gpus() -> bool:
    """Whether a machine's GPU does not multiply bfloat16 in hardware (before Ampere), as Ray names its model."""
    models = [name for name in ray.cluster_resources() if name.startswith("accelerator_type:")]
    return any(name.removeprefix("accelerator_type:") in OLD_GPUS for name in models)


class Driver:
    """One run's scheduling: `Driver(...).loop()` renders every shard that is not committed yet."""

    def __init__(
        self,
        run: Run,
        info: RunInfo,
        context: RunContext,
        weights: FrozenWeights,
        decoder: dict[str, Any] | None,
        workers: Workers,
        observe: Callable[[Progress], None] = lambda progress: None,
        actor_class: type = RenderActor,
    ):
        self.run, self.context, self.observe = run, context, observe
        self.num_workers = workers.num
        self.remote_class: Any = ray.remote(
            num_gpus=workers.gpus_each, num_cpus=workers.cpus_each, max_restarts=0, max_task_retries=0
        )(actor_class)
        self.arguments = [ray.put(part) for part in (context, weights, decoder)]
        self.committed = run.committed(info.num_shards)
        self.missing: Iterator[int] = self.committed.missing()
        self.queue: deque[int] = deque()
        self.charged: dict[int, int] = {}
        self.tasks: dict[Any, _Task] = {}
        self.starting: dict[Any, _Worker] = {}
        self.idle: list[_Worker] = []
        self.failed_starts = 0
        self.recent_s: dict[tuple[str, str], deque[float]] = {}  # per picture, by mode and layer
        self.progress = Progress(info.num_targets, info.num_shards, shards_done=self.committed.count)
        before = info.num_targets if self.committed.count == info.num_shards else self._targets_committed()
        self.progress.pictures_done = self.progress.pictures_before = before

    def _targets_committed(self) -> int:
        plan = self.context.plan
        return sum(len(plan.shard(i)) for i in range(plan.num_shards) if i in self.committed)

    def loop(self) -> Progress:
        """Returns the final progress, quarantined shards included."""
        self.observe(self.progress)
        try:
            while self._feed():
                waiting = [*self.tasks, *self.starting]
                done, _ = ray.wait(waiting, num_returns=1, timeout=POLL_S)
                for reference in done:
                    if reference in self.starting:
                        self._note_started(reference)
                    else:
                        self._note_finished(reference)
                self._enforce_deadlines()
                self.observe(self.progress)
        finally:
            for worker in [*self.idle, *self.starting.values(), *(task.worker for task in self.tasks.values())]:
                self._kill(worker)
        self._reconcile()
        return self.progress

    def _reconcile(self) -> None:
        """What counts is what the store holds, not what workers say. Raises: ShardFailed."""
        seen = self.run.committed(self.committed.num_shards)
        self.progress.quarantined = [shard for shard in self.progress.quarantined if shard not in seen]
        lost = [shard for shard in seen.missing() if shard in self.committed]
        if lost:
            raise ShardFailed(
                f"{len(lost)} shards were rendered but are not in {self.run.store.url}: do all workers share it?"
            )

    def _next_shard(self) -> int | None:
        """The next shard to attempt, None when nothing is left to begin. Fresh ones are looked up one at a time."""
        while True:
            if not self.queue:
                self.queue.extend(itertools.islice(self.missing, 1))
            if not self.queue:
                return None
            shard = self.queue.popleft()
            if shard not in self.committed:
                return shard

    def _feed(self) -> bool:
        """Gives shards to idle workers and starts workers where there is more work. False when all is done."""
        while self.idle:
            shard = self._next_shard()
            if shard is None:
                shard = self._straggler()
            if shard is None:
                break
            self._begin(shard, self.idle.pop())
        in_work = {task.shard for task in self.tasks.values() if task.shard not in self.committed}
        num_left = self.committed.num_shards - self.committed.count - len(self.progress.quarantined) - len(in_work)
        num_alive = len(self.idle) + len(self.starting) + len(self.tasks)
        for _ in range(min(num_left - len(self.starting), self.num_workers - num_alive)):
            handle = self.remote_class.remote(*self.arguments)
            self.starting[handle.ready.remote()] = _Worker(handle)
        return bool(in_work) or num_left > 0

    def _begin(self, shard: int, worker: _Worker) -> None:
        attempt = new_attempt()
        reference = worker.handle.render.remote(shard, attempt)
        self.tasks[reference] = _Task(shard, attempt, worker, time.monotonic())

    def _straggler(self) -> int | None:
        """At the tail: a shard that runs far longer than others and has one attempt under way; commits make it safe."""
        running = [task.shard for task in self.tasks.values()]
        slow = [
            task
            for task in self.tasks.values()
            if running.count(task.shard) == 1
            and task.shard not in self.committed
            and time.monotonic() - task.started_at > STRAGGLER_FACTOR * self._expected_s(task.shard, math.inf)
        ]
        return min(slow, key=lambda task: task.started_at).shard if slow else None

    def _note_started(self, reference: Any) -> None:
        worker = self.starting.pop(reference)
        try:
            device = ray.get(reference)
        except RayError as error:
            self._kill(worker)
            self.failed_starts += 1
            log.warning("a worker did not start: %s", in_one_line(error))
            if self.failed_starts >= MAX_STARTS:
                raise ShardFailed(f"{MAX_STARTS} workers in a row did not start: {in_one_line(error)}") from error
            return
        self.failed_starts = 0
        log.info("worker ready on %s", device)
        self.idle.append(worker)
        self.progress.workers_ready += 1

    def _note_finished(self, reference: Any) -> None:
        task = self.tasks.pop(reference)
        try:
            report: ShardReport = ray.get(reference)
        except RayError as error:  # raised, died, unavailable, out of memory: a new worker, in case its device is ill
            self._kill(task.worker)
            self.progress.workers_ready -= 1
            is_preempted = isinstance(error, ActorDiedError) and getattr(error, "preempted", False)
            self._note_failure(task, error, is_charged=not is_preempted)
        else:
            self.idle.append(task.worker)
            shard = self.context.plan.shard(report.shard)
            recent = self.recent_s.setdefault((shard.block.mode, shard.block.layer), deque(maxlen=50))
            recent.append(report.seconds / len(shard))
            self._note_committed(report)

    def _note_committed(self, report: ShardReport) -> None:
        if report.shard in self.committed:
            return
        self.committed.add(report.shard)
        self.progress.shards_done += 1
        self.progress.pictures_done += report.num_pictures
        for status, count in report.statuses.items():
            self.progress.statuses[status] = self.progress.statuses.get(status, 0) + count
        log.info("shard %06d done: %d pictures in %.1f s", report.shard, report.num_pictures, report.seconds)

    def _note_failure(self, task: _Task, error: BaseException, is_charged: bool) -> None:
        details = {
            "traceback": "".join(traceback.format_exception(error)),
            "seconds": time.monotonic() - task.started_at,
        }
        try:
            self.run.note_failure(task.shard, task.attempt, in_one_line(error), details)
        except Exception as unwritten:  # the note is for people; whatever ails the store, the shard is attempted again
            log.warning("the failure of shard %06d could not be noted: %s", task.shard, in_one_line(unwritten))
        if task.shard in self.committed or any(other.shard == task.shard for other in self.tasks.values()):
            return
        if is_charged:
            self.charged[task.shard] = self.charged.get(task.shard, 0) + 1
        if self.charged.get(task.shard, 0) >= MAX_ATTEMPTS:
            self.progress.quarantined.append(task.shard)
            log.error("shard %06d failed %d times: quarantined (%s)", task.shard, MAX_ATTEMPTS, in_one_line(error))
            return
        self.progress.retries += 1
        self.queue.append(task.shard)
        log.warning("shard %06d failed and will be tried again: %s", task.shard, in_one_line(error))

    def _expected_s(self, index: int, unknown: float) -> float:
        """How long a shard should take, by others of its mode and layer; `unknown` where none has finished yet."""
        shard = self.context.plan.shard(index)
        recent = self.recent_s.get((shard.block.mode, shard.block.layer))
        return statistics.median(recent) * len(shard) if recent else unknown

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for reference, task in list(self.tasks.items()):
            expected = self._expected_s(task.shard, FIRST_DEADLINE_S / DEADLINE_FACTOR)
            limit = max(MIN_DEADLINE_S, DEADLINE_FACTOR * expected)
            if now - task.started_at > limit:
                del self.tasks[reference]
                self._kill(task.worker)
                self.progress.workers_ready -= 1
                self._note_failure(task, TimeoutError(f"no answer within {limit:.0f} s"), is_charged=True)

    @staticmethod
    def _kill(worker: _Worker) -> None:
        with contextlib.suppress(RayError, ValueError):
            ray.kill(worker.handle)
