"""Workers and runs use what was tuned for their device."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from dgn.cluster.context import RunContext
from dgn.cluster.precision import resolve_precision
from dgn.cluster.worker import RenderWorker
from dgn.cost.tuned import store_tuned, tuned_path
from dgn.method import loop
from dgn.networks.registry import network_named
from dgn.runs.config import RunConfig
from dgn.runs.plan import make_plan
from dgn.runs.stores import retry_observers
from tests.conftest import NARROW
from tests.helpers.tuned import HERE, TUNED


@pytest.fixture
def worker_with(tmp_path, mini_weights):
    observers = list(retry_observers)

    def make(tuned, batch_size=None):
        config = RunConfig(
            targets=("classes:0-7",), discriminator="vgg16-mini", width=NARROW, updates=2, views=1, shard_size=8
        )
        plan, render = make_plan(config, network_named("vgg16-mini").layers), config.render_config("float32")
        context = RunContext(str(tmp_path), "r", plan, render, {}, batch_size, {t.device: t for t in tuned})
        return RenderWorker(context, mini_weights, None)

    yield make
    retry_observers[:] = observers


def test_a_worker_follows_the_entry_of_its_device_and_says_so(worker_with, caplog):
    caplog.set_level(logging.INFO, "dgn")
    worker = worker_with([replace(TUNED, device="another", batch_size={"untrained": 7}), TUNED])
    layer = worker.classifier.layers.class_layer
    assert [worker._batch_size(mode, layer) for mode in ("untrained", "pretrained")] == [2, 1]
    assert worker.classifier.engine.is_winograd is TUNED.is_winograd
    measured = f"measured with {TUNED.discriminator}, preset {TUNED.preset}"
    [said] = [record.getMessage() for record in caplog.records]
    assert said == f"tuned: {HERE} is fastest with {TUNED} ({measured}); the run asks for float32"


def test_a_worker_on_another_device_uses_the_defaults(worker_with, caplog):
    caplog.set_level(logging.INFO, "dgn")
    default, other = worker_with([]), worker_with([replace(TUNED, device="another")])
    layer = default.classifier.layers.class_layer
    assert other.tuned is None
    if other.engine.device.type == "cpu":
        assert other.classifier.engine.is_winograd
        assert other._batch_size("untrained", layer) == default._batch_size("untrained", layer) == 4
    assert not caplog.records


def test_a_mode_that_was_not_measured_has_the_default_size(worker_with):
    worker, default = worker_with([replace(TUNED, batch_size={"untrained": 2})]), worker_with([])
    layer = worker.classifier.layers.class_layer
    assert worker._batch_size("pretrained", layer) == default._batch_size("pretrained", layer)


def test_an_explicit_batch_size_takes_precedence(worker_with, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "dgn.cluster.worker.render_targets", lambda *args, **kwargs: (asked.append(args[4]), iter([]))[1]
    )
    for batch_size in (None, 3):
        worker_with([TUNED], batch_size).render(0, "attempt")
    assert asked == [2, 3]


def test_a_tuned_batch_that_does_not_fit_is_halved(worker_with, monkeypatch):
    render_batch, sizes = loop.render_batch, []

    def cramped(targets, *others):
        sizes.append(len(targets))
        if len(targets) > 2:
            raise torch.OutOfMemoryError(f"no room for {len(targets)} targets")
        return render_batch(targets, *others)

    monkeypatch.setattr(loop, "render_batch", cramped)
    worker = worker_with([replace(TUNED, batch_size={"untrained": 8})])
    worker.render(0, "attempt")
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert list(worker.largest_batch.values()) == [2]


def test_auto_precision_is_the_tuned_one_of_this_machines_device():
    has_gpus = torch.cuda.is_available()
    for precision in ("float32", "bfloat16"):
        tuned = {HERE: replace(TUNED, precision=precision)}
        assert resolve_precision("auto", has_gpus, tuned) == precision
        assert resolve_precision("float32", has_gpus, tuned) == "float32"
    default = resolve_precision("auto", has_gpus)
    other = "float32" if default == "bfloat16" else "bfloat16"
    assert resolve_precision("auto", has_gpus, {"another": replace(TUNED, precision=other)}) == default


@pytest.mark.usefixtures("local_ray")
def test_a_run_takes_the_tuned_precision_and_keeps_it(dgn, tmp_path, monkeypatch):
    monkeypatch.setenv("DGN_TUNED", str(tmp_path / "tuned.json"))
    store_tuned(TUNED, tuned_path())
    line = ["--targets", "classes:0-1", "--modes", "untrained", "--discriminator", "vgg16-mini", "--width", NARROW,
            "--updates", 2, "--views", 1, "--workers", 1]  # fmt: skip
    for name, flags, precision in (("a", [], "float32"), ("b", ["--precision", "bfloat16"], "bfloat16")):
        code, _, err = dgn("render", tmp_path / name, *line, *flags)
        assert code == 0, err
        assert json.loads((tmp_path / name / "run.json").read_text())["config"]["precision"] == precision
    store_tuned(replace(TUNED, precision="bfloat16"), tuned_path())
    assert dgn("render", tmp_path / "a", *line)[0] == 0, "a run that has started keeps its precision"
