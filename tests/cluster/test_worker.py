"""The real RenderWorker in this process: what it does beside the device's work, and in which thread."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dgn.cluster.context import RunContext
from dgn.cluster.worker import RenderWorker
from dgn.engine.cpu import CpuEngine
from dgn.errors import DgnError, StoreError
from dgn.method import loop
from dgn.networks.registry import network_named
from dgn.pictures.scoring import read_pictures, score
from dgn.runs.config import RunConfig
from dgn.runs.layout import sha256
from dgn.runs.plan import fingerprint, make_plan
from dgn.runs.run import Run
from dgn.runs.stores import open_store, retry_observers
from tests.conftest import WIDTH

NUM_UPDATES = 3


@pytest.fixture
def worker(tmp_path, mini_weights):
    """Two shards of four targets, in batches of two."""
    config = RunConfig(
        targets=("filters:conv3_1:0-7",), discriminator="vgg16-mini", shard_size=4, width=WIDTH, updates=NUM_UPDATES,
        views=1,
    )  # fmt: skip
    plan, render = make_plan(config, network_named("vgg16-mini").layers), config.render_config("float32")
    identity = fingerprint(plan, render, network_named("vgg16-mini"), mini_weights.sha256, None)
    run = Run(open_store(str(tmp_path / "run")))
    info = run.start(identity, config, plan.num_targets, plan.num_shards)
    observers = list(retry_observers)
    yield RenderWorker(RunContext(run.store.url, info.run_id, plan, render, identity, 2), mini_weights, None)
    retry_observers[:] = observers


def rows(worker):
    return [row for table in worker.run.tables(range(2)) for row in table.to_pylist()]


def on_update(worker, do):
    """Calls `do` after each update of a batch."""
    note = worker._note_step

    def noting(*update):
        note(*update)
        if update:  # else a step of saving
            do()

    worker._note_step = noting


def test_a_gpu_without_bfloat16_is_refused_before_its_first_shard(worker, mini_weights, monkeypatch):
    """As it joins a run that began on newer ones. No such GPU is here: the engine of a CPU says that it is one."""

    class OldGpu(CpuEngine):
        is_gpu = True

        def __init__(self):
            super().__init__()
            self.has_bfloat16, self.name = False, "NVIDIA GeForce RTX 2080 Ti"

    monkeypatch.setattr("dgn.cluster.device_worker.engine_for", OldGpu)
    for precision in ("float32", "bfloat16"):
        context = replace(worker.context, render=replace(worker.context.render, precision=precision))
        if precision == "float32":
            RenderWorker(context, mini_weights, None)
        else:
            with pytest.raises(DgnError, match=r"RTX 2080 Ti of .* has no bfloat16 in hardware, which this run draws"):
                RenderWorker(context, mini_weights, None)


def test_rows_describe_the_very_bytes_that_were_written(worker):
    for shard in range(2):
        worker.render(shard, f"attempt{shard}")
        report = worker.finish(f"attempt{shard}")
        assert (report.shard, report.num_pictures, sum(report.statuses.values())) == (shard, 4, 4)
        assert 0 < report.busy_s <= report.span_s
    targets = [target for shard in range(2) for target in worker.context.plan.shard(shard).targets]
    assert [row["target_id"] for row in rows(worker)] == [target.target_id for target in targets]
    for row, target in zip(rows(worker), targets, strict=True):
        png = worker.run.store.read(row["file_name"])
        assert sha256(png) == row["sha256"]
        [scores] = score(read_pictures([png], 224), [target], worker.scorer)
        assert row["activation"] == pytest.approx(scores.activation, rel=1e-4)
        assert row["rank"] == scores.rank
        assert row["unrounded_activation"] == pytest.approx(row["activation"], rel=0.3)
    assert any(row["unrounded_activation"] != row["activation"] for row in rows(worker)), "the tensor's, not the file's"


def test_pictures_are_written_while_the_next_are_optimised(worker):
    """The store takes no picture, but for the last batch's, before the batch after it has been optimised."""
    write, updates = worker.run.store.write, []
    targets = [target.target_id for shard in range(2) for target in worker.context.plan.shard(shard).targets]

    def hesitate(key, data):
        batch, until = targets.index(Path(key).stem) // 2, time.monotonic() + 60
        while len(updates) < NUM_UPDATES * min(batch + 2, 4):
            assert time.monotonic() < until, f"{key} is waited for"
            time.sleep(0.01)
        write(key, data)

    on_update(worker, lambda: updates.append(1))
    worker.run.store.write = hesitate
    for shard in range(2):
        worker.render(shard, f"attempt{shard}")
    assert [worker.finish(f"attempt{shard}").shard for shard in range(2)] == [0, 1]
    assert len(updates) == 4 * NUM_UPDATES
    assert worker.steps == len(updates) + 8, "updates and pictures"


def test_all_work_of_the_device_is_done_in_one_thread(worker, monkeypatch):
    threads = set()
    for owner, name in ((worker.scorer, "scores"), (loop, "render_batch")):
        work = getattr(owner, name)

        def noting(*arguments, work=work, **more):
            threads.add(threading.current_thread().name)
            return work(*arguments, **more)

        monkeypatch.setattr(owner, name, noting)
    worker.render(0, "attempt")
    worker.finish("attempt")
    assert threads == {"device_0"}


@pytest.mark.parametrize(("call", "batch_size"), [("render", 1), ("finish", 4)])
def test_a_store_that_fails_while_pictures_are_saved_raises(call, batch_size, worker):
    """While the shard's later batches are rendered, and at its end where it failed for the last batch."""
    worker.context = replace(worker.context, batch_size=batch_size)
    (Path(worker.run.store.url) / "images").write_text("a file, where a folder has to be")
    refused = pytest.raises(StoreError, match=f"^cannot use {worker.run.store.url}: ")
    on_update(worker, lambda: time.sleep(0.3))
    if call == "render":
        with refused:
            worker.render(0, "attempt")
    else:
        worker.render(0, "attempt")
        with refused:
            worker.finish("attempt")
    assert list(worker.run.store.list("metadata")) == []
