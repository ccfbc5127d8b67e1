"""The driver on a real Ray: retries, quarantine, deaths, deadlines, stragglers."""

import time

import pytest

from cluster import driver
from cluster.context import RunContext
from cluster.driver import Driver
from cluster.fleet import Workers, choose_workers, connect
from cluster.plan import RunConfig, fingerprint, make_plan
from cluster.run import Run
from cluster.storage import open_store
from dgn.discriminator import layout
from dgn.errors import DgnError, ShardFailed
from tests import fakes
from tests.conftest import WIDTH
from tests.cramped import CrampedActor

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def render_with(tmp_path):
    """Renders eight shards of two targets with a fake actor."""
    config = RunConfig(targets=("classes:0-15",), discriminator="vgg16-mini", shard_size=2)
    plan = make_plan(config, layout("vgg16-mini"))
    identity = fingerprint(plan, config.render_config("float32"), "vgg16-mini", "", None)
    run = Run(open_store(str(tmp_path / "run")))
    run.store.check(must_write=True)
    info = run.start(identity, config, plan.num_targets, plan.num_shards)
    context = RunContext(run.store.url, info.run_id, plan, config.render_config("float32"), identity, 1)

    def render(actor_class, num_workers=2, cpus_each=1, **arguments):
        driving = Driver(
            run, info, context, None, None, Workers(num_workers, 0, cpus_each), actor_class=actor_class, **arguments
        )
        return run, driving.loop()

    return render


def target_ids(run):
    num_shards = run.info().num_shards
    committed = run.committed(num_shards)
    return [
        i
        for t in run.tables((s for s in range(num_shards) if s in committed), ["target_id"])
        for i in t["target_id"].to_pylist()
    ]


def lost_and_twice(run, num_targets=16):
    """Of the targets that were to come out whole."""
    ids = target_ids(run)
    return num_targets - len(set(ids)), len(ids) - len(set(ids))


def test_every_shard_is_rendered_once_and_progress_is_told(render_with):
    seen = []
    run, progress = render_with(fakes.FakeActor, observe=lambda p: seen.append(p.pictures_done))
    assert len(target_ids(run)) == len(set(target_ids(run))) == progress.pictures_done == 16
    assert (seen[0], seen[-1]) == (0, 16)
    assert progress.statuses == {"ok": 16}
    assert progress.retries == 0


def test_nothing_is_rendered_again(render_with):
    render_with(fakes.FakeActor)
    run, progress = render_with(fakes.UnstartableActor)
    assert progress.shards_done == 8
    assert len(target_ids(run)) == 16


@pytest.fixture
def no_stragglers(monkeypatch):
    """Shards of milliseconds are soon called slow; an attempt more would be counted, or killed and leave pictures."""
    monkeypatch.setattr(driver, "STRAGGLER_FACTOR", 1e9)


@pytest.mark.usefixtures("no_stragglers")
def test_poison_is_quarantined_after_three_attempts_and_the_rest_finishes(render_with, reliability):
    start, seen = time.monotonic(), []
    watch = lambda p: seen.append((time.monotonic() - start, len(p.quarantined)))  # noqa: E731
    run, progress = render_with(fakes.PoisonActor, observe=watch)
    assert sorted(progress.quarantined) == [1, 2]
    assert progress.shards_done == 6
    failures = list(run.failures())
    attempts = [f["shard"] for f in failures]
    assert (attempts.count(1), attempts.count(2), attempts.count(3)) == (3, 3, 1)
    poison = next(f for f in failures if f["shard"] == 1)
    assert poison["error"].startswith("RuntimeError: ")
    assert "this shard is poison" in poison["traceback"]
    reliability(
        "a shard that always kills its worker", "os._exit in one shard, an exception in another",
        "three attempts, then quarantined with its reasons; the other six finish, exit code 1",
        next(at for at, count in seen if count), time.monotonic() - start, *lost_and_twice(run, 12),
    )  # fmt: skip


@pytest.mark.usefixtures("no_stragglers")
def test_an_answer_lost_after_the_commit_makes_no_second_picture(render_with):
    run, progress = render_with(fakes.LostAnswerActor)
    assert progress.shards_done == 8
    assert len(target_ids(run)) == len(set(target_ids(run))) == 16
    assert len(list(run.store.list("images"))) == 16


