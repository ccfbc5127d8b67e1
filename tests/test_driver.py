"""The driver on a real Ray: retries, quarantine, deaths, deadlines, stragglers."""

import pytest

from cluster import driver
from cluster.actor import RunContext
from cluster.driver import Driver, Workers, choose_workers, connect
from cluster.plan import RunConfig, fingerprint, make_plan
from cluster.run import Run
from cluster.storage import open_store
from dgn.discriminator import layout
from dgn.errors import DgnError
from tests import fakes

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

    def render(actor_class, num_workers=2, **arguments):
        driving = Driver(
            run, info, context, None, None, Workers(num_workers, 0, 1), actor_class=actor_class, **arguments
        )
        return run, driving.loop()

    return render


def target_ids(run):
    committed = run.committed(8)
    return [
        i
        for t in run.tables((s for s in range(8) if s in committed), ["target_id"])
        for i in t["target_id"].to_pylist()
    ]


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


def test_poison_is_quarantined_after_three_attempts_and_the_rest_finishes(render_with):
    run, progress = render_with(fakes.PoisonActor)
    assert sorted(progress.quarantined) == [1, 2]
    assert progress.shards_done == 6
    failures = list(run.failures())
    attempts = [f["shard"] for f in failures]
    assert (attempts.count(1), attempts.count(2), attempts.count(3)) == (3, 3, 1)
    poison = next(f for f in failures if f["shard"] == 1)
    assert poison["error"].startswith("RuntimeError: ")
    assert "this shard is poison" in poison["traceback"]


def test_an_answer_lost_after_the_commit_makes_no_second_picture(render_with, monkeypatch):
    monkeypatch.setattr(driver, "STRAGGLER_FACTOR", 1e9)  # a duplicate killed at the end would leave pictures for gc
    run, progress = render_with(fakes.LostAnswerActor)
    assert progress.shards_done == 8
    assert len(target_ids(run)) == len(set(target_ids(run))) == 16
    assert len(list(run.store.list("images"))) == 16


def test_a_hanging_shard_is_given_to_another_worker(render_with, monkeypatch):
    monkeypatch.setattr(driver, "FIRST_DEADLINE_S", 8.0)
    monkeypatch.setattr(driver, "MIN_DEADLINE_S", 8.0)
    run, progress = render_with(fakes.HangingActor, num_workers=1)
    assert progress.shards_done == 8
    assert any("no answer within 8 s" in f["error"] for f in run.failures())


def test_a_straggler_is_duplicated_at_the_tail(render_with):
    run, progress = render_with(fakes.HangingActor)
    assert progress.shards_done == 8
    assert progress.retries == 0
    assert len(target_ids(run)) == len(set(target_ids(run))) == 16


def test_workers_that_never_start_end_the_run(render_with):
    with pytest.raises(Exception, match="no such device"):
        render_with(fakes.UnstartableActor)


def test_workers_are_chosen_from_the_cluster():
    connect()
    assert choose_workers(None, None) == Workers(1, 0.0, 4)
    assert choose_workers(2, 0) == Workers(2, 0.0, 2)
    with pytest.raises(DgnError, match="the cluster has no GPU"):
        choose_workers(None, 1)
