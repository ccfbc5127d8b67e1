"""The rules for workers: how many there are, and what happens where they do not start."""

import pytest

from dgn.cluster.events import (
    Cause,
    EndRun,
    EndWorker,
    PlacesCounted,
    StartFailed,
    StartWorker,
    StepsCounted,
    TimePassed,
    WorkerReady,
)
from tests.helpers.scheduling import Scheduled

# How many.


def test_as_many_workers_are_started_as_there_is_work_for_and_no_more_than_were_asked_for():
    assert Scheduled(num_shards=9, num_workers=3).started == [0, 1, 2]
    assert Scheduled(num_shards=2, num_workers=3).started == [0, 1]
    assert Scheduled(num_shards=9, num_workers=3, committed=range(8)).started == [0]


def test_a_lost_worker_is_replaced_while_there_is_work_that_waits():
    run = Scheduled(num_shards=3, num_workers=2)
    run.ready("a", "b")
    run.lost(0, Cause.ERROR)
    assert run.started == [2]
    run.say()
    assert run.started == [], "one is coming"


def test_requests_for_workers_are_withdrawn_when_less_work_is_left_than_they_would_be():
    """From an autoscaler. One spare worker is kept, for a straggler or a loss."""
    run = Scheduled(num_shards=4, num_workers=4)
    run.ready("a")
    assert run.coming == [1, 2, 3]
    run.rendered(0)
    run.committed(0)
    assert run.ended == [], "two shards wait"
    run.rendered(1)
    assert run.ended == [3]
    run.committed(1)
    run.rendered(2)
    assert run.ended == [2]
    assert run.coming == [1]
    assert run.say(WorkerReady(2, "b")) == [], "it had just become ready"


def test_idle_workers_are_given_back_at_the_tail_but_one():
    run = Scheduled(num_shards=4, num_workers=4)
    run.ready("a", "b", "c", "d")
    run.finished(0)
    assert run.ended == []
    run.finished(1)
    assert run.ended == [run.attempt(1).worker]
    run.finished(2)
    assert run.ended == [run.attempt(2).worker]
    assert run.schedule.num_ready == 2


@pytest.mark.parametrize(("at_least", "num_kept"), [(0, 2), (1, 2), (3, 3), (4, 4)])
def test_the_fewest_that_were_asked_for_are_kept_until_the_end(at_least, num_kept):
    run = Scheduled(num_shards=4, num_workers=4, at_least=at_least)
    run.ready("a", "b", "c", "d")
    for shard in range(3):
        run.finished(shard)
    assert run.schedule.num_ready == num_kept, "one of them at work"


def test_a_worker_that_still_saves_a_shard_is_not_given_back():
    run = Scheduled(num_shards=3, num_workers=3)
    run.ready("a", "b", "c")
    for shard in range(3):
        run.rendered(shard)
    assert run.ended == []
    assert run.schedule.num_ready == 3
    for shard in range(3):
        run.committed(shard)
    assert run.schedule.is_over


def test_a_worker_that_saves_its_last_shard_counts_once():
    run = Scheduled(num_shards=3, num_workers=3, at_least=3)
    run.ready("a", "b", "c")
    for shard in range(3):
        run.rendered(shard)
    for shard in range(3):
        run.committed(shard)
        assert run.ended == []


def test_a_request_is_withdrawn_where_an_idle_worker_is_the_spare_one():
    run = Scheduled(num_shards=3, num_workers=3)
    run.ready("a", "b")
    run.finished(0)
    assert run.ended == []
    run.finished(2)
    assert run.ended == [2]


def test_workers_follow_the_machines_where_nobody_said_how_many():
    run = Scheduled(num_shards=9, num_workers=1, is_asked=False)
    run.ready("a")
    run.say(PlacesCounted(3))
    assert run.started == [1, 2]
    run.say(PlacesCounted(1))
    assert (run.schedule.workers.at_most, run.schedule.workers.at_least) == (3, 3), "machines may come back"
    run.ready("b", "c")
    run.say(PlacesCounted(20))
    assert len(run.started) == 6, "as many as there is work for"


def test_workers_do_not_follow_the_machines_where_a_person_said_how_many():
    run = Scheduled(num_shards=9, num_workers=1)
    run.ready("a")
    assert run.say(PlacesCounted(3)) == []
    assert run.schedule.workers.at_most == 1


# Starting.


