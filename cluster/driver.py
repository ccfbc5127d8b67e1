"""The driver: reports to the schedule what happens to a run's workers, and carries out its decisions.

Ray runs the processes but restarts nothing. All rules are in `schedule.py`. The commits in the store decide what
counts, so a shard may be rendered twice but is never in the results twice.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from dgn.cluster import connection, events, fleet
from dgn.cluster.context import ExamplesContext, Place, RunContext, ShardReport
from dgn.cluster.events import Attempt, Cause, Decision, Event
from dgn.cluster.metrics import Metrics
from dgn.cluster.notes import FailureNotes
from dgn.cluster.progress import Progress
from dgn.cluster.rules import Rules, Workers
from dgn.cluster.schedule import Schedule
from dgn.cluster.vital_signs import VitalSigns
from dgn.cluster.worker import RenderWorker
from dgn.errors import DgnError, Incomplete, StoreError
from dgn.method.memory import is_out_of_memory
from dgn.networks.weights import NetworkWeights
from dgn.runs.decoders import Decoder
from dgn.runs.info import RunInfo
from dgn.runs.layout import new_attempt
from dgn.runs.lease import Lease
from dgn.runs.run import Run
from dgn.runs.stores import LocalStore, retry_observers
from dgn.text import in_one_line, plural

log = logging.getLogger("dgn")

POLL_S = 1.0
WAITING_S = 60.0  # between messages that no worker is ready


@dataclass(eq=False)
class _Actor:
    """A worker's Ray actor. Its place is known once it is ready."""

    handle: Any  # None once it was ended
    place: Place = field(default_factory=lambda: Place("", "", ""))
    busy_s: float = 0.0  # of its device, as last reported
    span_s: float = 0.0


@dataclass(eq=False)
class _Call:
    """A remote call whose answer is awaited: to become ready, or to render or finish an attempt."""

    worker: int
    attempt: Attempt | None = None