@pytest.mark.usefixtures("no_stragglers")
def test_the_next_shard_is_rendered_while_one_is_saved_and_no_third_is_begun(render_with):
    run, progress = render_with(fakes.OverlappingActor, num_workers=1)
    assert (progress.shards_done, progress.retries) == (8, 0)
    assert list(run.failures()) == []


def causes(run):
    return {(f["shard"], f["cause"]) for f in run.failures()}


@pytest.mark.usefixtures("no_stragglers")
def test_a_death_with_two_shards_under_way_is_charged_to_the_one_that_is_rendered(render_with, reliability):
    start, seen = time.monotonic(), []
    watch = lambda p: seen.append((time.monotonic() - start, p.retries))  # noqa: E731
    run, progress = render_with(fakes.FragileActor, num_workers=1, observe=watch)
    assert (progress.shards_done, progress.quarantined, progress.retries) == (8, [], 2)
    assert causes(run) == {(2, "worker"), (3, "error")}
    assert len(list(run.store.list("images"))) == 16
    reliability(
        "worker dies with one shard rendered and another half", "os._exit while a shard is saved",
        "both begin again; charged to the one that was being rendered",
        next(at for at, retries in seen if retries), time.monotonic() - start, *lost_and_twice(run),
    )  # fmt: skip


@pytest.mark.usefixtures("no_stragglers")
def test_a_store_that_fails_behind_the_rendering_is_charged_to_nobody(render_with, monkeypatch):
    monkeypatch.setattr(driver, "STORE_PAUSE_S", 0.1)
    run, progress = render_with(fakes.ForgetfulStoreActor, num_workers=1)
    assert (progress.shards_done, progress.quarantined, progress.retries) == (8, [], 1)
    assert causes(run) == {(2, "storage")}
    assert lost_and_twice(run) == (0, 0)


def test_a_hanging_shard_is_given_to_another_worker(render_with, monkeypatch, reliability):
    monkeypatch.setattr(driver, "SILENCE_S", 8.0)
    start, seen = time.monotonic(), []
    watch = lambda p: seen.append((time.monotonic() - start, p.retries))  # noqa: E731
    run, progress = render_with(fakes.HangingActor, num_workers=1, observe=watch)
    assert progress.shards_done == 8
    reliability(
        "hanging shard", "a sleep of ten minutes; the deadline here 8 s without a step of work (by default 10 minutes)",
        "its worker is ended, the shard tried again", next(at for at, retries in seen if retries),
        time.monotonic() - start, *lost_and_twice(run),
    )  # fmt: skip
    assert any("no sign of work for 8 s" in f["error"] for f in run.failures())


@pytest.mark.usefixtures("no_stragglers")
def test_a_long_shard_is_left_alone_while_its_work_goes_on(render_with, monkeypatch):
    """Twelve seconds of steps, where silence of five is a hang."""
    monkeypatch.setattr(driver, "SILENCE_S", 5.0)
    monkeypatch.setattr(driver, "PULSE_S", 1.0)
    run, progress = render_with(fakes.BusyActor)
    assert (progress.shards_done, progress.retries) == (8, 0)
    assert list(run.failures()) == []


def test_a_straggler_is_duplicated_at_the_tail(render_with, reliability, caplog):
    start = time.time()
    with caplog.at_level("INFO", logger="dgn"):
        run, progress = render_with(fakes.HangingActor)
    noticed = next(record for record in caplog.records if "begins a second time" in record.getMessage())
    reliability(
        "straggler at the tail", "a sleep of ten minutes in one of eight shards",
        "an idle worker does it too, the first commit counts", noticed.created - start, time.time() - start,
        *lost_and_twice(run),
    )  # fmt: skip
    assert progress.shards_done == 8
    assert progress.retries == 0
    assert len(target_ids(run)) == len(set(target_ids(run))) == 16


