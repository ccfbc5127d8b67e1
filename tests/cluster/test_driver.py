"""The driver on a real Ray: what only real processes show. All rules are tested in test_schedule*.py."""

import time

import pytest
import ray
from ray.exceptions import ActorUnavailableError

from dgn.cluster.connection import connect
from dgn.cluster.context import RunContext
from dgn.cluster.driver import Driver
from dgn.cluster.events import ShardCommitted, WorkerLost
from dgn.cluster.fleet import choose_workers
from dgn.cluster.rules import Rules, Workers
from dgn.errors import DgnError, Incomplete
from dgn.networks.registry import network_named
from dgn.runs.config import RunConfig
from dgn.runs.plan import fingerprint, make_plan
from dgn.runs.run import Run
from dgn.runs.stores import open_store
from tests.conftest import WIDTH
from tests.helpers import fakes
from tests.helpers.cramped import CrampedWorker

pytestmark = pytest.mark.usefixtures("local_ray")

# Shards of milliseconds are soon called slow: an attempt more would be counted, or be killed and leave pictures.
NO_STRAGGLERS = 1e9


@pytest.fixture
def driver_of(tmp_path):
    """A run of eight shards of two targets, and a driver of fake workers for it."""
    config = RunConfig(targets=("classes:0-15",), discriminator="vgg16-mini", shard_size=2)
    plan = make_plan(config, network_named("vgg16-mini").layers)
    identity = fingerprint(plan, config.render_config("float32"), network_named("vgg16-mini"), "", None)
    run = Run(open_store(str(tmp_path / "run")))
    run.store.check(must_write=True)
    info = run.start(identity, config, plan.num_targets, plan.num_shards)
    context = RunContext(run.store.url, info.run_id, plan, config.render_config("float32"), identity, 1)

    def make(worker_class, num_workers=2, cpus_each=1, at_least=1, observe=lambda progress: None, **rules):
        rules = Rules(**{"straggler_factor": NO_STRAGGLERS, "start_pause_s": 0.1, "store_pause_s": 0.1, **rules})
        workers = Workers(num_workers, 0, cpus_each, at_least)
        return run, Driver(run, info, context, None, None, workers, observe, worker_class=worker_class, rules=rules)

    return make


@pytest.fixture
def render_with(driver_of):
    """Renders the run."""

    def render(*arguments, **more):
        run, driver = driver_of(*arguments, **more)
        return run, driver.loop()

    return render


class Watch:
    """When a run's progress first looked as it should."""

    def __init__(self, condition):
        self.condition, self.start, self.seen_s = condition, time.monotonic(), None

    def __call__(self, progress):
        if self.seen_s is None and self.condition(progress):
            self.seen_s = self.elapsed_s

    @property
    def elapsed_s(self):
        return time.monotonic() - self.start


def target_ids(run):
    num_shards = run.info().num_shards
    tables = run.tables(iter(run.committed(num_shards)), ["target_id"])
    return [target_id for table in tables for target_id in table["target_id"].to_pylist()]


def lost_and_twice(run, num_targets=16):
    """Targets, counted in the rows. `num_targets`: how many were to be whole."""
    ids = target_ids(run)
    return num_targets - len(set(ids)), len(ids) - len(set(ids))


def causes(run):
    return sorted((failure["shard"], failure["cause"]) for failure in run.failures())


def test_every_shard_is_rendered_once_and_none_again(render_with):
    seen = []
    run, progress = render_with(fakes.FakeWorker, observe=lambda progress: seen.append(progress.pictures_done))
    assert lost_and_twice(run) == (0, 0)
    assert (seen[0], seen[-1], progress.pictures_done) == (0, 16, 16)
    assert progress.statuses == {"ok": 16}
    assert (progress.retries, progress.workers_ready) == (0, 0)
    run, progress = render_with(fakes.UnstartableWorker)
    assert progress.shards_done == 8
    assert lost_and_twice(run) == (0, 0)


def test_poison_is_left_out_after_three_attempts_and_the_rest_finishes(render_with, reliability):
    watch = Watch(lambda progress: progress.quarantined)
    run, progress = render_with(fakes.PoisonWorker, observe=watch)
    assert sorted(progress.quarantined) == [1, 2]
    assert progress.shards_done == 6
    own = [(shard, cause) for shard, cause in causes(run) if cause != "worker"]  # others were being saved beside
    assert own == [(1, "error")] * 3 + [(2, "error")] * 3 + [(3, "error")]
    poison = next(failure for failure in run.failures() if failure["shard"] == 1)
    assert poison["error"].startswith("RuntimeError: ")
    assert "this shard is poison" in poison["traceback"]
    reliability(
        "a shard that always kills its worker", "os._exit in one shard, an exception in another",
        "three attempts, then left out with its reasons; the other six finish, exit code 1",
        watch.seen_s, watch.elapsed_s, *lost_and_twice(run, 12),
    )  # fmt: skip


