"""The rules of docs/reliability.md for shards: who renders them, whom a failure is charged to, when one is left out."""

import pytest

from dgn.cluster.events import (
    NOT_CHARGED,
    Attempt,
    Cause,
    EndWorker,
    FinishShard,
    MachinesLeaving,
    NoteDone,
    NoteFailure,
    RenderShard,
    ShardCommitted,
    ShardRendered,
    StepsCounted,
    WorkerLost,
)
from tests.helpers.scheduling import Scheduled

CHARGED = sorted(set(Cause) - NOT_CHARGED)


# Shards and workers.


def test_a_worker_renders_a_shard_while_it_saves_another_and_gets_no_third():
    run = Scheduled(num_shards=4)
    assert run.ready("a") == [RenderShard(Attempt(0, 0, 0))]
    assert run.rendered(0) == [FinishShard(Attempt(0, 0, 0)), RenderShard(Attempt(1, 1, 0))]
    assert run.rendered(1) == [FinishShard(Attempt(1, 1, 0))], "two are being saved"
    assert run.committed(0) == [NoteDone(Attempt(0, 0, 0)), RenderShard(Attempt(2, 2, 0))]
    assert run.committed(1) == [NoteDone(Attempt(1, 1, 0))], "one is being rendered"
    assert run.rendered(2) == [FinishShard(Attempt(2, 2, 0)), RenderShard(Attempt(3, 3, 0))]


def test_a_commit_while_the_next_shard_is_rendered_brings_no_third():
    run = Scheduled(num_shards=4)
    run.ready("a")
    run.rendered(0)
    assert run.committed(0) == [NoteDone(run.attempt(0))]
    assert run.rendered(1) == [FinishShard(run.attempt(1)), RenderShard(run.attempt(2))]


def test_every_shard_is_rendered_once_and_the_run_is_over_with_the_last_commit():
    run = Scheduled(num_shards=5, num_workers=2)
    run.ready("a", "b")
    for shard in range(5):
        assert not run.schedule.is_over
        run.finished(shard)
        assert NoteDone(run.attempt(shard)) in run.decisions
    assert run.schedule.is_over
    assert sorted(attempt.shard for attempt in run.attempts) == [0, 1, 2, 3, 4]
    assert (run.schedule.num_retries, run.schedule.quarantined) == (0, [])


def test_a_resumed_run_renders_what_is_missing():
    run = Scheduled(num_shards=5, num_workers=5, committed=[0, 2, 3])
    assert run.started == [0, 1], "as many workers as there are shards"
    run.ready("a", "b")
    assert run.begun == [1, 4]
    run.finished(1)
    run.finished(4)
    assert run.schedule.is_over


def test_a_whole_run_starts_nothing():
    run = Scheduled(num_shards=3, committed=[0, 1, 2])
    assert run.decisions == []
    assert run.schedule.is_over


def test_shards_are_counted_as_waiting_or_running():
    run = Scheduled(num_shards=4, num_workers=2, committed=[3])

    def counts():
        return run.schedule.num_waiting, run.schedule.num_running, run.schedule.committed.count

    assert counts() == (3, 0, 1)
    run.ready("a", "b")
    assert counts() == (1, 2, 1)
    run.rendered(0)
    assert counts() == (0, 3, 1), "what is being saved is not waiting"
    run.committed(0)
    assert counts() == (0, 2, 2)
    run.say(MachinesLeaving(frozenset("ab")))
    assert counts() == (2, 0, 2), "what is on leaving machines alone waits for others"
    run.schedule.end()
    assert counts() == (2, 0, 2)
    assert (run.schedule.num_ready, run.schedule.num_starting) == (0, 0)


# Failures.


@pytest.mark.parametrize("cause", CHARGED)
@pytest.mark.parametrize("is_worker_lost", [False, True])
def test_three_charged_attempts_and_the_shard_is_left_out(cause, is_worker_lost):
    run = Scheduled(num_shards=2)
    for tries, follows in enumerate(("retry", "retry", "quarantine"), start=1):
        run.ready("a")
        assert run.begun == [0], "a failed shard comes before those that nobody has tried"
        attempt = run.attempt(0)
        if is_worker_lost:
            run.lost(attempt.worker, cause)
        else:
            run.failed(0, cause)
        assert run.decided(NoteFailure) == [NoteFailure(attempt, cause, follows, tries)]
        assert run.ended == [attempt.worker], "a new worker, in case the device is ill"
        assert len(run.started) == 1
    assert run.schedule.quarantined == [0]
    assert run.schedule.num_retries == 2
    run.ready("a")
    run.finished(1)
    assert run.schedule.is_over


@pytest.mark.parametrize("cause", sorted(NOT_CHARGED))
def test_what_machines_and_stores_do_is_not_charged_until_it_has_happened_twenty_times(cause):
    run = Scheduled(num_shards=1, rules={"max_store_failures": 100, "store_pause_s": 0.5})
    for tries in range(1, 21):
        run.wait(1)
        run.ready("a")
        attempt = run.attempt(0)
        run.failed(0, cause)
        assert run.decided(NoteFailure) == [NoteFailure(attempt, cause, "retry" if tries < 20 else "quarantine", tries)]
    assert run.schedule.is_over
    assert run.schedule.quarantined == [0]


