"""The driver: the only scheduling loop. Actors render shards one at a time; retries belong to the driver.

An actor's device goes on with the next shard while the pictures of the last one are saved and committed; what it has of
two shards then, it is not given a third.

Ray keeps processes and nodes; it restarts nothing here. A shard gets three attempts, then quarantine; what machines and
stores do is not charged to it. The run goes on and ends with the list. Commits decide what counts, so a shard may be
rendered twice but is never in the results twice.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import statistics
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from cluster import fleet, storage
from cluster.actor import RenderActor
from cluster.context import Place, RunContext, ShardReport
from cluster.fleet import Workers
from cluster.lease import Lease
from cluster.metrics import Metrics
from cluster.run import Run, RunInfo, new_attempt
from cluster.storage import LocalStore
from dgn.discriminator import FrozenWeights
from dgn.errors import DgnError, ShardFailed, StoreError, in_one_line
from dgn.memory import WORKER_ENVIRONMENT
from dgn.replay import is_out_of_memory

log = logging.getLogger("dgn")

MAX_ATTEMPTS = 3
MAX_LOSSES = 20  # of one shard to machines and stores, which are not charged; then it is suspected all the same
MAX_STORE_FAILURES = 10  # in a row: then the store is ill for everybody
MAX_STARTS = 3  # rounds in which every actor died before it was ready: something is wrong with all of them
START_PAUSE_S = 2.0  # after an actor that did not start, times such rounds
START_PATIENCE_S = 1800.0  # with MAX_STARTS failed starts and none that was well, where others are still to come
START_DEADLINE_S = 1800.0  # to become ready, the wait for a machine included; then another is asked for in its place
STORE_PAUSE_S = 30.0  # before the next actor, after one whose store failed: it may come to the same ill machine
JUDGE_S = 30.0  # between two looks at a store that fails for workers
NOTES_S = 20.0  # for the last notes to be written
PULSE_S = 20.0  # between two looks whether the work on a shard goes on
SILENCE_S = 600.0  # without a step of it (an update, a picture, a retry of the store): it hangs
STRAGGLER_FACTOR = 2.0
POLL_S = 1.0
WAITING_S = 60.0  # between two words that no worker is to be had

NOWHERE = Place("", "", "")  # of an actor that is not ready yet
OF_THE_MACHINE = ("machine", "preempted")
NOT_CHARGED = (*OF_THE_MACHINE, "storage", "worker")  # causes of a failed attempt that say nothing of its shard


@dataclass
class Progress:
    """How far a run is; given to the observer after every change."""

    run_id: str
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


@dataclass(eq=False)
class _Worker:
    """One actor. `place` is known once it is ready."""

    handle: Any
    asked_at: float
    place: Place = NOWHERE
    tasks: list[_Task] = field(default_factory=list)  # under way: one rendered and one being rendered, or two rendered
    is_retired: bool = False  # gets no more shards
    busy_s: float = 0.0  # of its device, as last reported
    span_s: float = 0.0


@dataclass(eq=False)
class _Task:
    """One attempt at one shard on one actor. `is_leaving`: its machine is, and the shard waits for another."""

    shard: int
    attempt: str
    worker: _Worker
    started_at: float
    reference: Any  # of the answer that is awaited: that it is rendered, then its report
    is_rendered: bool = False
    is_leaving: bool = False
    steps: int = -1  # of work, as its actor counts them; not asked yet
    asked_at: float = field(init=False)
    worked_at: float = field(init=False)  # when they last changed
    pulse: Any = None  # the answer that is awaited

    def __post_init__(self) -> None:
        self.asked_at = self.worked_at = self.started_at


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
        self.run, self.context, self.workers, self.observe = run, context, workers, observe
        options: dict[str, Any] = {"num_gpus": workers.gpus_each, "num_cpus": workers.cpus_each}
        options |= {"max_restarts": 0, "max_task_retries": 0, "concurrency_groups": {"pulse": 1, "finish": 1}}
        options["runtime_env"] = {"env_vars": WORKER_ENVIRONMENT}
        self.remote_class: Any = ray.remote(**options)(actor_class)
        self.arguments = [ray.put(part) for part in (context, weights, decoder)]
        self.committed = run.committed(info.num_shards)
        self.missing: Iterator[int] = self.committed.missing()
        self.queue: deque[int] = deque()
        self.later: deque[int] = deque()  # what stores have failed: last, so that one ill machine cannot use it up
        self.charged: Counter[int] = Counter()
        self.losses: Counter[int] = Counter()
        self.tasks: dict[Any, _Task] = {}
        self.starting: dict[Any, _Worker] = {}
        self.idle: list[_Worker] = []
        self.failed_rounds = 0
        self.failed_starts: list[float] = []  # when, since a worker was last ready
        self.next_start_at = 0.0
        self.store_failures = 0
        self.judged_at = -math.inf
        self.last_ready_at = time.monotonic()
        self.recent_s: dict[tuple[str, str], deque[float]] = {}  # per picture, by mode and layer
        self.busy_s = self.span_s = 0.0  # of all workers' devices
        self.metrics = Metrics(info.run_id)
        # Lease and notes are for people: a store that is away must not hold up the scheduling, nor the end of a run.
        self.hurried = Run(run.store.impatient())
        self.notes = ThreadPoolExecutor(1, "notes")
        self.unwritten: list[Future[None]] = []
        self.progress = Progress(info.run_id, info.num_targets, info.num_shards, shards_done=self.committed.count)
        self.progress.pictures_done = self.progress.pictures_before = self._targets_committed()

    def _targets_committed(self) -> int:
        plan = self.context.plan
        if self.committed.count == plan.num_shards:
            return plan.num_targets
        return sum(len(plan.shard(i)) for i in range(plan.num_shards) if i in self.committed)

    def _about(self, **more: Any) -> dict[str, Any]:
        return {"run": self.context.run_id, **more}

    def loop(self) -> Progress:
        """Returns the final progress, quarantined shards included.

        Raises: ShardFailed where no worker starts, or the store can no longer be used; the same line goes on.
        """
        self.observe(self.progress)
        storage.retry_observers.append(self.metrics.note_storage_retry)
        looked_at = 0.0
        try:
            with Lease(self.hurried.store):
                while self._feed():
                    for reference in self._wait():
                        if reference in self.starting:
                            self._note_started(reference)
                        elif reference in self.tasks:  # not ended with its worker just now
                            self._note_answer(reference)
                    if time.monotonic() - looked_at > POLL_S:
                        looked_at = time.monotonic()
                        self._take_pulses()
                        self._enforce_deadlines()
                        self._leave_draining_machines()
                        self._take_in_new_machines()
                        self._report()
                    self.observe(self.progress)
                self._end()
                self._reconcile()
                if self.span_s:
                    log.info(
                        "devices were busy %.1f %% of the time", 100 * self.busy_s / self.span_s, extra=self._about()
                    )
        except StoreError as error:
            raise ShardFailed(f"{error}; {self._safe()}") from error
        finally:
            self._end()
            storage.retry_observers.remove(self.metrics.note_storage_retry)
        return self.progress

    def _end(self) -> None:
        """Ends all workers and gives the last notes a little time."""
        for worker in [*self.idle, *self.starting.values(), *(task.worker for task in self.tasks.values())]:
            self._kill(worker)
        self.idle.clear()
        self.starting.clear()
        self.tasks.clear()
        self.progress.workers_ready = 0
        wait_for(self.unwritten, NOTES_S)
        self.unwritten.clear()  # what is cancelled now would be waited for in vain
        self.notes.shutdown(wait=False, cancel_futures=True)
        self._report()

    def _safe(self) -> str:
        done = f"{self.progress.pictures_done} of {self.progress.num_targets} pictures are safe"
        return f"{done}, the same line goes on when the store is well again"

    def _wait(self) -> list[Any]:
        """What has ended: as soon as anything has, then whatever else has by then."""
        under_way = [*self.tasks, *self.starting]
        if not under_way:
            time.sleep(POLL_S)  # a pause after actors that did not start
            return []
        done, _ = ray.wait(under_way, timeout=POLL_S)
        if done and len(under_way) > 1:
            done, _ = ray.wait(under_way, num_returns=len(under_way), timeout=0)
        return done

    def _reconcile(self) -> None:
        """What counts is what the store holds, not what workers say. Raises: ShardFailed."""
        seen = self.run.committed(self.committed.num_shards)
        lost = [shard for shard in seen.missing() if shard in self.committed]
        self.committed = seen
        self.progress.quarantined = [shard for shard in self.progress.quarantined if shard not in seen]
        self.progress.shards_done, self.progress.pictures_done = seen.count, self._targets_committed()
        if lost:
            raise ShardFailed(
                f"{len(lost)} shards were rendered but are not in {self.run.store.url}: do all workers share it?"
            )

    def _next_shard(self) -> int | None:
        """The next shard to attempt, None when nothing is left to begin. Fresh ones are looked up one at a time."""
        while True:
            if not self.queue:
                self.queue.extend(itertools.islice(self.missing, 1))
            if not self.queue and not self.later:
                return None
            shard = (self.queue or self.later).popleft()
            if shard not in self.committed and shard not in self.progress.quarantined:
                return shard

    def _feed(self) -> bool:
        """Gives shards to idle workers, asks for workers while there is work, gives them back when there is none.

        Returns: False when all is done.
        """
        while self.idle and (shard := self._next_shard()) is not None:
            self._begin(shard, self.idle.pop())
        for task in self._stragglers() if self.idle else []:
            if others := [worker for worker in self.idle if worker is not task.worker]:
                log.info("shard %06d is slow: it begins a second time", task.shard, extra=self._about(shard=task.shard))
                self.idle.remove(others[-1])
                self._begin(task.shard, others[-1])
        num_waiting, num_running = self._num_waiting_and_running()
        num_busy = len({task.worker for task in self.tasks.values() if not task.is_leaving}.difference(self.idle))
        if time.monotonic() >= self.next_start_at:
            num_alive = len(self.idle) + len(self.starting) + num_busy
            for _ in range(min(num_waiting - len(self.starting), self.workers.at_most - num_alive)):
                worker = _Worker(self._spawn(), time.monotonic())
                self.starting[worker.handle.ready.remote()] = worker
        num_kept = num_waiting + max(self.workers.at_least - num_busy, 1)  # one spare, for a straggler or a loss
        for reference in list(self.starting)[max(0, num_kept - len(self.idle)) :]:
            self._kill(self.starting.pop(reference))  # withdraws the request from an autoscaler
        for worker in [worker for worker in self.idle[num_kept:] if not worker.tasks]:
            self._dismiss(worker)
        return num_running > 0 or num_waiting > 0

    def _num_waiting_and_running(self) -> tuple[int, int]:
        """Shards. What runs on a leaving machine only, waits."""
        running = {task.shard for task in self.tasks.values() if not task.is_leaving}
        num_running = sum(shard not in self.committed for shard in running)
        num_over = self.committed.count + len(self.progress.quarantined)
        return self.committed.num_shards - num_over - num_running, num_running

    def _spawn(self) -> Any:
        return self.remote_class.remote(*self.arguments)

    def _begin(self, shard: int, worker: _Worker) -> None:
        attempt = new_attempt()
        task = _Task(shard, attempt, worker, time.monotonic(), worker.handle.render.remote(shard, attempt))
        self.tasks[task.reference] = task
        worker.tasks.append(task)

    def _stragglers(self) -> list[_Task]:
        """At the tail: shards that take far longer than others and have one attempt under way, the slowest first;
        commits make it safe to begin them again."""
        running = Counter(task.shard for task in self.tasks.values())
        now = time.monotonic()
        slow = [
            task
            for task in self.tasks.values()
            if running[task.shard] == 1
            and not task.is_leaving
            and task.shard not in self.committed
            and now - task.started_at > STRAGGLER_FACTOR * self._expected_s(task.shard)
        ]
        return sorted(slow, key=lambda task: task.started_at)

    def _note_started(self, reference: Any) -> None:
        worker = self.starting.pop(reference)
        try:
            worker.place = ray.get(reference)
        except RayError as error:
            self._kill(worker)
            cause = self._cause(error, worker)
            log.warning("a worker did not start (%s): %s", cause, in_one_line(error), extra=self._about(cause=cause))
            self._judge_starts(error)
            self.next_start_at = time.monotonic() + START_PAUSE_S * (1 + self.failed_rounds)
            return
        self.failed_rounds = 0
        self.failed_starts.clear()
        log.info(
            "worker ready on %s, %s", worker.place.host, worker.place.device, extra=self._about(**vars(worker.place))
        )
        self.idle.append(worker)
        self.progress.workers_ready += 1

    def _judge_starts(self, error: RayError) -> None:
        """Ends a run for which no worker can start. One whose machine dies meanwhile says little, others may follow.

        Raises: ShardFailed, or DgnError where the run's folder is not shared.
        """
        now = time.monotonic()
        self.failed_starts.append(now)
        if self.idle or self.tasks:
            return
        cause = getattr(error, "cause", None)
        if isinstance(cause, StoreError) and isinstance(self.run.store, LocalStore):
            raise DgnError(str(cause)) from error
        has_died = isinstance(error, ActorDiedError | ActorUnavailableError) and not error.actor_init_failed
        if not self.starting and not has_died:
            self.failed_rounds += 1
        tries = len(self.failed_starts)
        is_long = tries >= MAX_STARTS and now - self.failed_starts[0] > START_PATIENCE_S
        if self.failed_rounds >= MAX_STARTS or is_long:
            raise ShardFailed(f"no worker starts, tried {tries} times: {in_one_line(error)}") from error

    def _note_answer(self, reference: Any) -> None:
        """A shard is rendered, or committed, or its worker has failed."""
        task = self.tasks.pop(reference)
        try:
            report: ShardReport | None = ray.get(reference)
        except RayTaskError as error:  # raised: a new worker all the same, in case its device is ill
            task.worker.tasks.remove(task)
            self._retire(task.worker)
            self._note_failure(task, error, self._cause(error, task.worker))
            return
        except RayError as error:  # died, unavailable, out of memory
            self._lose(task.worker, error, self._cause(error, task.worker))
            return
        if report is None:
            task.is_rendered = True
            task.reference = task.worker.handle.finish.remote(task.attempt)
            self.tasks[task.reference] = task
        else:
            task.worker.tasks.remove(task)
            shard = self.context.plan.shard(report.shard)
            recent = self.recent_s.setdefault((shard.block.mode, shard.block.layer), deque(maxlen=50))
            recent.append(report.seconds / len(shard))
            self._count_device_time(report, task.worker)
            self._note_committed(report, task.worker.place)
        left = task.worker.tasks
        if task.worker.is_retired:
            self._retire(task.worker)
        elif len(left) < 2 and all(task.is_rendered for task in left) and task.worker not in self.idle:
            self.idle.append(task.worker)

    def _lose(self, worker: _Worker, error: BaseException, cause: str) -> None:
        """Ends a worker that has died or fallen silent. Of its shards the one that is being rendered is charged, which
        takes the device and nearly all of the time; the one that is being saved is lost with it."""
        first, *others = sorted(worker.tasks, key=lambda task: task.is_rendered)
        for task in worker.tasks:
            self.tasks.pop(task.reference, None)
        worker.tasks.clear()
        self._dismiss(worker)
        self._note_failure(first, error, cause)
        for task in others:
            beside = DgnError(f"lost with its worker, which was at shard {first.shard:06d}: {in_one_line(error)}")
            self._note_failure(task, beside, cause if cause in OF_THE_MACHINE else "worker")

    def _cause(self, error: RayError, worker: _Worker) -> str:
        """Of a failed attempt, as the metrics and the rules name it."""
        cause = getattr(error, "cause", None) or error
        if getattr(error, "preempted", False) or worker.place.node in fleet.leaving():
            return "preempted"
        if isinstance(error, ActorUnavailableError) or (worker.place.node and fleet.is_gone(worker.place.node)):
            return "machine"
        if isinstance(error, OutOfMemoryError) or is_out_of_memory(cause):
            return "memory"
        return "storage" if isinstance(cause, StoreError) else "error"

    def _note_committed(self, report: ShardReport, place: Place) -> None:
        self.store_failures = 0
        if report.shard in self.committed:
            return
        self.committed.add(report.shard)
        if report.shard in self.progress.quarantined:  # an attempt on a leaving machine has made it after all
            self.progress.quarantined.remove(report.shard)
        self.progress.shards_done += 1
        self.progress.pictures_done += report.num_pictures
        block = self.context.plan.shard(report.shard).block
        for status, count in report.statuses.items():
            self.progress.statuses[status] = self.progress.statuses.get(status, 0) + count
            self.metrics.pictures_done.inc(count, {"mode": block.mode, "layer": block.layer, "status": status})
        log.info(
            "shard %06d done: %d pictures in %.1f s", report.shard, report.num_pictures, report.seconds,
            extra=self._about(shard=report.shard, node=place.node, host=place.host),
        )  # fmt: skip

    def _note_failure(self, task: _Task, error: BaseException, cause: str) -> None:
        details = {
            "traceback": "".join(traceback.format_exception(error)),
            "seconds": time.monotonic() - task.started_at,
            "cause": cause,
            "host": task.worker.place.host,
        }
        about = self._about(shard=task.shard, attempt=task.attempt, node=task.worker.place.node, cause=cause)
        self.metrics.attempts_failed.inc(tags={"cause": cause})
        self.unwritten = [note for note in self.unwritten if not note.done()]
        self.unwritten.append(self.notes.submit(self._write_note, task, in_one_line(error), details))
        if cause == "storage":
            self._judge_store(error)
        if task.is_leaving or task.shard in self.committed or task.shard in self.progress.quarantined:
            return
        if self._runs_elsewhere(task.shard):
            return
        (self.losses if cause in NOT_CHARGED else self.charged)[task.shard] += 1
        if self.charged[task.shard] >= MAX_ATTEMPTS or self.losses[task.shard] >= MAX_LOSSES:
            self.progress.quarantined.append(task.shard)
            tries = self.charged[task.shard] + self.losses[task.shard]
            log.error(
                "shard %06d failed %d times: quarantined (%s)", task.shard, tries, in_one_line(error), extra=about
            )
            return
        self.progress.retries += 1
        (self.later if cause == "storage" else self.queue).append(task.shard)
        log.warning("shard %06d will be tried again (%s): %s", task.shard, cause, in_one_line(error), extra=about)

    def _runs_elsewhere(self, shard: int) -> bool:
        """Whether a shard is under way on a machine that stays."""
        return any(task.shard == shard and not task.is_leaving for task in self.tasks.values())

    def _write_note(self, task: _Task, error: str, details: dict[str, Any]) -> None:
        try:
            self.hurried.note_failure(task.shard, task.attempt, error, details)
        except DgnError as unwritten:  # the note is for people; whatever ails the store, the shard is attempted again
            log.warning("the failure of shard %06d could not be noted: %s", task.shard, in_one_line(unwritten))

    def _judge_store(self, error: BaseException) -> None:
        """A worker's store failed for good. Raises: ShardFailed where it is not that worker's alone."""
        self.store_failures += 1
        self.next_start_at = time.monotonic() + STORE_PAUSE_S
        reason = in_one_line(error) if self.store_failures >= MAX_STORE_FAILURES else None
        if time.monotonic() - self.judged_at > JUDGE_S:
            self.judged_at = time.monotonic()
            try:
                self.run.store.check(must_write=True)
            except StoreError as ours:
                reason = str(ours)
        if reason:
            raise ShardFailed(f"{reason}; {self._safe()}") from error

    def _expected_s(self, index: int) -> float:
        """How long a shard should take, by others of its mode and layer; for ever where none has finished yet."""
        shard = self.context.plan.shard(index)
        recent = self.recent_s.get((shard.block.mode, shard.block.layer))
        return statistics.median(recent) * len(shard) if recent else math.inf

    def _take_pulses(self) -> None:
        """Asks workers now and then how many steps they have made. What a shard may take depends on device, layer and
        store; that it goes on does not."""
        now = time.monotonic()
        for task in self.tasks.values():
            if task.pulse is None and now - task.asked_at > PULSE_S:
                task.pulse, task.asked_at = task.worker.handle.pulse.remote(), now
        asked = {task.pulse: task for task in self.tasks.values() if task.pulse is not None}
        answered = ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else []
        for reference in answered:
            task, asked[reference].pulse = asked[reference], None
            with contextlib.suppress(RayError):  # of a worker that has died, whose shard's own answer says so
                steps = ray.get(reference)
                if steps != task.steps:
                    task.steps, task.worked_at = steps, now

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for task in list(self.tasks.values()):
            if task.reference in self.tasks and now - task.worked_at > SILENCE_S:
                self._lose(task.worker, TimeoutError(f"no sign of work for {SILENCE_S:.0f} s"), "deadline")
        for reference, worker in list(self.starting.items()):
            if now - worker.asked_at > START_DEADLINE_S:
                log.warning("a worker was not ready within %.0f s: another is asked for", START_DEADLINE_S)
                self._kill(self.starting.pop(reference))

    def _leave_draining_machines(self) -> None:
        """A spot notice: its machine gets no more shards; those under way may still finish there, and begin elsewhere
        at once. Whichever attempt commits first counts."""
        leaving = fleet.leaving()
        if not leaving:
            return
        for worker in [worker for worker in self.idle if worker.place.node in leaving]:
            self._retire(worker)
        for task in self.tasks.values():
            if task.worker.place.node in leaving and not task.is_leaving:
                task.is_leaving = task.worker.is_retired = True
                over = task.shard in self.committed or task.shard in self.progress.quarantined
                if over or task.shard in self.queue or self._runs_elsewhere(task.shard):
                    continue
                self.queue.appendleft(task.shard)
                log.warning(
                    "%s is leaving: shard %06d begins elsewhere", task.worker.place.host, task.shard,
                    extra=self._about(shard=task.shard, node=task.worker.place.node, cause="preempted"),
                )  # fmt: skip

    def _take_in_new_machines(self) -> None:
        """Where nobody said how many workers, machines that join later get theirs."""
        if not self.workers.is_asked:
            at_most = max(self.workers.at_most, fleet.num_places(self.workers))
            self.workers = replace(self.workers, at_most=at_most, at_least=at_most)

    def _count_device_time(self, report: ShardReport, worker: _Worker) -> None:
        self.busy_s += report.busy_s - worker.busy_s
        self.span_s += report.span_s - worker.span_s
        worker.busy_s, worker.span_s = report.busy_s, report.span_s

    def _report(self) -> None:
        """Gauges, and a word where no worker is to be had."""
        num_waiting, num_running = self._num_waiting_and_running()
        states = {"waiting": num_waiting, "running": num_running, "done": self.committed.count}
        for state, count in {**states, "quarantined": len(self.progress.quarantined)}.items():
            self.metrics.shards.set(count, {"state": state})
        self.metrics.workers.set(len(self.starting), {"state": "starting"})
        self.metrics.workers.set(self.progress.workers_ready, {"state": "ready"})
        if self.span_s:
            self.metrics.busy_share.set(self.busy_s / self.span_s)
        if self.progress.workers_ready or not self.starting:
            self.last_ready_at = time.monotonic()
        elif time.monotonic() - self.last_ready_at > WAITING_S:
            self.last_ready_at = time.monotonic()
            each = f"{self.workers.gpus_each:g} GPU, {self.workers.cpus_each:g} CPU"
            log.warning(
                "no worker yet: %d asked for, each with %s; the cluster has %s", len(self.starting), each,
                {name: count for name, count in ray.cluster_resources().items() if name in ("CPU", "GPU")},
            )  # fmt: skip

    def _retire(self, worker: _Worker) -> None:
        """Ends a worker as soon as it has no shard under way."""
        worker.is_retired = True
        if not worker.tasks:
            self._dismiss(worker)
        elif worker in self.idle:
            self.idle.remove(worker)

    def _dismiss(self, worker: _Worker) -> None:
        """Ends a worker that was ready."""
        if worker in self.idle:
            self.idle.remove(worker)
        self._kill(worker)
        self.progress.workers_ready -= 1

    @staticmethod
    def _kill(worker: _Worker) -> None:
        with contextlib.suppress(RayError, ValueError):
            ray.kill(worker.handle)
