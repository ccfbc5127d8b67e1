"""A small cluster with a virtual clock, on which everything fails at random.

Machines hold workers. They vanish, fall silent, are announced to leave, or cannot use the store. Workers do not start,
raise, die, hang, and lose the answer after a commit. Answers come in any order, some from workers that were ended.
Several workers die of one cause. After a while nothing fails any more, so that every run ends.

Every fault that strikes has a number. A run of the same seed may be spared some of them.
"""

import heapq
import itertools
import math
from collections import Counter
from dataclasses import dataclass, field

from dgn.cluster.events import (
    Attempt,
    AttemptFailed,
    Cause,
    MachinesLeaving,
    PlacesCounted,
    ShardCommitted,
    ShardRendered,
    StartFailed,
    StepsCounted,
    TimePassed,
    WorkerLost,
    WorkerReady,
)

PLACES = 2  # for workers, on each machine
WEATHER = ("raise", "die", "hang", "store", "lost answer", "start", "vanish", "silence", "notice", "ill", "blow")
NOTICED_S = 1.0  # at most, until the driver knows of a death


@dataclass(eq=False)
class Machine:
    name: str
    is_ill: bool = False  # cannot use the store
    is_silent: bool = False
    is_leaving: bool = False
    is_gone: bool = False
    ends_at: float = math.inf
    workers: list = field(default_factory=list)


@dataclass(eq=False)
class Worker:
    number: int
    machine: Machine | None = None  # None: there is no place for it yet
    is_dead: bool = False
    is_hanging: bool = False
    killed_by: int | None = None  # the number of a blow that killed several
    # As the driver sees it:
    is_ready: bool = False
    under_way: dict[Attempt, bool] = field(default_factory=dict)  # whether they are rendered

    @property
    def is_staying(self):
        return not (self.machine and self.machine.is_leaving)