def test_charges_and_losses_are_counted_apart():
    run = Scheduled(num_shards=1)
    for cause in [Cause.ERROR, Cause.MEMORY, *[Cause.MACHINE] * 19]:
        run.ready("a")
        run.failed(0, cause)
        assert run.failures == [(0, cause, "retry")]
    run.ready("a")
    run.failed(0, Cause.DEADLINE)
    assert run.decided(NoteFailure) == [NoteFailure(run.attempt(0), Cause.DEADLINE, "quarantine", 22)]


def test_an_exception_while_a_shard_is_saved_leaves_the_one_that_is_rendered():
    run = Scheduled(num_shards=4, num_workers=2)
    run.ready("a", "b")
    worker = run.attempt(0).worker
    run.rendered(0)
    assert run.attempt(2).worker == worker
    run.failed(0, Cause.ERROR)
    assert run.ended == []
    assert run.rendered(2) == [FinishShard(run.attempt(2))], "it gets no more"
    assert run.committed(2)[:2] == [NoteDone(run.attempt(2)), EndWorker(worker)]


def test_an_exception_in_rendering_leaves_the_shard_that_is_saved():
    run = Scheduled(num_shards=4, num_workers=2)
    run.ready("a", "b")
    worker = run.attempt(0).worker
    run.rendered(0)
    run.failed(2, Cause.ERROR)
    assert (run.ended, run.begun) == ([], [])
    assert run.committed(0)[:2] == [NoteDone(run.attempt(0)), EndWorker(worker)]


def test_a_retired_workers_replacement_is_started_when_it_has_ended():
    run = Scheduled(num_shards=4, num_workers=1)
    run.ready("a")
    run.rendered(0)
    run.failed(0, Cause.ERROR)
    assert (run.started, run.ended) == ([], []), "one worker was asked for, and it still renders shard 1"
    run.finished(1)
    assert (run.started, run.ended) == ([1], [0])


@pytest.mark.parametrize("cause", CHARGED)
def test_a_death_with_two_shards_is_charged_to_the_one_that_is_rendered(cause):
    run = Scheduled(num_shards=3)
    run.ready("a")
    run.rendered(0)
    run.lost(0, cause)
    assert run.decided(NoteFailure) == [
        NoteFailure(run.attempt(1), cause, "retry", 1),
        NoteFailure(run.attempt(0), Cause.WORKER, "retry", 1, beside=1),
    ]
    assert run.ended == [0]


def test_the_shard_beside_a_poisonous_one_is_not_left_out_with_it():
    """Shard 1 kills its worker whenever it is rendered, mostly while shard 0 is being saved."""
    run = Scheduled(num_shards=2)
    causes = []
    while 1 not in run.schedule.quarantined:
        run.ready("a")
        if run.begun == [0]:
            run.rendered(0)
        assert run.begun == [1]
        run.lost(run.attempt(1).worker, Cause.ERROR)
        causes += [cause for shard, cause, _ in run.failures if shard == 0]
    assert causes == [Cause.WORKER] * 2
    run.ready("a")
    run.finished(0)
    assert run.schedule.is_over
    assert run.schedule.quarantined == [1]


def test_a_death_with_two_shards_that_are_saved_is_charged_to_the_older():
    run = Scheduled(num_shards=3)
    run.ready("a")
    run.rendered(0)
    run.rendered(1)
    run.lost(0, Cause.ERROR)
    assert run.failures == [(0, Cause.ERROR, "retry"), (1, Cause.WORKER, "retry")]


@pytest.mark.parametrize("cause", [Cause.MACHINE, Cause.PREEMPTED])
def test_a_machine_that_goes_with_two_shards_is_charged_to_neither(cause):
    run = Scheduled(num_shards=3)
    run.ready("a")
    run.rendered(0)
    run.lost(0, cause)
    assert run.failures == [(1, cause, "retry"), (0, cause, "retry")]


def test_answers_of_attempts_that_are_over_change_nothing():
    run = Scheduled(num_shards=2, num_workers=2)
    run.ready("a", "b")
    old = run.attempt(0)
    run.lost(old.worker, Cause.MACHINE)
    for late in (
        ShardRendered(old), ShardCommitted(old, 2.0), StepsCounted(old, 5), WorkerLost(old.worker, Cause.ERROR),
    ):  # fmt: skip
        assert run.say(late) == []
    assert run.schedule.committed.count == 0


def test_the_failure_of_a_shard_that_is_whole_costs_nothing():
    """Its straggler has made it."""
    run = Scheduled(num_shards=3, num_workers=2)
    run.ready("a", "b")
    run.finished(0)
    run.finished(2)
    run.wait(100)
    assert run.begun == [1], "the straggler's second attempt"
    run.finished(1)
    assert run.schedule.is_over
    run.failed(1, Cause.ERROR, which=0)
    assert run.failures == [(1, Cause.ERROR, "nothing")]
    assert run.schedule.num_retries == 0


def test_the_failure_of_a_shard_that_runs_elsewhere_costs_nothing():
    run = Scheduled(num_shards=3, num_workers=2)
    run.ready("a", "b")
    run.finished(0)
    run.finished(2)
    run.wait(100)
    run.failed(1, Cause.ERROR, which=0)
    assert run.failures == [(1, Cause.ERROR, "nothing")]
    assert not run.schedule.is_over
    assert run.schedule.num_retries == 0
    run.failed(1, Cause.ERROR)
    assert run.failures == [(1, Cause.ERROR, "retry")], "the last attempt that was left"
