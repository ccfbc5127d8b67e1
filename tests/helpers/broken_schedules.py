"""Schedules with one mistake each. The simulated runs must find all of them."""

from dataclasses import replace

from dgn.cluster.events import Cause, EndWorker, MoveShard, NoteDone, NoteFailure
from dgn.cluster.schedule import Schedule


class LosesRetries(Schedule):
    """A failed shard is not queued again."""

    def _note_failure(self, *arguments, **more):
        yield from super()._note_failure(*arguments, **more)
        self._queue.clear()


class ChargesTwice(Schedule):
    def _note_failure(self, attempt, work, cause, *more):
        for decision in super()._note_failure(attempt, work, cause, *more):
            if isinstance(decision, NoteFailure) and decision.follows == "retry":
                self._charged[attempt.shard] += cause is Cause.ERROR
            yield decision


class ChargesEveryDeathOfABlow(Schedule):
    """Workers that die together are charged one by one."""

    def _fell_with_others(self, *_):
        return False


class ChargesAttemptsAtOnce(Schedule):
    """A copy that dies is charged though the other attempt continues."""

    def _runs_elsewhere(self, shard):
        return False


class RepeatsStragglers(Schedule):
    """A slow shard begins again whenever a worker is idle."""

    def _stragglers(self, now):
        return [attempt for attempt in self._work if attempt.shard not in self.committed]


class CopiesOnTheSameWorker(Schedule):
    """An idle worker gets a copy of the very shard that it is saving."""

    def _begin(self, shard, worker, now, is_straggler=False):
        if is_straggler:
            [slow] = [attempt for attempt in self._work if attempt.shard == shard]
            worker = self._ready[slow.worker]
        return super()._begin(shard, worker, now, is_straggler)


class KeepsWorkers(Schedule):
    """A worker that is to be ended stays."""

    def _retire(self, worker):
        for decision in super()._retire(worker):
            if not isinstance(decision, EndWorker):
                yield decision


class DoesNotMoveShards(Schedule):
    """A leaving machine's shards are announced to move, and do not."""

    def _leave(self, nodes):
        for decision in super()._leave(nodes):
            if isinstance(decision, MoveShard):
                self._queue.remove(decision.attempt.shard)
            yield decision


class WaitsForever(Schedule):
    """The deadline of hanging work never comes."""

    def _watch(self, now):
        for work in self._work.values():
            work.worked_at = now
        yield from super()._watch(now)


class ForgetsStoreFailures(Schedule):
    """Failures of the store are not counted."""

    def _suspect_store(self, attempt, now):
        return iter(())


class GivesThirdShards(Schedule):
    """A worker counts as free as soon as its device is."""

    def _reuse(self, worker):
        if worker not in self._idle and not worker.is_retired:
            self._idle.append(worker)
        yield from ()


class QuarantinesLate(Schedule):
    def __init__(self, plan, committed, workers, rules):
        super().__init__(plan, committed, workers, replace(rules, max_charges=rules.max_charges + 1))


class NotesEveryCommit(Schedule):
    """Each of two attempts that commit a shard counts."""

    def _note_committed(self, attempt, seconds):
        decisions = list(super()._note_committed(attempt, seconds))
        if not any(isinstance(decision, NoteDone) for decision in decisions):
            yield NoteDone(attempt)
        yield from decisions


class FeedsLeavingMachines(Schedule):
    """Their workers stay in use."""

    def _leave(self, nodes):
        idle = list(self._idle)
        yield from (decision for decision in super()._leave(nodes) if isinstance(decision, MoveShard))
        for worker in idle:
            self._ready[worker.number] = worker
            worker.is_retired = False
        self._idle = idle


BROKEN = [
    LosesRetries, ChargesTwice, ChargesEveryDeathOfABlow, ChargesAttemptsAtOnce, RepeatsStragglers,
    CopiesOnTheSameWorker, KeepsWorkers, DoesNotMoveShards, WaitsForever, ForgetsStoreFailures, GivesThirdShards,
    QuarantinesLate, NotesEveryCommit, FeedsLeavingMachines,
]  # fmt: skip
