"""The rules of docs/reliability.md for machines that leave and stores that fail."""

import pytest

from dgn.cluster.events import (
    Cause,
    CheckStore,
    EndRun,
    EndWorker,
    FinishShard,
    MachinesLeaving,
    MoveShard,
    NoteDone,
    StoreChecked,
    WorkerLost,
)
from tests.helpers.scheduling import Scheduled

# Machines that leave.


def test_a_machine_that_leaves_gets_no_more_shards_and_its_shards_begin_elsewhere_at_once():
    run = Scheduled(num_shards=9, num_workers=2)
    run.ready("a", "b")
    leaving, staying = run.attempt(1), run.attempt(0)
    run.say(MachinesLeaving(frozenset(["a"])))
    assert run.decided(MoveShard) == [MoveShard(leaving)]
    assert run.ended == [], "the shard may still finish there"
    assert len(run.started) == 1, "a worker in its place"
    run.rendered(0)
    assert run.begun == [1], "before those that nobody has tried"
    assert run.attempt(1).worker == staying.worker
    assert run.say(MachinesLeaving(frozenset(["a"]))) == [], "it is moved once"
    assert run.rendered(1, which=0) == [FinishShard(leaving)], "and nothing more begins there"


def test_the_leaving_attempt_may_come_first():
    run = Scheduled(num_shards=2, num_workers=2)
    run.ready("a", "b")
    run.say(MachinesLeaving(frozenset(["a"])))
    run.finished(0)
    assert run.begun == [1]
    leaving = run.attempt(1, 0)
    run.rendered(1, which=0)
    assert run.committed(1, which=0)[:2] == [NoteDone(leaving), EndWorker(leaving.worker)]
    assert run.schedule.is_over
    run.committed(1)
    assert run.decided(NoteDone) == [], "the second commit does not count again"


def test_an_idle_worker_on_a_machine_that_leaves_is_ended():
    run = Scheduled(num_shards=2, num_workers=2)
    run.ready("a", "b")
    run.finished(1)
    assert run.ended == [], "one is spare"
    run.say(MachinesLeaving(frozenset(["a"])))
    assert run.ended == [run.attempt(1).worker]
    assert run.decided(MoveShard) == []


def test_a_leaving_workers_two_shards_both_move():
    run = Scheduled(num_shards=5, num_workers=1)
    run.ready("a")
    run.rendered(0)
    run.say(MachinesLeaving(frozenset(["a"])))
    assert run.decided(MoveShard) == [MoveShard(run.attempt(0)), MoveShard(run.attempt(1))]
    assert run.started == [1], "though one was the most: those that leave do not count"
    run.ready("b")
    assert run.begun == [1]
    run.rendered(1)
    assert run.begun == [0]


def test_a_worker_that_waits_for_its_commit_moves_too():
    """It could take another shard, and there is none: it is idle and at work at once."""
    run = Scheduled(num_shards=1)
    run.ready("a")
    run.rendered(0)
    run.say(MachinesLeaving(frozenset(["a"])))
    assert run.decided(MoveShard) == [MoveShard(run.attempt(0))]
    assert run.ended == []
    assert EndWorker(0) in run.committed(0)


@pytest.mark.parametrize("cause", [Cause.PREEMPTED, Cause.MACHINE, Cause.ERROR])
def test_the_failure_of_a_leaving_attempt_costs_nothing(cause):
    run = Scheduled(num_shards=1)
    run.ready("a")
    run.say(MachinesLeaving(frozenset(["a"])))
    run.lost(0, cause)
    assert run.failures == [(0, cause, "nothing")]
    run.say(after_s=1)
    assert run.schedule.num_waiting == 1, "it waits already"


def test_a_leaving_attempt_takes_its_shard_out_of_quarantine():
    run = Scheduled(num_shards=2)
    run.ready("a")
    run.say(MachinesLeaving(frozenset(["a"])))
    for _ in range(3):
        run.ready("b")
        run.failed(0, Cause.ERROR)
    assert run.schedule.quarantined == [0]
    run.finished(0, which=0)
    assert run.schedule.quarantined == []
    assert 0 in run.schedule.committed
    run.ready("b")
    run.finished(1)
    assert run.schedule.is_over


def test_a_run_does_not_wait_for_a_leaving_attempt_at_a_shard_that_is_left_out():
    run = Scheduled(num_shards=1)
    run.ready("a")
    run.say(MachinesLeaving(frozenset(["a"])))
    for _ in range(3):
        run.ready("b")
        run.failed(0, Cause.ERROR)
    assert run.schedule.is_over


def test_a_shard_that_also_runs_on_a_machine_that_stays_does_not_move():
    run = Scheduled(num_shards=3, num_workers=2)
    run.ready("a", "b")
    run.finished(0)
    run.finished(2)
    run.wait(100)
    assert run.begun == [1]
    run.say(MachinesLeaving(frozenset(["a"])))
    assert run.decided(MoveShard) == []
    run.say(MachinesLeaving(frozenset(["a", "b"])))
    assert run.decided(MoveShard) == [MoveShard(run.attempt(1))], "with the last machine it does, once"


# Workers that die together.


