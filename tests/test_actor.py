"""The real RenderActor in this process: what it does beside the device's work, and in which thread."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import dgn.render
from cluster import storage
from cluster.actor import RenderActor
from cluster.context import RunContext
from cluster.plan import RunConfig, fingerprint, make_plan
from cluster.run import Run, sha256
from cluster.storage import open_store
from dgn import picture
from dgn.discriminator import layout
from dgn.errors import StoreError
from tests.conftest import WIDTH

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def actor(tmp_path, mini_weights):
    """Two shards of four targets, in batches of two."""
    config = RunConfig(
        targets=("filters:conv3_1:0-7",), discriminator="vgg16-mini", shard_size=4, width=WIDTH, updates=3, views=1
    )
    plan, render = make_plan(config, layout("vgg16-mini")), config.render_config("float32")
    identity = fingerprint(plan, render, "vgg16-mini", mini_weights.sha256, None)
    run = Run(open_store(str(tmp_path / "run")))
    info = run.start(identity, config, plan.num_targets, plan.num_shards)
    observers = list(storage.retry_observers)
    yield RenderActor(RunContext(run.store.url, info.run_id, plan, render, identity, 2), mini_weights, None)
    storage.retry_observers[:] = observers


def rows(actor):
    return [row for table in actor.run.tables(range(2)) for row in table.to_pylist()]


def test_rows_tell_of_the_very_bytes_that_were_written(actor):
    for shard in range(2):
        actor.render(shard, f"attempt{shard}")
        report = actor.finish(f"attempt{shard}")
        assert (report.shard, report.num_pictures, sum(report.statuses.values()), report.won) == (shard, 4, 4, True)
        assert 0 < report.busy_s <= report.span_s
    targets = [target for shard in range(2) for target in actor.context.plan.shard(shard).targets]
    assert [row["target_id"] for row in rows(actor)] == [target.target_id for target in targets]
    for row, target in zip(rows(actor), targets, strict=True):
        png = actor.run.store.read(row["file_name"])
        assert sha256(png) == row["sha256"]
        [scores] = picture.rescore([png], [target], actor.judge)
        assert row["activation"] == pytest.approx(scores.activation, rel=1e-4)
        assert row["rank"] == scores.rank
        assert row["unrounded_activation"] == pytest.approx(row["activation"], rel=0.3)
    assert any(row["unrounded_activation"] != row["activation"] for row in rows(actor)), (
        "of the tensor, not of the file"
    )


def test_pictures_are_written_while_the_next_are_optimised(actor):
    """The store takes no picture but the last batch's before the batch behind it has been optimised."""
    write, note, updates = actor.run.store.write, actor._note_update, []
    targets = [target.target_id for shard in range(2) for target in actor.context.plan.shard(shard).targets]

    def hesitate(key, data):
        batch, until = targets.index(Path(key).stem) // 2, time.monotonic() + 60
        while len(updates) < 3 * min(batch + 2, 4):
            assert time.monotonic() < until, f"{key} is waited for"
            time.sleep(0.01)
        write(key, data)

    actor._note_update = lambda *update: (note(*update), updates.append(update))
    actor.run.store.write = hesitate
    for shard in range(2):
        actor.render(shard, f"attempt{shard}")
    assert [actor.finish(f"attempt{shard}").won for shard in range(2)] == [True, True]


def test_all_work_of_the_device_is_done_in_one_thread(actor, monkeypatch):
    threads = set()
    for owner, name in ((actor.judge, "scores"), (dgn.render, "render_batch")):
        work = getattr(owner, name)

        def noting(*arguments, work=work, **more):
            threads.add(threading.current_thread().name)
            return work(*arguments, **more)

        monkeypatch.setattr(owner, name, noting)
    actor.render(0, "attempt")
    actor.finish("attempt")
    assert threads == {"device_0"}


@pytest.mark.parametrize(("call", "batch_size"), [("render", 1), ("finish", 4)])
def test_a_store_that_fails_behind_the_rendering_is_told(call, batch_size, actor):
    """While the shard's later batches are rendered, and with the last one at its end."""
    actor.context = replace(actor.context, batch_size=batch_size)
    (Path(actor.run.store.url) / "images").write_text("a file, where a folder has to be")
    note, refused = actor._note_update, pytest.raises(StoreError, match=f"^cannot use {actor.run.store.url}: ")
    actor._note_update = lambda *update: (note(*update), time.sleep(0.3))
    if call == "render":
        with refused:
            actor.render(0, "attempt")
    else:
        actor.render(0, "attempt")
        with refused:
            actor.finish("attempt")
    assert list(actor.run.store.list("metadata")) == []