@pytest.mark.usefixtures("no_stragglers")
def test_a_device_without_room_for_a_target(render_with, reliability):
    start = time.monotonic()
    run, progress = render_with(fakes.FullDeviceActor)
    assert progress.quarantined == [2]
    assert [f["cause"] for f in run.failures()] == ["memory"] * 3
    reliability(
        "device too small for one target", "torch.OutOfMemoryError in one shard",
        "charged, quarantined after three; the rest finishes", None, time.monotonic() - start,
        *lost_and_twice(run, 14),
    )  # fmt: skip


def test_a_device_without_room_for_a_batch(tmp_path, mini_weights, reliability):
    """The real renderer, on a device that holds two targets: batches are halved, and the size is kept."""
    config = RunConfig(
        targets=("classes:0-7",), discriminator="vgg16-mini", shard_size=4, width=WIDTH, updates=2, views=1
    )
    plan, render = make_plan(config, layout("vgg16-mini")), config.render_config("float32")
    identity = fingerprint(plan, render, "vgg16-mini", mini_weights.sha256, None)
    run = Run(open_store(str(tmp_path / "run")))
    info = run.start(identity, config, plan.num_targets, plan.num_shards)
    context = RunContext(run.store.url, info.run_id, plan, render, identity, 4)
    start = time.monotonic()
    progress = Driver(run, info, context, mini_weights, None, Workers(1, 0, 1), actor_class=CrampedActor).loop()
    assert (progress.shards_done, progress.retries) == (2, 0)
    assert sum(progress.statuses.values()) == 8
    assert (tmp_path / "run-too-large").read_text() == "4", "the second shard begins with two at once"
    reliability(
        "device out of memory", "torch.OutOfMemoryError for more than two targets at once",
        "the batch is halved, later ones begin with that size", None, time.monotonic() - start,
        *lost_and_twice(run, 8),
    )  # fmt: skip


def test_workers_that_never_start_end_the_run(render_with):
    with pytest.raises(ShardFailed, match=r"no worker starts, tried 3 times: .*no such device"):
        render_with(fakes.UnstartableActor, num_workers=1)


def test_workers_that_never_start_end_the_run_beside_one_that_never_comes(render_with, monkeypatch):
    """Ray has room for one at a time, so that others are always still to come."""
    monkeypatch.setattr(driver, "START_PATIENCE_S", 5.0)
    with pytest.raises(ShardFailed, match=r"no worker starts, tried .*no such device"):
        render_with(fakes.UnstartableActor, num_workers=3, cpus_each=4)


def test_a_folder_that_no_worker_sees_ends_the_run(render_with, tmp_path):
    """As that of a machine which joins later, with a folder of its own: there it holds no run."""
    run_file = tmp_path / "run" / "run.json"
    run_file.rename(tmp_path / "elsewhere.json")
    with pytest.raises(DgnError, match=r"holds no run, .*all machines have to share it"):
        render_with(fakes.FakeActor)


@pytest.mark.slow
def test_some_workers_that_do_not_start_leave_the_run_to_the_others(render_with):
    """Three fail at once, before the fourth is ready: no reason to give up."""
    run, progress = render_with(fakes.SomeUnstartableActor, num_workers=4)
    assert progress.shards_done == 8
    assert lost_and_twice(run) == (0, 0)


def test_a_store_that_only_one_worker_cannot_use(render_with, monkeypatch):
    """Its shards go to others, uncharged, behind those that nobody has tried."""
    monkeypatch.setattr(driver, "STORE_PAUSE_S", 0.1)
    run, progress = render_with(fakes.ShutOutActor)
    assert (progress.shards_done, progress.quarantined) == (8, [])
    assert {f["cause"] for f in run.failures()} == {"storage"}
    assert lost_and_twice(run) == (0, 0)


def test_workers_are_chosen_from_the_cluster(monkeypatch):
    connect()
    assert choose_workers(None, None) == Workers(1, 0.0, 4, 1, is_asked=False)
    with pytest.raises(DgnError, match="the cluster has no GPU"):
        choose_workers((0, 8), 1)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert choose_workers((0, 8), 1) == Workers(8, 1, 1.0, 0), "for an autoscaler to start"
    assert choose_workers((1, 2), 0) == Workers(2, 0.0, 2, 1)
    assert choose_workers((2, 2), 0) == Workers(2, 0.0, 2, 2)
    with pytest.raises(DgnError, match="the cluster has no GPU"):
        choose_workers(None, 1)
