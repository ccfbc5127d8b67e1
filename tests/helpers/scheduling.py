"""A Schedule whose clock and events come from a test: no Ray, no threads, no sleeping."""

from dgn.cluster.events import (
    AttemptFailed,
    EndWorker,
    NoteFailure,
    RenderShard,
    ShardCommitted,
    ShardRendered,
    StartFailed,
    StartWorker,
    TimePassed,
    WorkerLost,
    WorkerReady,
)
from dgn.cluster.rules import Rules, Workers
from dgn.cluster.schedule import Schedule
from dgn.runs.plan import Plan
from dgn.runs.shards import Committed
from dgn.targets import TargetBlock, WeightedUnit


def block(num_targets, layer="fc8", mode="untrained"):
    return TargetBlock(layer, tuple((WeightedUnit(layer, unit),) for unit in range(num_targets)), mode, 0, 1)


class Scheduled:
    """A run of one layer, two pictures a shard, and what its schedule decided last."""

    def __init__(self, num_shards=4, num_workers=1, committed=(), blocks=None, rules=None, **workers):
        plan = Plan(blocks or [block(2 * num_shards)], 2)
        whole = Committed(plan.num_shards)
        for shard in committed:
            whole.add(shard)
        self.schedule = Schedule(plan, whole, Workers(num_workers, 0, 1, **workers), Rules(**(rules or {})))
        self.now = 0.0
        self.attempts = []  # all that were begun
        self.coming = []  # workers that are not ready yet
        self.decisions = []  # the last ones
        self.say()

    def say(self, *events, after_s=0.0):
        """What the schedule makes of the events, which come that many seconds after the last ones."""
        self.now += after_s
        self.decisions = self.schedule.handle(events, self.now)
        self.attempts += [decision.attempt for decision in self.decided(RenderShard)]
        self.coming = [worker for worker in [*self.coming, *self.started] if worker not in self.ended]
        return self.decisions

    def decided(self, *kinds):
        return [decision for decision in self.decisions if isinstance(decision, kinds)]

    @property
    def started(self):
        return [decision.worker for decision in self.decided(StartWorker)]

    @property
    def ended(self):
        return [decision.worker for decision in self.decided(EndWorker)]

    @property
    def begun(self):
        """Shards, in order."""
        return [decision.attempt.shard for decision in self.decided(RenderShard)]

    @property
    def failures(self):
        """(shard, cause, what follows) of each attempt that failed."""
        return [(one.attempt.shard, one.cause, one.follows) for one in self.decided(NoteFailure)]

    def attempt(self, shard, which=-1):
        """One of the attempts at a shard, by default the last."""
        return [attempt for attempt in self.attempts if attempt.shard == shard][which]

    def ready(self, *nodes):
        """As many workers as there are names become ready, each on the machine of that name."""
        ready, self.coming = self.coming[: len(nodes)], self.coming[len(nodes) :]
        return self.say(*[WorkerReady(number, node) for number, node in zip(ready, nodes, strict=True)])

    def rendered(self, shard, which=-1, after_s=1.0):
        return self.say(ShardRendered(self.attempt(shard, which)), after_s=after_s)

    def committed(self, shard, which=-1, after_s=1.0, seconds=2.0):
        return self.say(ShardCommitted(self.attempt(shard, which), seconds), after_s=after_s)

    def finished(self, shard, which=-1, seconds=2.0):
        """Rendered, then committed."""
        self.decisions = [*self.rendered(shard, which, 0.0), *self.committed(shard, which, 0.0, seconds)]
        return self.decisions

    def failed(self, shard, cause, which=-1, after_s=1.0):
        return self.say(AttemptFailed(self.attempt(shard, which), cause), after_s=after_s)

    def lost(self, worker, cause, after_s=1.0):
        return self.say(WorkerLost(worker, cause), after_s=after_s)

    def not_started(self, worker, has_died=False, is_folder_missing=False, after_s=0.0):
        return self.say(StartFailed(worker, has_died, is_folder_missing), after_s=after_s)

    def wait(self, seconds):
        return self.say(TimePassed(), after_s=seconds)