def one_shard_left(num_workers):
    """The others of the workers are idle."""
    run = Scheduled(num_shards=2 * num_workers - 1, num_workers=num_workers, at_least=num_workers)
    run.ready(*"abcdef"[:num_workers])
    for shard in (*range(1, num_workers), *range(num_workers, 2 * num_workers - 1)):
        run.finished(shard)
    return run


def test_workers_that_die_together_are_charged_once_to_the_shard_that_goes_from_one_to_the_next():
    run = one_shard_left(num_workers=4)
    causes = [Cause.ERROR, Cause.WORKER, Cause.WORKER, Cause.WORKER]
    for cause in causes:
        run.lost(run.attempt(0).worker, Cause.ERROR, after_s=0.1)
        assert run.failures == [(0, cause, "retry")]
    for follows in ("retry", "quarantine"):
        run.ready("e")
        run.lost(run.attempt(0).worker, Cause.ERROR, after_s=0.1)
        assert run.failures == [(0, Cause.ERROR, follows)], "a new worker died of the shard"


def test_an_older_worker_that_dies_later_is_charged():
    run = one_shard_left(num_workers=3)
    for seconds, follows in ((0.1, "retry"), (2.1, "retry"), (2.1, "quarantine")):
        run.lost(run.attempt(0).worker, Cause.ERROR, after_s=seconds)
        assert run.failures == [(0, Cause.ERROR, follows)]


def test_attempts_at_one_shard_that_run_at_once_are_one_try():
    run = one_shard_left(num_workers=4)
    run.wait(10)
    assert run.begun == [0], "a straggler"
    lost = [WorkerLost(run.attempt(0, which).worker, Cause.ERROR) for which in (0, 1)]
    run.say(*lost)
    assert run.failures == [(0, Cause.ERROR, "nothing"), (0, Cause.ERROR, "retry")]
    run.lost(run.attempt(0).worker, Cause.ERROR, after_s=0.1)
    assert run.failures == [(0, Cause.WORKER, "retry")]


def test_a_worker_that_dies_without_a_shard_is_replaced_and_charged_to_nobody():
    run = one_shard_left(num_workers=2)
    [idle] = {attempt.worker for attempt in run.attempts} - {run.attempt(0).worker}
    run.lost(idle, Cause.ERROR)
    assert (run.ended, run.failures, run.begun) == ([idle], [], [])


# Stores.


def test_a_worker_whose_store_fails_makes_the_driver_look_for_itself_at_most_every_half_minute():
    run = Scheduled(num_shards=9)
    run.ready("a")
    assert CheckStore() in run.failed(0, Cause.STORAGE)
    assert (run.started, run.ended) == ([], [0])
    run.wait(29)
    assert run.started == [], "half a minute: the next worker may come to the same ill machine"
    run.wait(1)
    run.ready("a")
    assert CheckStore() not in run.failed(1, Cause.STORAGE, after_s=0)
    run.wait(30)
    run.ready("a")
    assert CheckStore() in run.failed(2, Cause.STORAGE)


def test_a_store_that_the_driver_cannot_use_either_ends_the_run():
    run = Scheduled()
    run.ready("a")
    run.failed(0, Cause.STORAGE)
    assert run.say(StoreChecked(is_usable=True)) == []
    assert run.say(StoreChecked(is_usable=False)) == [EndRun("store", 1)]


def test_ten_failures_of_stores_in_a_row_end_the_run():
    run = Scheduled(num_shards=12, rules={"store_pause_s": 0.5})
    run.ready("a")
    for shard in range(9):
        run.failed(shard, Cause.STORAGE)
        assert run.decided(EndRun) == []
        run.wait(1)
        run.ready("a")
    run.failed(9, Cause.STORAGE)
    assert run.decided(EndRun) == [EndRun("store", 10, run.attempt(9))]


def test_a_commit_in_between_shows_that_the_store_works():
    run = Scheduled(num_shards=40, rules={"store_pause_s": 0.5})
    run.ready("a")
    for shard in range(30):
        if shard % 10 == 9:
            run.finished(shard)
            continue
        run.failed(shard, Cause.STORAGE)
        assert run.decided(EndRun) == []
        run.wait(1)
        run.ready("a")


def test_a_shard_that_a_store_failed_comes_last():
    """So that one ill machine cannot use it up: behind failed ones and behind those that nobody has tried."""
    run = Scheduled(num_shards=4, rules={"store_pause_s": 0.5})
    run.ready("a")
    run.failed(0, Cause.STORAGE)
    run.wait(1)
    run.ready("a")
    assert run.begun == [1]
    run.failed(1, Cause.ERROR)
    run.wait(1)
    run.ready("a")
    for shard in (1, 2, 3, 0):
        run.finished(shard)
    assert [attempt.shard for attempt in run.attempts] == [0, 1, 1, 2, 3, 0]
    assert run.schedule.is_over


def test_a_store_that_fails_behind_the_rendering_leaves_the_worker_its_other_shard():
    run = Scheduled(num_shards=3, num_workers=1, rules={"store_pause_s": 0.5})
    run.ready("a")
    run.rendered(0)
    run.failed(0, Cause.STORAGE)
    assert run.failures == [(0, Cause.STORAGE, "retry")]
    assert run.ended == []
    run.finished(1)
    assert run.ended == [0]
    run.wait(1)
    run.ready("b")
    assert run.begun == [2]