def test_a_worker_that_does_not_start_is_tried_again_after_a_pause_that_grows():
    run = Scheduled(num_shards=1, rules={"max_start_rounds": 5})
    for tries, pause_s in enumerate((4, 6, 8, 10), start=1):
        [worker] = run.coming
        assert run.not_started(worker) == [EndWorker(worker)], tries
        run.wait(pause_s - 0.5)
        assert run.started == []
        run.wait(0.5)
        assert len(run.started) == 1


def test_three_rounds_in_which_no_worker_starts_end_the_run():
    run = Scheduled(num_shards=9, num_workers=2)
    for tries in (2, 4, 6):
        run.wait(60)
        first, second = run.coming
        assert run.not_started(first) == [EndWorker(first)], "the other one may start"
        run.not_started(second)
        assert run.decided(EndRun) == ([EndRun("starts", 6, second)] if tries == 6 else [])


def test_a_start_that_succeeds_begins_the_count_anew():
    run = Scheduled(num_shards=1)
    for _ in range(3):
        for _ in range(2):
            run.not_started(run.coming[0])
            assert run.decided(EndRun) == []
            run.wait(60)
        run.ready("a")
        run.lost(run.attempt(0).worker, Cause.MACHINE)
        run.wait(60)


def test_workers_that_do_not_start_end_no_run_that_has_others_at_work():
    run = Scheduled(num_shards=4, num_workers=4, rules={"start_patience_s": 1.0})
    run.ready("a")
    for _ in range(9):
        for worker in list(run.coming):
            run.not_started(worker, after_s=60)
            assert run.decided(EndRun) == []
        run.say(StepsCounted(run.attempt(0), int(run.now)), TimePassed())


@pytest.mark.parametrize("fault", ["folder", "starts"])
def test_workers_that_do_not_start_end_no_run_that_has_just_got_one(fault):
    run = Scheduled(num_shards=4, num_workers=2, rules={"max_start_rounds": 1})
    run.say(WorkerReady(0, "a"), StartFailed(1, has_died=False, is_folder_missing=fault == "folder"))
    assert run.decided(EndRun) == []
    assert run.begun == [0]


def test_a_machine_that_dies_with_a_starting_worker_is_no_sign_that_none_can_start():
    run = Scheduled(num_shards=1)
    for _ in range(9):
        run.wait(10)
        run.not_started(run.coming[0], has_died=True)
        assert run.decided(EndRun) == []


def test_half_an_hour_of_failed_starts_ends_the_run_all_the_same():
    """Though machines died, or other workers are always still to come."""
    run = Scheduled(num_shards=9, num_workers=2)
    waiting = run.coming[0]
    for failed in range(1, 31):
        run.wait(61)
        run.not_started(next(worker for worker in run.coming if worker != waiting), has_died=failed % 2 == 0)
        assert bool(run.decided(EndRun)) == (failed == 31)
    run.wait(61)
    last = next(worker for worker in run.coming if worker != waiting)
    run.not_started(last)
    assert run.decided(EndRun) == [EndRun("starts", 31, last)]


def test_two_failed_starts_far_apart_end_nothing():
    run = Scheduled(num_shards=9, num_workers=2)
    for after_s in (0, 1900):
        run.not_started(run.coming[-1], has_died=True, after_s=after_s)
        assert run.decided(EndRun) == []
        run.say(after_s=10)
    run.not_started(run.coming[-1], has_died=True)
    assert run.decided(EndRun) == [EndRun("starts", 3, run.ended[0])]


def test_after_a_start_that_succeeded_patience_begins_anew():
    run = Scheduled(num_shards=1)
    for after_s in (0, 10, 1900):
        run.not_started(run.coming[0], has_died=True, after_s=after_s)
        assert run.decided(EndRun) == []
        run.say(after_s=10)
        run.ready("a")
        run.lost(run.attempt(0).worker, Cause.MACHINE)


def test_a_folder_that_is_not_shared_ends_the_run_at_once():
    run = Scheduled(num_shards=9, num_workers=2)
    run.not_started(0, is_folder_missing=True)
    assert run.decided(EndRun) == [EndRun("folder", 1, 0)]


def test_one_machine_without_the_folder_ends_no_run_that_works_elsewhere():
    run = Scheduled(num_shards=9, num_workers=2)
    run.ready("a")
    run.not_started(1, is_folder_missing=True)
    assert run.decided(EndRun) == []


def test_a_worker_that_is_not_ready_within_half_an_hour_is_replaced():
    run = Scheduled(num_shards=9, num_workers=1)
    assert run.wait(1800) == []
    assert run.wait(1) == [EndWorker(0, is_late=True), StartWorker(1)]
