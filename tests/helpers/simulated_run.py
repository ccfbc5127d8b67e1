"""A run on a simulated cluster, by a driver that checks each decision of its Schedule before it obeys."""

import math
from collections import Counter
from random import Random

from dgn.cluster import events
from dgn.cluster.events import NOT_CHARGED, Cause
from dgn.cluster.rules import Rules, Workers
from dgn.cluster.schedule import Schedule
from dgn.runs.plan import Plan
from dgn.runs.shards import Committed
from tests.helpers.scheduling import block
from tests.helpers.simulated_cluster import SimulatedCluster

RULES = Rules(  # shorter than the real ones
    store_check_s=5,
    store_pause_s=5,
    start_pause_s=1,
    start_patience_s=100,
    start_deadline_s=60,
    pulse_s=4,
    silence_s=25,
)
NO_NEWS = (events.TimePassed(), events.MachinesLeaving(frozenset()))  # every few seconds
MAX_ROUNDS = 5000  # of one driver
MAX_DRIVERS = 30


class GivenUp(Exception):
    """The schedule ended the run."""


class SimulatedRun:
    """Of a seed. `spared`: the numbers of faults that do not strike. `tell` is called with each event and decision."""

    def __init__(self, seed, schedule_class=Schedule, spared=frozenset(), tell=None):
        chance = Random(seed)
        self.schedule_class, self.tell = schedule_class, tell
        self.plan = Plan([block(chance.randrange(1, 12)), block(chance.randrange(1, 5), "conv3_1")], 2)
        self.shards = set(range(self.plan.num_shards))
        self.cluster = SimulatedCluster(chance, self.plan.num_shards, spared)
        self.counts = self.cluster.counts
        at_most = chance.randrange(1, 6)
        self.workers = Workers(at_most, 0, 1, chance.randrange(at_most + 1), is_asked=chance.random() < 0.8)

    def finish(self):
        """By as many drivers, one after another, as it takes. Returns what happened, counted."""
        for _ in range(MAX_DRIVERS):
            try:
                self.drive()
            except GivenUp:
                continue
            self.counts["run"] += 1
            return self.counts
        raise AssertionError("the run is not whole after so many drivers")

    def drive(self):
        """One driver. Raises: GivenUp."""
        self.say("", "a driver starts")
        committed = Committed(self.plan.num_shards)
        self.done = set(self.cluster.whole)
        for shard in self.done:
            committed.add(shard)
        self.failed, self.ended_attempts = Counter(), set()
        self.killed_by, self.charged_blows = {}, set()
        self.store_failures, self.store_failed_at, self.store_checked_at = 0, -math.inf, -math.inf
        self.cluster.begin()
        self.schedule = self.schedule_class(self.plan, committed, self.workers, RULES)
        self.pass_on([])
        for _ in range(MAX_ROUNDS):
            if self.schedule.is_over:
                self.check_end()
                return
            self.pass_on(self.cluster.pass_time())
            self.check_state()
        raise AssertionError("the run does not end")

    def pass_on(self, seen):
        for event in seen:
            if self.tell and event not in NO_NEWS and not isinstance(event, events.PlacesCounted):
                self.say("", event)
            self.note(event)
        for decision in self.schedule.handle(seen, self.cluster.now):
            self.say("  ->", decision)
            self.counts[type(decision).__name__] += 1
            self.obey(decision)
        if any(isinstance(event, events.ShardCommitted) for event in seen):
            self.store_failures = 0
        assert self.store_failures < RULES.max_store_failures, "the run continues though its store fails"
        is_unchecked = self.store_failed_at - self.store_checked_at > RULES.store_check_s
        assert not is_unchecked, "the driver has not tried the store itself"

    def say(self, arrow, what):
        if self.tell:
            self.tell(f"{self.cluster.now:7.2f}  {arrow} {what}")

    def note(self, event):
        """What the driver knows without its schedule."""
        match event:
            case events.WorkerReady(number) if number in self.cluster.workers:
                self.cluster.workers[number].is_ready = True
            case events.WorkerLost(number) if number in self.cluster.workers:
                self.killed_by[number] = self.cluster.workers[number].killed_by
            case events.ShardCommitted(attempt) | events.AttemptFailed(attempt):
                if attempt.worker in self.cluster.workers:
                    self.cluster.workers[attempt.worker].under_way.pop(attempt, None)

    def obey(self, decision):
        workers = self.cluster.workers
        match decision:
            case events.StartWorker(number):
                assert number not in workers
                self.cluster.start(number)
            case events.EndWorker(number):
                self.cluster.end(number)
            case events.RenderShard(attempt):
                self.check_begin(decision)
                workers[attempt.worker].under_way[attempt] = False
                self.cluster.render(workers[attempt.worker], attempt)
            case events.FinishShard(attempt):
                assert workers[attempt.worker].under_way[attempt] is False
                workers[attempt.worker].under_way[attempt] = True
                self.cluster.finish(workers[attempt.worker], attempt)
            case events.AskSteps(attempt):
                assert attempt in workers[attempt.worker].under_way
                self.cluster.ask_steps(workers[attempt.worker], attempt)
            case events.NoteDone(attempt):
                assert attempt.shard in self.cluster.whole - self.done
                self.done.add(attempt.shard)
            case events.NoteFailure():
                self.check_failure(decision)
            case events.CheckStore() if not self.cluster.is_store_away:
                self.store_checked_at = self.cluster.now
            case events.CheckStore():
                self.pass_on([events.StoreChecked(False)])
                raise AssertionError("the run continues without a store")
            case events.EndRun():
                self.check_reason(decision)
                raise GivenUp

    # What must hold.

    def attempts_that_stay(self):
        return [one for worker in self.cluster.workers.values() if worker.is_staying for one in worker.under_way]

    def check_begin(self, decision):
        attempt, worker = decision.attempt, self.cluster.workers[decision.attempt.worker]
        assert worker.is_ready
        assert all(worker.under_way.values()), "its device is busy"
        assert len(worker.under_way) <= 1, "a third shard"
        assert attempt.shard not in self.done
        assert attempt.shard not in self.schedule.quarantined
        others = [one for one in self.attempts_that_stay() if one.shard == attempt.shard]
        assert len(others) == (1 if decision.is_straggler else 0)
        assert worker.number not in [one.worker for one in others]
        self.counts["straggler"] += decision.is_straggler

    def check_failure(self, decision):
        attempt, cause = decision.attempt, decision.cause
        self.counts.update([cause, decision.follows])
        assert attempt not in self.ended_attempts
        self.ended_attempts.add(attempt)
        if cause == Cause.STORAGE:
            self.store_failures, self.store_failed_at = self.store_failures + 1, self.cluster.now
        if decision.follows == "nothing":
            return
        assert attempt.shard not in self.done
        self.failed[attempt.shard, cause not in NOT_CHARGED] += 1
        blow = self.killed_by.get(attempt.worker)
        if blow is not None and cause not in NOT_CHARGED:
            assert (attempt.shard, blow) not in self.charged_blows, "charged twice for one blow"
            self.charged_blows.add((attempt.shard, blow))
        charged, lost = self.failed[attempt.shard, True], self.failed[attempt.shard, False]
        assert decision.num_failures == charged + lost
        assert (decision.follows == "quarantine") == (charged == RULES.max_charges or lost == RULES.max_uncharged)

    def check_reason(self, end):
        """A run is given up while something fails, or shortly after."""
        self.counts[f"ended: {end.reason}"] += 1
        assert self.cluster.now <= self.cluster.clear_at + 2 * RULES.start_patience_s
        if end.reason == "starts":
            assert end.num_tries >= RULES.max_start_rounds
            assert not any(worker.is_ready for worker in self.cluster.workers.values())
        elif end.failure:
            assert end.num_tries >= RULES.max_store_failures

    def check_state(self):
        schedule, workers = self.schedule, self.cluster.workers.values()
        assert schedule.num_ready == sum(worker.is_ready for worker in workers)
        assert schedule.num_ready + schedule.num_starting == len(workers)
        assert sum(worker.is_staying for worker in workers) <= schedule.workers.at_most
        under_way = {attempt.shard for attempt in self.attempts_that_stay()}
        waiting = self.shards - self.done - set(schedule.quarantined) - under_way
        assert schedule.num_waiting == len(waiting)
        assert schedule.num_running == len(under_way - self.done)
        if any(worker.is_ready and worker.is_staying and not worker.under_way for worker in workers):
            assert not waiting, "a worker has nothing to do while a shard waits"

    def check_end(self):
        left_out = self.schedule.quarantined
        assert self.done | set(left_out) == self.shards
        assert not self.done & set(left_out)
        assert len(left_out) == len(set(left_out))
