"""The rules for slow work: shards that hang, and stragglers at the tail."""

import pytest

from dgn.cluster.events import (
    AskSteps,
    Cause,
    EndWorker,
    MachinesLeaving,
    NoteDone,
    RenderShard,
    StepsCounted,
    TimePassed,
)
from tests.helpers.scheduling import Scheduled, block

# Work that does not advance.


def test_a_worker_is_asked_for_its_steps_every_twenty_seconds_and_once_at_a_time():
    run = Scheduled(num_shards=2)
    run.ready("a")
    asked = [AskSteps(run.attempt(0))]
    assert run.wait(20) == []
    assert run.wait(1) == asked
    assert run.wait(50) == [], "no answer yet"
    run.say(StepsCounted(run.attempt(0), 5))
    assert run.wait(1) == asked
    run.say(StepsCounted(run.attempt(0), None))
    assert run.wait(19) == []
    assert run.wait(2) == asked, "after no answer as well"


def test_ten_minutes_without_a_step_and_the_shard_goes_to_another_worker():
    run = Scheduled(num_shards=1)
    run.ready("a")
    run.wait(300)
    run.say(StepsCounted(run.attempt(0), 7))
    for _ in range(10):
        assert run.decided(EndWorker) == []
        run.wait(60)
        run.say(StepsCounted(run.attempt(0), 7))
    hanging = run.attempt(0)
    run.wait(1)
    assert run.ended == [hanging.worker]
    assert run.failures == [(0, Cause.DEADLINE, "retry")]
    run.ready("a")
    assert run.begun == [0]


@pytest.mark.parametrize("has_answer", [False, True])
def test_a_worker_that_does_not_count_steps_hangs_too(has_answer):
    """It does not answer, or what comes back is that it cannot."""
    run = Scheduled(num_shards=1)
    run.ready("a")
    run.wait(30)
    if has_answer:
        run.say(StepsCounted(run.attempt(0), None))
    run.wait(570)
    assert run.failures == []
    run.wait(1)
    assert run.failures == [(0, Cause.DEADLINE, "retry")]


def test_a_long_shard_is_left_alone_while_its_work_advances():
    run = Scheduled(num_shards=1)
    run.ready("a")
    for minute in range(600):
        run.wait(60)
        assert run.decisions == [AskSteps(run.attempt(0))]
        run.say(StepsCounted(run.attempt(0), minute))
    assert run.schedule.num_running == 1


def test_a_hang_is_charged_to_the_shard_that_is_rendered():
    run = Scheduled(num_shards=2)
    run.ready("a")
    run.rendered(0)
    run.wait(602)
    assert run.failures == [(1, Cause.DEADLINE, "retry"), (0, Cause.WORKER, "retry")]


# Stragglers.


def at_the_tail(num_slow=1, num_idle=1, **more):
    """Shards that took two seconds each are done; the last ones are under way, and some workers are idle."""
    num_workers = num_slow + num_idle
    run = Scheduled(num_shards=num_workers + num_idle, num_workers=num_workers, at_least=num_workers, **more)
    run.ready(*"abcdefgh"[:num_workers])
    for shard in (*range(num_idle), *range(num_workers, num_workers + num_idle)):
        run.finished(shard)
    return run


def test_a_straggler_begins_again_on_an_idle_worker_after_twice_the_usual_time():
    run = at_the_tail()
    run.wait(4)
    assert run.begun == []
    run.wait(0.1)
    assert [one.is_straggler for one in run.decided(RenderShard)] == [True]
    assert run.begun == [1]
    assert run.attempt(1).worker != run.attempt(1, 0).worker
    run.wait(100)
    assert run.begun == [], "two attempts are enough"
    assert NoteDone(run.attempt(1)) in run.finished(1)
    assert run.schedule.is_over
    assert run.schedule.num_retries == 0


def test_what_still_runs_of_a_shard_that_is_whole_is_not_a_straggler():
    run = at_the_tail(num_slow=2, num_idle=2)
    run.wait(5)
    assert sorted(run.begun) == [2, 3]
    run.finished(2)
    run.wait(60)
    assert run.begun == []


def test_the_slower_attempt_may_win():
    run = at_the_tail()
    run.wait(5)
    assert NoteDone(run.attempt(1, 0)) in run.finished(1, which=0)
    assert run.schedule.is_over
    run.finished(1)
    assert run.decided(NoteDone) == [], "the other one does not count again"


def test_the_usual_time_is_per_picture_and_can_be_set():
    run = at_the_tail(rules={"straggler_factor": 10.0})
    run.wait(20)
    assert run.begun == []
    run.wait(0.1)
    assert run.begun == [1]


def test_there_is_no_straggler_while_other_shards_are_left_to_begin():
    run = Scheduled(num_shards=9, num_workers=2)
    run.ready("a", "b")
    for shard in (0, *range(2, 9)):
        assert run.schedule.num_running == 2
        assert [attempt.shard for attempt in run.attempts].count(1) == 1
        run.wait(50)
        run.finished(shard)
    assert run.begun == [1], "once nothing else is left"


def test_there_is_no_straggler_without_an_idle_worker():
    run = Scheduled(num_shards=3, num_workers=1)
    run.ready("a")
    run.finished(0)
    run.finished(1)
    run.wait(60)
    assert run.begun == []


def test_a_straggler_does_not_begin_again_on_its_own_worker():
    """Which is idle as well: its shard is being saved, and takes long."""
    run = Scheduled(num_shards=2, num_workers=1)
    run.ready("a")
    run.finished(0)
    run.rendered(1)
    run.wait(60)
    assert run.begun == []


def test_the_slowest_straggler_comes_first():
    run = Scheduled(num_shards=4, num_workers=3, at_least=3)
    for node in "abc":
        run.say(after_s=1)
        run.ready(node)
    run.finished(0)
    run.finished(3)
    run.wait(50)
    assert run.begun == [1], "there is one idle worker"
    run.finished(1)
    assert run.begun == [2]


def test_time_is_judged_by_shards_of_the_same_layer_and_mode():
    blocks = [block(6), block(2, layer="conv3_1"), block(2, mode="pretrained")]
    run = Scheduled(blocks=blocks, num_workers=3, at_least=3)
    run.ready("a", "b", "c")
    for shard in range(3):
        run.finished(shard)
    assert run.begun == []
    assert sorted(attempt.shard for attempt in run.attempts) == [0, 1, 2, 3, 4]
    run.wait(500)
    assert run.begun == [], "none of their kind has finished"


def test_the_usual_time_is_the_median_of_the_last_fifty():
    run = Scheduled(num_shards=153, num_workers=2, at_least=2)
    run.ready("a", "b")
    for shard in (0, *range(2, 153)):
        run.finished(shard, seconds=1000.0 if shard < 110 or shard % 3 == 0 else 2.0)
    run.wait(4.5)
    assert run.begun == [1]


def test_a_leaving_attempt_at_a_shard_that_is_left_out_is_not_a_straggler():
    run = Scheduled(num_shards=3)
    run.ready("a")
    run.say(MachinesLeaving(frozenset("a")))
    for _ in range(3):
        run.ready("b")
        run.failed(0, Cause.ERROR)
    run.ready("b")
    run.finished(1)
    run.rendered(2)
    assert run.schedule.quarantined == [0]
    run.wait(60)
    assert run.begun == []


def test_time_passes_without_decisions_where_all_is_well():
    run = Scheduled(num_shards=2)
    run.ready("a")
    for _ in range(10):
        assert run.say(TimePassed(), after_s=1) == []