def test_an_answer_lost_after_the_commit_makes_no_second_picture(render_with):
    run, progress = render_with(fakes.LostAnswerWorker)
    assert progress.shards_done == 8
    assert lost_and_twice(run) == (0, 0)
    assert len(list(run.store.list("images"))) == 16


def test_the_next_shard_is_rendered_while_one_is_saved_and_no_third_is_begun(render_with):
    run, progress = render_with(fakes.OverlappingWorker, num_workers=1)
    assert (progress.shards_done, progress.retries) == (8, 0)
    assert causes(run) == []


def test_a_death_with_two_shards_under_way_is_charged_to_the_one_that_is_rendered(render_with, reliability):
    watch = Watch(lambda progress: progress.retries)
    run, progress = render_with(fakes.FragileWorker, num_workers=1, observe=watch)
    assert (progress.shards_done, progress.quarantined, progress.retries) == (8, [], 2)
    assert causes(run) == [(2, "worker"), (3, "error")]
    beside = next(failure["error"] for failure in run.failures() if failure["shard"] == 2)
    assert beside.startswith("DgnError: lost with its worker, which was rendering shard 000003: ActorDiedError: ")
    assert len(list(run.store.list("images"))) == 16
    reliability(
        "worker dies with one shard rendered and another half", "os._exit while a shard is saved",
        "both begin again; charged to the one that was being rendered",
        watch.seen_s, watch.elapsed_s, *lost_and_twice(run),
    )  # fmt: skip


def test_a_commit_whose_answer_comes_behind_the_loss_of_its_worker(driver_of, monkeypatch):
    """In one round: two shards are saved, and the connection breaks with the first answer."""
    run, driver = driver_of(fakes.FakeWorker, num_workers=1)

    def answers(references):
        ray.wait(references, num_returns=len(references))
        return [event for reference in references for event in driver._answer(reference)]

    driver._decide([])
    for _ in ("ready", "shard 0 is rendered"):
        driver._decide(answers(list(driver.calls)))
    driver._decide(answers([reference for reference, call in driver.calls.items() if call.attempt.shard == 1]))
    first, second = sorted(driver.calls, key=lambda reference: driver.calls[reference].attempt.shard)
    ray.wait([first, second], num_returns=2)
    get = ray.get

    def get_if_connected(reference):
        if reference == first:
            raise ActorUnavailableError("the connection broke", None)
        return get(reference)

    with monkeypatch.context() as patch:
        patch.setattr(ray, "get", get_if_connected)
        seen = answers([first, second])
    assert [type(event) for event in seen] == [WorkerLost, ShardCommitted]
    driver._decide(seen)
    assert driver.loop().shards_done == 8
    assert lost_and_twice(run) == (0, 0)
    assert causes(run) == [(0, "machine"), (1, "machine")]


def test_a_death_that_is_noticed_twice_is_told_once(driver_of, caplog):
    """By its shard's answer, and by the worker's own call in the same round."""
    run, driver = driver_of(fakes.FragileWorker, num_workers=1)
    lost = []
    driver._decide([])
    while not lost:
        ray.wait(list(driver.calls))
        ended, _ = ray.wait(list(driver.calls), num_returns=len(driver.calls), timeout=0)
        seen = [event for reference in ended for event in driver._answer(reference)]
        lost = [event for event in seen if isinstance(event, WorkerLost)]
        if lost:
            ray.wait(list(driver.vital_signs._lives), timeout=10)
            seen += driver._find_deaths()
        driver._decide(seen)
        driver.errors.clear()
    assert "without a shard" not in caplog.text
    assert driver.loop().shards_done == 8
    assert causes(run) == [(2, "worker"), (3, "error")]


def test_workers_that_are_killed_at_once_are_charged_once(render_with, reliability):
    """Though three of them have no shard, and Ray would say so only when they are given one."""
    watch = Watch(lambda progress: progress.retries)
    run, progress = render_with(fakes.DoomedWorker, num_workers=4, at_least=4, observe=watch)
    assert (progress.shards_done, progress.quarantined) == (8, [])
    assert [one for one in causes(run) if one[1] != "worker"] == [(7, "error")]
    reliability(
        "several workers killed at once", "SIGKILL of all four workers, three of them idle",
        "the last shard is charged once, and done by a new worker", watch.seen_s, watch.elapsed_s,
        *lost_and_twice(run),
    )  # fmt: skip


def test_a_store_that_one_worker_cannot_use_is_charged_to_nobody(render_with):
    """It refuses while the shard is saved, and while it is rendered; the driver can use it."""
    run, progress = render_with(fakes.ForgetfulStoreWorker, num_workers=1)
    assert (progress.shards_done, progress.quarantined, progress.retries) == (8, [], 2)
    assert causes(run) == [(2, "storage"), (5, "storage")]
    assert lost_and_twice(run) == (0, 0)


