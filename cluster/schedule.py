"""The driver's decisions: which worker renders which shard, who is charged for a failure, when to give up.

Pure: no Ray, no clocks, no threads. `Schedule.handle` takes events and the time, and returns decisions in the order in
which they are to be carried out. docs/reliability.md explains the rules to users.

A worker holds at most two shards: one being rendered, one being saved. A shard may be rendered twice (a straggler, a
leaving machine); whichever attempt commits first counts, so that is always safe.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from dgn.cluster.events import (
    NOT_CHARGED,
    OF_THE_MACHINE,
    AskSteps,
    Attempt,
    AttemptFailed,
    Cause,
    CheckStore,
    Decision,
    EndRun,
    EndWorker,
    Event,
    FinishShard,
    Follows,
    MachinesLeaving,
    MoveShard,
    NoteDone,
    NoteFailure,
    PlacesCounted,
    RenderShard,
    ShardCommitted,
    ShardRendered,
    StartFailed,
    StartWorker,
    StepsCounted,
    StoreChecked,
    TimePassed,
    WorkerLost,
    WorkerReady,
)
from dgn.cluster.rules import Rules, Workers
from dgn.runs.photographs import PhotographPlan
from dgn.runs.plan import Plan
from dgn.runs.shards import Committed


@dataclass(eq=False)
class _Worker:
    number: int
    asked_at: float
    node: str = ""  # known once it is ready
    ready_at: float = math.inf
    attempts: list[Attempt] = field(default_factory=list)
    is_retired: bool = False  # gets no more shards


@dataclass(eq=False)
class _Work:
    """An attempt that is under way."""

    started_at: float
    is_rendered: bool = False
    is_leaving: bool = False  # its machine is, and its shard waits for another one
    steps: int = -1  # as last counted
    asked_at: float = 0.0
    worked_at: float = 0.0  # when the steps last changed
    is_asked: bool = False  # AskSteps without an answer yet

    def __post_init__(self) -> None:
        self.asked_at = self.worked_at = self.started_at


class Schedule:
    """One run's scheduling state."""

    def __init__(self, plan: Plan | PhotographPlan, committed: Committed, workers: Workers, rules: Rules | None = None):
        self.plan, self.committed, self.workers, self.rules = plan, committed, workers, rules or Rules()
        self.quarantined: list[int] = []
        self.num_retries = 0
        self._missing: Iterator[int] = committed.missing()  # shards that nobody has tried yet
        self._queue: deque[int] = deque()  # shards to try again
        self._later: deque[int] = deque()  # those that a store failed: last, so that one ill machine cannot use them up
        self._charged: Counter[int] = Counter()
        self._losses: Counter[int] = Counter()
        self._charged_at: dict[int, float] = {}  # when last
        self._work: dict[Attempt, _Work] = {}
        self._starting: dict[int, _Worker] = {}
        self._ready: dict[int, _Worker] = {}
        self._idle: list[_Worker] = []  # those that can take a shard; the last one takes the next
        self._worker_numbers, self._attempt_numbers = itertools.count(), itertools.count()
        self._failed_rounds = 0
        self._failed_starts: list[float] = []  # when, since a worker was last ready
        self._next_start_at = -math.inf
        self._store_failures = 0
        self._store_checked_at = -math.inf
        self._recent_s: dict[tuple[str, str], deque[float]] = {}  # seconds per picture, by mode and layer

    @property
    def is_over(self) -> bool:
        return self.num_running == 0 and self.num_waiting == 0

    @property
    def num_ready(self) -> int:
        return len(self._ready)

    @property
    def num_starting(self) -> int:
        return len(self._starting)

    @property
    def num_running(self) -> int:
        """Shards that are under way on a machine that stays."""
        running = {attempt.shard for attempt, work in self._work.items() if not work.is_leaving}
        return sum(shard not in self.committed for shard in running)

    @property
    def num_waiting(self) -> int:
        """Shards that are neither whole, nor left out, nor under way on a machine that stays."""
        return self.committed.num_shards - self.committed.count - len(self.quarantined) - self.num_running

    def handle(self, events: Iterable[Event], now: float) -> list[Decision]:
        """What follows from events, at a time in seconds of any clock that does not jump."""
        decisions = [decision for event in events for decision in self._react(event, now)]
        return [*decisions, *self._feed(now)]

    def end(self) -> None:
        """All workers were ended. What they had under way counts as waiting."""
        for held in (self._work, self._ready, self._starting, self._idle):
            held.clear()

    def _react(self, event: Event, now: float) -> Iterator[Decision]:
        match event:
            case WorkerReady(number, node):
                self._note_ready(number, node, now)
            case StartFailed():
                yield from self._note_failed_start(event, now)
            case ShardRendered(attempt) if attempt in self._work:
                self._work[attempt].is_rendered = True
                yield FinishShard(attempt)
                yield from self._reuse(self._ready[attempt.worker])
            case ShardCommitted(attempt, seconds) if attempt in self._work:
                yield from self._note_committed(attempt, seconds)
            case AttemptFailed(attempt, cause) if attempt in self._work:
                worker = self._ready[attempt.worker]
                work = self._forget(attempt)
                yield from self._retire(worker)  # a new worker, in case the device is ill
                yield from self._note_failure(attempt, work, cause, now)
            case WorkerLost(number, cause) if number in self._ready:
                yield from self._lose(self._ready[number], cause, now)
            case StepsCounted(attempt, steps) if attempt in self._work:
                work = self._work[attempt]
                work.is_asked = False
                if steps is not None and steps != work.steps:
                    work.steps, work.worked_at = steps, now
            case MachinesLeaving(nodes):
                yield from self._leave(nodes)
            case PlacesCounted(num_places) if not self.workers.is_asked:
                at_most = max(self.workers.at_most, num_places)
                self.workers = replace(self.workers, at_most=at_most, at_least=at_most)
            case StoreChecked(is_usable) if not is_usable:
                yield EndRun("store", self._store_failures)
            case TimePassed():
                yield from self._watch(now)

    def _feed(self, now: float) -> Iterator[Decision]:
        """Gives shards to idle workers, starts workers while there is work, gives them back when there is none."""
        while self._idle and (shard := self._next_shard()) is not None:
            yield self._begin(shard, self._idle.pop(), now)
        for attempt in self._stragglers(now) if self._idle else []:
            if others := [worker for worker in self._idle if worker.number != attempt.worker]:
                self._idle.remove(others[-1])
                yield self._begin(attempt.shard, others[-1], now, is_straggler=True)
        num_waiting = self.num_waiting
        at_work = {attempt.worker for attempt, work in self._work.items() if not work.is_leaving}
        num_busy = len(at_work.difference(worker.number for worker in self._idle))
        if now >= self._next_start_at:
            num_alive = len(self._idle) + len(self._starting) + num_busy
            for _ in range(min(num_waiting - len(self._starting), self.workers.at_most - num_alive)):
                worker = _Worker(next(self._worker_numbers), now)
                self._starting[worker.number] = worker
                yield StartWorker(worker.number)
        num_kept = num_waiting + max(self.workers.at_least - num_busy, 1)  # one spare, for a straggler or a loss
        for number in list(self._starting)[max(0, num_kept - len(self._idle)) :]:
            del self._starting[number]  # withdraws the request from an autoscaler
            yield EndWorker(number)
        for worker in [worker for worker in self._idle[num_kept:] if not worker.attempts]:
            yield self._dismiss(worker)

    def _watch(self, now: float) -> Iterator[Decision]:
        """Looks after attempts that may hang and workers that do not become ready."""
        for attempt, work in list(self._work.items()):
            if attempt not in self._work:  # lost with its worker just now
                continue
            if now - work.worked_at > self.rules.silence_s:
                yield from self._lose(self._ready[attempt.worker], Cause.DEADLINE, now)
            elif not work.is_asked and now - work.asked_at > self.rules.pulse_s:
                work.is_asked, work.asked_at = True, now
                yield AskSteps(attempt)
        for number, worker in list(self._starting.items()):
            if now - worker.asked_at > self.rules.start_deadline_s:
                del self._starting[number]
                yield EndWorker(number, is_late=True)

    def _next_shard(self) -> int | None:
        """The next shard to try, None when nothing is left to begin. Untried ones are looked up one at a time."""
        while True:
            if not self._queue:
                self._queue.extend(itertools.islice(self._missing, 1))
            if not self._queue and not self._later:
                return None
            shard = (self._queue or self._later).popleft()
            if not self._is_settled(shard):
                return shard

    def _is_settled(self, shard: int) -> bool:
        return shard in self.committed or shard in self.quarantined

    def _begin(self, shard: int, worker: _Worker, now: float, is_straggler: bool = False) -> RenderShard:
        attempt = Attempt(next(self._attempt_numbers), shard, worker.number)
        self._work[attempt] = _Work(now)
        worker.attempts.append(attempt)
        return RenderShard(attempt, is_straggler)

    def _stragglers(self, now: float) -> list[Attempt]:
        """At the tail: attempts that take far longer than usual and are their shard's only one, the slowest first."""
        under_way = Counter(attempt.shard for attempt in self._work)
        slow = {
            attempt: work.started_at
            for attempt, work in self._work.items()
            if under_way[attempt.shard] == 1
            and not work.is_leaving
            and attempt.shard not in self.committed
            and now - work.started_at > self.rules.straggler_factor * self._expected_s(attempt.shard)
        }
        return sorted(slow, key=lambda attempt: slow[attempt])

    def _expected_s(self, index: int) -> float:
        """How long a shard should take, from others of its mode and layer; infinite before one has finished."""
        shard = self.plan.shard(index)
        recent = self._recent_s.get(shard.kind)
        return statistics.median(recent) * len(shard) if recent else math.inf

    def _note_ready(self, number: int, node: str, now: float) -> None:
        worker = self._starting.pop(number, None)
        if worker is None:  # given back in the meantime
            return
        worker.node, worker.ready_at = node, now
        self._ready[number] = worker
        self._idle.append(worker)
        self._failed_rounds = 0
        self._failed_starts.clear()

    def _note_failed_start(self, event: StartFailed, now: float) -> Iterator[Decision]:
        """Ends a run for which no worker can start. One whose machine died says little about the others."""
        if self._starting.pop(event.worker, None) is None:
            return
        yield EndWorker(event.worker)
        self._failed_starts.append(now)
        if not self._idle and not self._work:
            if event.is_folder_missing:
                yield EndRun("folder", len(self._failed_starts), event.worker)
            if not self._starting and not event.has_died:
                self._failed_rounds += 1
            tries, enough = len(self._failed_starts), self.rules.max_start_rounds
            is_long = tries >= enough and now - self._failed_starts[0] > self.rules.start_patience_s
            if self._failed_rounds >= enough or is_long:
                yield EndRun("starts", tries, event.worker)
        self._next_start_at = now + self.rules.start_pause_s * (1 + self._failed_rounds)

    def _note_committed(self, attempt: Attempt, seconds: float) -> Iterator[Decision]:
        self._forget(attempt)
        self._store_failures = 0
        shard = self.plan.shard(attempt.shard)
        self._recent_s.setdefault(shard.kind, deque(maxlen=50)).append(seconds / len(shard))
        if attempt.shard not in self.committed:
            self.committed.add(attempt.shard)
            yield NoteDone(attempt)
        if attempt.shard in self.quarantined:  # an attempt on a leaving machine has made it after all
            self.quarantined.remove(attempt.shard)
        yield from self._reuse(self._ready[attempt.worker])

    def _note_failure(
        self, attempt: Attempt, work: _Work, cause: Cause, now: float, beside: int | None = None
    ) -> Iterator[Decision]:
        shard = attempt.shard
        follows: Follows = "nothing"
        if not (work.is_leaving or self._is_settled(shard) or self._runs_elsewhere(shard)):
            if cause in NOT_CHARGED:
                self._losses[shard] += 1
            else:
                self._charged[shard] += 1
                self._charged_at[shard] = now
            if self._charged[shard] >= self.rules.max_charges or self._losses[shard] >= self.rules.max_uncharged:
                follows = "quarantine"
                self.quarantined.append(shard)
            else:
                follows = "retry"
                self.num_retries += 1
                (self._later if cause is Cause.STORAGE else self._queue).append(shard)
        yield NoteFailure(attempt, cause, follows, self._charged[shard] + self._losses[shard], beside)
        if cause is Cause.STORAGE:
            yield from self._suspect_store(attempt, now)

    def _suspect_store(self, attempt: Attempt, now: float) -> Iterator[Decision]:
        """A worker's store failed for good. Is it that worker's alone?"""
        self._store_failures += 1
        self._next_start_at = now + self.rules.store_pause_s
        if now - self._store_checked_at > self.rules.store_check_s:
            self._store_checked_at = now
            yield CheckStore()
        if self._store_failures >= self.rules.max_store_failures:
            yield EndRun("store", self._store_failures, attempt)

    def _runs_elsewhere(self, shard: int) -> bool:
        """Whether a shard is under way on a machine that stays."""
        return any(attempt.shard == shard and not work.is_leaving for attempt, work in self._work.items())

    def _lose(self, worker: _Worker, cause: Cause, now: float) -> Iterator[Decision]:
        """A worker that died or fell silent. The shard that it was rendering is charged: that had the device and nearly
        all of the time. The one that it was saving is lost with it."""
        lost = [(attempt, self._forget(attempt)) for attempt in list(worker.attempts)]
        yield self._dismiss(worker)
        lost.sort(key=lambda one: one[1].is_rendered)
        if lost and cause not in NOT_CHARGED and self._fell_with_others(worker, lost[0][0].shard, now):
            cause = Cause.WORKER
        beside = None
        for attempt, work in lost:
            yield from self._note_failure(attempt, work, cause, now, beside)
            cause = cause if cause in OF_THE_MACHINE else Cause.WORKER
            beside = attempt.shard

    def _fell_with_others(self, worker: _Worker, shard: int, now: float) -> bool:
        """Whether a shard was charged just now for what has probably killed this older worker too. A host short of
        memory kills several at once, and the shard goes from one to the next before all deaths are known."""
        charged_at = self._charged_at.get(shard, -math.inf)
        return worker.ready_at < charged_at and now - charged_at <= self.rules.together_s

    def _leave(self, nodes: frozenset[str]) -> Iterator[Decision]:
        """A machine that is leaving gets no more shards. Those under way may still finish there, and begin elsewhere at
        once; whichever attempt commits first counts."""
        for worker in [worker for worker in self._idle if worker.node in nodes]:
            yield from self._retire(worker)
        for attempt, work in self._work.items():
            worker = self._ready[attempt.worker]
            if worker.node in nodes and not work.is_leaving:
                work.is_leaving = worker.is_retired = True
                shard = attempt.shard
                if not (self._is_settled(shard) or self._runs_elsewhere(shard)):
                    self._queue.appendleft(shard)
                    yield MoveShard(attempt)

    def _forget(self, attempt: Attempt) -> _Work:
        """An attempt that has ended."""
        self._ready[attempt.worker].attempts.remove(attempt)
        return self._work.pop(attempt)

    def _reuse(self, worker: _Worker) -> Iterator[Decision]:
        """What a worker does after one of its shards was rendered or committed."""
        is_free = len(worker.attempts) < 2 and all(self._work[attempt].is_rendered for attempt in worker.attempts)
        if worker.is_retired:
            yield from self._retire(worker)
        elif is_free and worker not in self._idle:
            self._idle.append(worker)

    def _retire(self, worker: _Worker) -> Iterator[Decision]:
        """Ends a worker as soon as it has no shard under way."""
        worker.is_retired = True
        if not worker.attempts:
            yield self._dismiss(worker)
        elif worker in self._idle:
            self._idle.remove(worker)

    def _dismiss(self, worker: _Worker) -> EndWorker:
        """Ends a worker that was ready."""
        if worker in self._idle:
            self._idle.remove(worker)
        del self._ready[worker.number]
        return EndWorker(worker.number)