class Driver:
    """One run's driver: `Driver(...).loop()` renders every shard that is not committed yet."""

    def __init__(
        self,
        run: Run,
        info: RunInfo,
        context: RunContext | ExamplesContext,
        weights: NetworkWeights,
        decoder: Decoder | None,
        workers: Workers,
        observe: Callable[[Progress], None] = lambda progress: None,
        worker_class: type = RenderWorker,
        rules: Rules | None = None,
    ):
        self.run, self.context, self.observe = run, context, observe
        options: dict[str, Any] = {"num_gpus": workers.gpus_each, "num_cpus": workers.cpus_each}
        options |= {
            "max_restarts": 0,
            "max_task_retries": 0,
            "concurrency_groups": {"pulse": 1, "finish": 1, "life": 1},
        }
        options["runtime_env"] = connection.workers_runtime_env()
        self.remote_class: Any = ray.remote(**options)(worker_class)
        self.arguments = [ray.put(part) for part in (context, weights, decoder)]
        committed = run.committed(info.num_shards)
        self.schedule = Schedule(context.plan, committed, workers, rules)
        self.actors: dict[int, _Actor] = {}
        self.calls: dict[Any, _Call] = {}  # by their answer's reference
        self.vital_signs = VitalSigns()
        # The name in the run, and the start, of each attempt that may still answer.
        self.started: dict[Attempt, tuple[str, float]] = {}
        # The errors behind this round's failures, by worker or attempt; None for the driver's own check of the store.
        self.errors: dict[int | Attempt | None, BaseException] = {}
        self.reports: dict[Attempt, ShardReport] = {}
        self.remarks: set[str] = set()  # of workers, each logged once
        self.last_ready_at = time.monotonic()
        self.busy_s = self.span_s = 0.0  # of all workers' devices
        self.metrics = Metrics(info.run_id)
        # Lease and notes are only read by people, so they do not wait for a store that is away.
        self.hurried = Run(run.store.impatient())
        self.notes = FailureNotes(self.hurried)
        self.progress = Progress(info.run_id, info.num_targets, info.num_shards, shards_done=committed.count)
        self.progress.pictures_done = self.progress.pictures_before = self._targets_committed()

    def loop(self) -> Progress:
        """Returns the final progress, with the quarantined shards.

        Raises: Incomplete if no worker starts or the store is unusable; then repeating the command continues the run.
            DgnError if the run's folder is not shared.
        """
        self.observe(self.progress)
        retry_observers.append(self.metrics.note_storage_retry)
        looked_at = 0.0
        try:
            with Lease(self.hurried.store):
                self._decide([])
                while not self.schedule.is_over:
                    self.errors.clear()
                    self.reports.clear()
                    seen = [event for reference in self._wait() for event in self._answer(reference)]
                    if time.monotonic() - looked_at > POLL_S:
                        looked_at = time.monotonic()
                        seen += self._look_around()
                        self._report()
                    self._decide(seen)
                    called = {call.attempt for call in self.calls.values()}
                    self.started = {attempt: about for attempt, about in self.started.items() if attempt in called}
                    self.observe(self.progress)
                self._end()
                self._reconcile()
                if self.span_s:
                    share = 100 * self.busy_s / self.span_s
                    log.info("devices were busy %.1f %% of the time", share, extra=self._about())
        except StoreError as error:
            raise Incomplete(f"{error}; {self._safe()}") from error
        finally:
            self._end()
            retry_observers.remove(self.metrics.note_storage_retry)
        return self.progress

    # Events: what happened.

    def _wait(self) -> list[Any]:
        """The references of ended calls: waits for one, and adds all others that have ended by then."""
        if not self.calls:
            time.sleep(POLL_S)  # a pause after workers that did not start
            return []
        done, _ = ray.wait(list(self.calls), timeout=POLL_S)
        if done and len(self.calls) > 1:
            done, _ = ray.wait(list(self.calls), num_returns=len(self.calls), timeout=0)
        return done

    def _answer(self, reference: Any) -> list[Event]:
        """The event of an ended call: a worker is ready, has rendered or committed a shard, or has failed."""
        call = self.calls.pop(reference)
        actor = self.actors[call.worker]
        try:
            answer = ray.get(reference)
        except RayError as error:
            return [self._failure(call, actor, error)]
        if call.attempt is None:
            actor.place = answer
            log.info(
                "worker ready on %s, %s", actor.place.host, actor.place.device, extra=self._about(**vars(actor.place))
            )
            if answer.remark and answer.remark not in self.remarks:
                self.remarks.add(answer.remark)
                log.warning("%s", answer.remark, extra=self._about())
            self.vital_signs.watch(call.worker, actor.handle)
            return [events.WorkerReady(call.worker, actor.place.node)]
        if answer is None:
            return [events.ShardRendered(call.attempt)]
        self._count_device_time(answer, actor)
        self.reports[call.attempt] = answer
        return [events.ShardCommitted(call.attempt, answer.seconds)]

    def _failure(self, call: _Call, actor: _Actor, error: RayError) -> Event:
        cause = self._cause(error, actor)
        if call.attempt is None:
            self.errors[call.worker] = error
            log.warning("a worker did not start (%s): %s", cause, in_one_line(error), extra=self._about(cause=cause))
            has_died = isinstance(error, ActorDiedError | ActorUnavailableError) and not error.actor_init_failed
            is_folder = isinstance(getattr(error, "cause", None), StoreError) and isinstance(self.run.store, LocalStore)
            return events.StartFailed(call.worker, has_died, is_folder)
        if isinstance(error, RayTaskError):  # raised by the attempt; any other ends the worker
            self.errors[call.attempt] = error
            return events.AttemptFailed(call.attempt, cause)
        self.errors[call.worker] = error
        return events.WorkerLost(call.worker, cause)

    def _cause(self, error: RayError, actor: _Actor) -> Cause:
        original = getattr(error, "cause", None) or error
        if getattr(error, "preempted", False) or actor.place.node in fleet.leaving():
            return Cause.PREEMPTED
        if isinstance(error, ActorUnavailableError) or (actor.place.node and fleet.is_gone(actor.place.node)):
            return Cause.MACHINE
        if isinstance(error, OutOfMemoryError) or is_out_of_memory(original):
            return Cause.MEMORY
        return Cause.STORAGE if isinstance(original, StoreError) else Cause.ERROR

    def _look_around(self) -> list[Event]:
        leaving = events.MachinesLeaving(frozenset(fleet.leaving()))
        seen: list[Event] = [*self.vital_signs.steps(), *self._find_deaths(), leaving]
        if not self.schedule.workers.is_asked:
            seen.append(events.PlacesCounted(fleet.num_places(self.schedule.workers)))
        return [*seen, events.TimePassed()]

    def _find_deaths(self) -> Iterator[Event]:
        """Also of workers without a shard: their next one would be charged."""
        for worker, error in self.vital_signs.deaths():
            actor = self.actors[worker]
            if actor.handle is None or worker in self.errors:  # the driver ended it, or its shard's answer said so
                continue
            self.errors[worker], cause = error, self._cause(error, actor)
            if all(call.worker != worker for call in self.calls.values()):
                log.warning("a worker without a shard died (%s)", cause, extra=self._about(cause=cause))
            yield events.WorkerLost(worker, cause)

    # Decisions: what to do about it.

    def _decide(self, seen: list[Event]) -> None:
        """Carries out the schedule's decisions about events. Raises: Incomplete or DgnError if one ends the run."""
        for decision in self.schedule.handle(seen, time.monotonic()):
            self._carry_out(decision)
        progress, schedule = self.progress, self.schedule
        progress.retries, progress.workers_ready = schedule.num_retries, schedule.num_ready
        progress.quarantined = list(schedule.quarantined)

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case events.StartWorker(number):
                actor = self.actors[number] = _Actor(self.remote_class.remote(*self.arguments))
                self.calls[actor.handle.ready.remote()] = _Call(number)
            case events.EndWorker(number, is_late):
                if is_late:
                    log.warning("a worker was not ready in time: asking for another", extra=self._about())
                self._kill(self.actors[number])
                self.calls = {reference: call for reference, call in self.calls.items() if call.worker != number}
            case events.RenderShard(attempt, is_straggler):
                name = new_attempt()
                self.started[attempt] = name, time.monotonic()
                if is_straggler:
                    about = self._about(shard=attempt.shard)
                    log.info("shard %06d is slow: rendering it a second time", attempt.shard, extra=about)
                handle = self.actors[attempt.worker].handle
                self.calls[handle.render.remote(attempt.shard, name)] = _Call(attempt.worker, attempt)
            case events.FinishShard(attempt):
                reference = self.actors[attempt.worker].handle.finish.remote(self.started[attempt][0])
                self.calls[reference] = _Call(attempt.worker, attempt)
            case events.AskSteps(attempt):
                self.vital_signs.ask_steps(attempt, self.actors[attempt.worker].handle)
            case events.NoteDone(attempt):
                self._note_done(attempt)
            case events.NoteFailure():
                self._note_failure(decision)
            case events.MoveShard(attempt):
                place = self.actors[attempt.worker].place
                log.warning(
                    "%s is leaving: shard %06d starts elsewhere", place.host, attempt.shard,
                    extra=self._about(shard=attempt.shard, node=place.node, cause=Cause.PREEMPTED),
                )  # fmt: skip
            case events.CheckStore():
                self._check_store()
            case events.EndRun():
                self._give_up(decision)

    def _count_device_time(self, report: ShardReport, actor: _Actor) -> None:
        self.busy_s += report.busy_s - actor.busy_s
        self.span_s += report.span_s - actor.span_s
        actor.busy_s, actor.span_s = report.busy_s, report.span_s

    def _note_done(self, attempt: Attempt) -> None:
        report, place = self.reports[attempt], self.actors[attempt.worker].place
        self.progress.shards_done += 1
        self.progress.pictures_done += report.num_pictures
        mode, layer = self.context.plan.shard(attempt.shard).kind
        for status, count in report.statuses.items():
            self.progress.statuses[status] = self.progress.statuses.get(status, 0) + count
            self.metrics.pictures_done.inc(count, {"mode": mode, "layer": layer, "status": status})
        log.info(
            "shard %06d done: %s in %.1f s",
            attempt.shard, plural(report.num_pictures, self.context.plan.what), report.seconds,
            extra=self._about(shard=attempt.shard, node=place.node, host=place.host),
        )  # fmt: skip

    def _note_failure(self, failure: events.NoteFailure) -> None:
        attempt, cause, shard = failure.attempt, failure.cause, failure.attempt.shard
        error = self._error(attempt)
        if failure.beside is not None:
            error = DgnError(
                f"lost with its worker, which was rendering shard {failure.beside:06d}: {in_one_line(error)}"
            )
        name, started_at = self.started[attempt]
        place = self.actors[attempt.worker].place
        about = self._about(shard=shard, attempt=name, node=place.node, cause=cause)
        self.metrics.attempts_failed.inc(tags={"cause": cause})
        self.notes.add(shard, name, error, seconds=time.monotonic() - started_at, cause=cause, host=place.host)
        if failure.follows == "retry":
            log.warning("shard %06d will be tried again (%s): %s", shard, cause, in_one_line(error), extra=about)
        elif failure.follows == "quarantine":
            log.error(
                "shard %06d failed %d times and is quarantined (%s)", shard, failure.num_failures, in_one_line(error),
                extra=about,
            )  # fmt: skip

    def _error(self, failure: int | Attempt | None) -> BaseException:
        """The error behind a failure of this round."""
        worker = failure.worker if isinstance(failure, Attempt) else failure
        silent = TimeoutError(f"no sign of work for {self.schedule.rules.silence_s:.0f} s")
        return self.errors.get(failure) or self.errors.get(worker) or silent

    def _check_store(self) -> None:
        """Finds out whether the store fails for one worker or for all."""
        try:
            self.run.store.check(must_write=True)
        except StoreError as error:
            self.errors[None] = error
            self._decide([events.StoreChecked(False)])

    def _give_up(self, end: events.EndRun) -> None:
        """Raises: Incomplete, DgnError."""
        error = self._error(end.failure)
        if end.reason == "starts":
            raise Incomplete(f"no worker starts, tried {end.num_tries} times: {in_one_line(error)}") from error
        cause = getattr(error, "cause", None) or error
        if end.reason == "folder":
            raise DgnError(str(cause)) from error
        raise Incomplete(f"{cause}; {self._safe()}") from error

    # The end, and reports.

    def _end(self) -> None:
        """Ends all workers, and gives the last notes a little time."""
        for actor in self.actors.values():
            self._kill(actor)
        self.calls.clear()
        self.schedule.end()
        self.progress.workers_ready = 0
        self.notes.close()
        self._report()

    @staticmethod
    def _kill(actor: _Actor) -> None:
        if actor.handle is not None:
            with contextlib.suppress(RayError, ValueError):
                ray.kill(actor.handle)
            actor.handle = None

    def _reconcile(self) -> None:
        """Counts what the store holds, whatever workers reported. Raises: Incomplete."""
        seen = self.run.committed(self.schedule.committed.num_shards)
        lost = [shard for shard in seen.missing() if shard in self.schedule.committed]
        self.schedule.committed = seen
        self.schedule.quarantined = [shard for shard in self.schedule.quarantined if shard not in seen]
        self.progress.quarantined = list(self.schedule.quarantined)
        self.progress.shards_done, self.progress.pictures_done = seen.count, self._targets_committed()
        if lost:
            raise Incomplete(f"{len(lost)} committed shards are not in {self.run.store.url}: do all workers share it?")

    def _targets_committed(self) -> int:
        plan, committed = self.context.plan, self.schedule.committed
        if committed.count == plan.num_shards:
            return plan.num_targets
        return sum(len(plan.shard(index)) for index in committed)

    def _safe(self) -> str:
        done, total = self.progress.pictures_done, self.progress.num_targets
        return f"{done} of {total} {self.context.plan.what}s are safe; repeat the command when the store works"

    def _about(self, **more: Any) -> dict[str, Any]:
        return {"run": self.context.run_id, **more}

    def _report(self) -> None:
        """Sets the gauges, and warns if no worker is ready."""
        schedule = self.schedule
        states = {"waiting": schedule.num_waiting, "running": schedule.num_running, "done": schedule.committed.count}
        for state, count in {**states, "quarantined": len(schedule.quarantined)}.items():
            self.metrics.shards.set(count, {"state": state})
        self.metrics.workers.set(schedule.num_starting, {"state": "starting"})
        self.metrics.workers.set(schedule.num_ready, {"state": "ready"})
        if self.span_s:
            self.metrics.busy_share.set(self.busy_s / self.span_s)
        if schedule.num_ready or not schedule.num_starting:
            self.last_ready_at = time.monotonic()
        elif time.monotonic() - self.last_ready_at > WAITING_S:
            self.last_ready_at = time.monotonic()
            each = f"{schedule.workers.gpus_each:g} GPU, {schedule.workers.cpus_each:g} CPU"
            log.warning(
                "no worker yet: asked for %d, each with %s; the cluster has %s", schedule.num_starting, each,
                {name: count for name, count in ray.cluster_resources().items() if name in ("CPU", "GPU")},
            )  # fmt: skip