def test_a_hanging_shard_goes_to_another_worker_and_a_long_one_is_left_alone(render_with, reliability):
    watch = Watch(lambda progress: progress.retries)
    run, progress = render_with(fakes.HangingWorker, observe=watch, silence_s=4.0, pulse_s=0.5)
    assert (progress.shards_done, progress.retries) == (8, 1)
    assert causes(run) == [(0, "deadline")]
    reliability(
        "hanging shard", "a sleep of ten minutes; the deadline here 4 s without a step of work (by default 10 minutes)",
        "its worker is ended, the shard tried again", watch.seen_s, watch.elapsed_s, *lost_and_twice(run),
    )  # fmt: skip
    [failure] = run.failures()
    assert failure["error"] == "TimeoutError: no sign of work for 4 s"


def test_a_straggler_is_duplicated_at_the_tail(render_with, reliability, caplog):
    start = time.time()
    with caplog.at_level("INFO", logger="dgn"):
        run, progress = render_with(fakes.StragglingWorker, straggler_factor=2.0)
    noticed = next(record for record in caplog.records if "rendering it a second time" in record.getMessage())
    reliability(
        "straggler at the tail", "a sleep of ten minutes in one of eight shards",
        "an idle worker does it too, the first commit counts", noticed.created - start, time.time() - start,
        *lost_and_twice(run),
    )  # fmt: skip
    assert (progress.shards_done, progress.retries) == (8, 0)


def test_a_device_without_room_for_a_target(render_with, reliability):
    start = time.monotonic()
    run, progress = render_with(fakes.FullDeviceWorker, max_charges=1)
    assert progress.quarantined == [2]
    assert causes(run) == [(2, "memory")]
    reliability(
        "device too small for one target", "torch.OutOfMemoryError in one shard",
        "charged, left out (here after one attempt, by default three); the rest finishes", None,
        time.monotonic() - start, *lost_and_twice(run, 14),
    )  # fmt: skip


def test_a_device_without_room_for_a_batch(tmp_path, mini_weights, reliability):
    """The real worker, on a device that holds two targets: batches are halved, and the size is kept."""
    config = RunConfig(
        targets=("classes:0-7",), discriminator="vgg16-mini", shard_size=4, width=WIDTH, updates=2, views=1
    )
    plan, render = make_plan(config, network_named("vgg16-mini").layers), config.render_config("float32")
    identity = fingerprint(plan, render, network_named("vgg16-mini"), mini_weights.sha256, None)
    run = Run(open_store(str(tmp_path / "run")))
    info = run.start(identity, config, plan.num_targets, plan.num_shards)
    context = RunContext(run.store.url, info.run_id, plan, render, identity, 4)
    start = time.monotonic()
    progress = Driver(run, info, context, mini_weights, None, Workers(1, 0, 1), worker_class=CrampedWorker).loop()
    assert (progress.shards_done, progress.retries) == (2, 0)
    assert sum(progress.statuses.values()) == 8
    assert (tmp_path / "run-too-large").read_text() == "4", "the second shard begins with two at once"
    reliability(
        "device out of memory", "torch.OutOfMemoryError for more than two targets at once",
        "the batch is halved, later ones begin with that size", None, time.monotonic() - start,
        *lost_and_twice(run, 8),
    )  # fmt: skip


def test_workers_that_never_start_end_the_run(render_with):
    with pytest.raises(Incomplete, match=r"no worker starts, tried 3 times: .*RuntimeError: no such device"):
        render_with(fakes.UnstartableWorker, num_workers=1)


def test_workers_that_never_start_end_the_run_beside_one_that_never_comes(render_with):
    """Ray has room for one at a time, so that others are always still to come."""
    with pytest.raises(Incomplete, match=r"no worker starts, tried \d+ times: .*RuntimeError: no such device"):
        render_with(fakes.UnstartableWorker, num_workers=3, cpus_each=4, start_patience_s=1.0)


def test_a_folder_that_no_worker_sees_ends_the_run(render_with, tmp_path):
    """A machine that joins later may have a folder of its own under that name, and no run in it."""
    run_file = tmp_path / "run" / "run.json"
    run_file.rename(tmp_path / "elsewhere.json")
    with pytest.raises(DgnError, match=r"holds no run instead of the run .*: all machines must share it"):
        render_with(fakes.FakeWorker)


@pytest.mark.slow
def test_some_workers_that_do_not_start_leave_the_run_to_the_others(render_with):
    """Three fail at once, before the fourth is ready: no reason to give up."""
    run, progress = render_with(fakes.SomeUnstartableWorker, num_workers=4)
    assert progress.shards_done == 8
    assert lost_and_twice(run) == (0, 0)


def test_workers_are_chosen_from_the_cluster(monkeypatch):
    connect()
    assert choose_workers(None, None) == Workers(4, 0.0, 1, 4, is_asked=False)
    with pytest.raises(DgnError, match="the cluster has no GPU"):
        choose_workers((0, 8), 1)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert choose_workers((0, 8), 1) == Workers(8, 1, 1.0, 0), "for an autoscaler to start"
    assert choose_workers((1, 2), 0) == Workers(2, 0.0, 2, 1)
    assert choose_workers((2, 2), 0) == Workers(2, 0.0, 2, 2)
    with pytest.raises(DgnError, match="the cluster has no GPU"):
        choose_workers(None, 1)