class SimulatedCluster:
    def __init__(self, chance, num_shards, spared=frozenset()):
        self.chance, self.spared = chance, spared
        self.struck = {}  # the faults that struck, by number
        self.counts = Counter()  # of what happened
        self.now, self.sequence, self.names = 0.0, itertools.count(), itertools.count()
        self.clear_at = chance.choice([0, 60, 200])  # from then on nothing fails
        self.weather = {fault: chance.choice([0, 0, 0.03, 0.15]) for fault in WEATHER}
        self.poison = {shard for shard in range(num_shards) if self.strikes(chance.random() < 0.05, f"poison {shard}")}
        is_away = self.strikes(chance.random() < 0.25, "store away")
        self.store_returns_at = min(30 if is_away else 0, self.clear_at)
        self.whole = set()  # shards that the store holds
        self.machines = [self.new_machine() for _ in range(chance.randrange(1, 4))]
        self.begin()

    def begin(self):
        """For another driver: without workers."""
        self.workers, self.due = {}, []
        for machine in self.machines:
            machine.workers.clear()

    # What the driver asks for.

    def start(self, number):
        self.workers[number] = Worker(number)

    def end(self, number):
        worker = self.workers.pop(number)
        worker.is_dead |= self.chance.random() < 0.5  # else late answers come
        if worker.machine and worker in worker.machine.workers:
            worker.machine.workers.remove(worker)

    def render(self, worker, attempt):
        seconds = 40 if self.chance.random() < 0.05 else 8
        self.call(worker, ("rendering", attempt), 1, seconds)

    def finish(self, worker, attempt):
        self.call(worker, ("finishing", attempt), 0.5, 3)

    def ask_steps(self, worker, attempt):
        if not worker.is_dead:
            self.call(worker, ("counting", attempt), 0, 1)

    @property
    def is_store_away(self):
        return self.now < self.store_returns_at

    # What happens.

    def pass_time(self):
        """Until something happens, or some seconds. Returns events in any order."""
        self.now = min(self.due[0][0] if self.due else self.now + 5, self.now + self.chance.uniform(1, 8))
        self.let_machines_fail()
        self.seat()
        events = []
        while self.due and self.due[0][0] <= self.now:
            _, _, worker, call = heapq.heappop(self.due)
            events += self.answer(worker, call)
        self.chance.shuffle(events)
        leaving = frozenset(machine.name for machine in self.machines if machine.is_leaving)
        return [*events, MachinesLeaving(leaving), PlacesCounted(PLACES * len(self.machines)), TimePassed()]

    def happens(self, fault):
        return self.strikes(self.now < self.clear_at and self.chance.random() < self.weather[fault], fault)

    def strikes(self, is_due, fault):
        if not is_due:
            return False
        number = len(self.struck)
        self.struck[number] = f"{self.now:7.2f}  {fault}"
        return number not in self.spared

    def new_machine(self):
        return Machine(f"m{next(self.names)}", is_ill=self.happens("ill"))

    def let_machines_fail(self):
        if self.happens("blow"):
            self.blow()
        for machine in list(self.machines):
            if self.happens("vanish") or machine.ends_at < self.now:
                self.vanish(machine)
                continue
            machine.is_leaving |= self.happens("notice")
            machine.is_silent |= self.happens("silence")
            if machine.is_leaving or machine.is_silent:  # Ray finds a silent one within a minute
                machine.ends_at = min(machine.ends_at, self.now + self.chance.uniform(10, 60))

    def blow(self):
        """What a host short of memory does: some of the workers die at once, whatever they are doing."""
        for worker in list(self.workers.values()):
            if worker.machine and not worker.is_dead and self.chance.random() < 0.7:
                worker.killed_by = len(self.struck) - 1
                self.die(worker)

    def vanish(self, machine):
        """Another one comes at once."""
        self.counts["machine vanished"] += 1
        machine.is_gone = True
        self.machines[self.machines.index(machine)] = self.new_machine()
        for worker in machine.workers:
            self.die(worker)

    def seat(self):
        """Gives places to workers that wait for one."""
        for worker in self.workers.values():
            free = [one for one in self.machines if len(one.workers) < PLACES and not one.is_leaving]
            if worker.machine is None and free:
                worker.machine = free[0]
                free[0].workers.append(worker)
                self.call(worker, ("starting", None), 1, 5)

    def call(self, worker, call, at_least=0.0, at_most=0.0):
        """Something that is asked of a worker, and answered later."""
        if worker.is_dead:
            call, at_least, at_most = None, 0, NOTICED_S
        at = self.now + self.chance.uniform(at_least, at_most)
        heapq.heappush(self.due, (at, next(self.sequence), worker, call))

    def die(self, worker):
        """Its connection breaks soon, and whatever is asked of the worker is answered by its death."""
        if not worker.is_dead:
            worker.is_dead = True
            for _ in worker.under_way or [None]:
                self.call(worker, None, 0, NOTICED_S)

    def answer(self, worker, call):
        """Events that the driver sees."""
        if call is None:
            if not worker.is_ready:
                return [StartFailed(worker.number, has_died=True)]
            cause = Cause.MACHINE if worker.machine.is_gone else Cause.ERROR
            return [WorkerLost(worker.number, Cause.PREEMPTED if worker.machine.is_leaving else cause)]
        kind, attempt = call
        is_stuck = worker.is_hanging and kind in ("rendering", "finishing")
        if worker.is_dead or worker.machine.is_silent or is_stuck:
            return []
        return list(getattr(self, kind)(worker, attempt))

    def starting(self, worker, _):
        if self.happens("start"):
            worker.is_dead = True
            yield StartFailed(worker.number, has_died=False)
        else:
            yield WorkerReady(worker.number, worker.machine.name)

    def counting(self, worker, attempt):
        yield StepsCounted(attempt, 0 if worker.is_hanging else int(self.now * 10))

    def rendering(self, worker, attempt):
        if self.has_trouble(worker):
            return
        if attempt.shard in self.poison and self.chance.random() < 0.5:
            self.die(worker)
        elif attempt.shard in self.poison or self.happens("raise"):
            yield AttemptFailed(attempt, self.chance.choice([Cause.ERROR, Cause.MEMORY]))
        elif self.store_fails(worker):
            yield AttemptFailed(attempt, Cause.STORAGE)
        else:
            yield ShardRendered(attempt)

    def finishing(self, worker, attempt):
        if self.has_trouble(worker):
            return
        if self.store_fails(worker):
            yield AttemptFailed(attempt, Cause.STORAGE)
            return
        self.whole.add(attempt.shard)
        if self.happens("lost answer"):
            self.counts["lost answer"] += 1
            self.die(worker)
        else:
            yield ShardCommitted(attempt, 5.0)

    def has_trouble(self, worker):
        if self.happens("die"):
            self.die(worker)
        worker.is_hanging |= self.happens("hang")
        return worker.is_dead or worker.is_hanging

    def store_fails(self, worker):
        is_ill = worker.machine.is_ill and self.now < self.clear_at
        return is_ill or self.is_store_away or self.happens("store")
