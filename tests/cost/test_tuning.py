"""What is fastest on a device: measured and chosen."""

import pytest
import torch

from dgn.cost import tuning
from dgn.cost.tuned import Variant
from dgn.cost.tuning import BUDGET_S, fastest, has_peaked, measure
from dgn.engine.cpu import CpuEngine
from dgn.errors import DgnError
from dgn.networks.registry import network_named


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0, 2: 0.9, 4: 0.8}, 4),
        ({1: 1.0, 2: 0.8, 4: 0.9}, 2),
        ({1: 1.0, 2: 0.8, 4: 0.79}, 2),
        ({1: 1.0, 2: 0.8, 4: 0.78}, 4),
        ({1: 1.019, 2: 1.0, 4: 1.0}, 1),
        ({4: 3.0}, 4),
    ],
)
def test_the_smaller_batch_wins_a_tie(seconds, best):
    assert fastest(seconds) == best


@pytest.mark.parametrize(
    ("seconds", "peaked"),
    [
        ({1: 1.0}, False),
        ({1: 1.0, 2: 2.0}, False),
        ({1: 1.0, 2: 2.0, 4: 2.0}, True),
        ({4: 1.0, 1: 1.0, 2: 1.0}, True),
        ({1: 1.0, 2: 0.99, 4: 0.985}, True),
        ({1: 1.0, 2: 1.1, 4: 0.9}, False),
        ({1: 1.0, 2: 0.9, 4: 0.95}, False),
        ({1: 1.0, 2: 0.9, 4: 0.95, 8: 0.95}, True),
    ],
)
def test_larger_batches_are_tried_until_two_are_no_better(seconds, peaked):
    assert has_peaked(seconds) is peaked


class Drawn:
    """A device with given seconds per update and target, room for so many targets, and a clock of its own."""

    def __init__(self, monkeypatch, seconds, room=1000):
        self.seconds, self.room, self.now, self.tried = seconds, room, 0.0, []
        monkeypatch.setattr(tuning.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(tuning.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(tuning, "render_batch", self.render_batch)
        monkeypatch.setattr(tuning, "engine_for", self.engine)

    @staticmethod
    def engine(device="cpu", is_winograd=True):
        engine = CpuEngine(is_winograd)
        engine.has_bfloat16 = True
        return engine

    def render_batch(self, targets, config, classifier, decoder, on_update):
        if len(targets) > self.room:
            raise torch.OutOfMemoryError(f"no room for {len(targets)}")
        variant = Variant(targets[0].mode, config.precision, classifier.engine.is_winograd, len(targets))
        for update in range(config.recipe(targets[0].mode).num_updates):
            self.now += self.seconds(variant) * len(targets)
            on_update(update, torch.zeros(len(targets)))

    def tune(self, config):
        return measure(network_named("vgg16-mini"), config, self.tried.append)


def test_precision_and_form_are_chosen_first_then_batches(monkeypatch, quick_config):
    best_of = {"untrained": 2, "pretrained": 8}

    def seconds(v):
        far = abs(v.batch_size - best_of[v.mode])
        return 0.1 + 0.01 * far + (0.02 if v.precision == "float32" else 0) + (0.01 if v.is_winograd else 0)

    device = Drawn(monkeypatch, seconds)
    tuned = device.tune(quick_config)
    assert (tuned.precision, tuned.is_winograd, tuned.is_complete) == ("bfloat16", False, True)
    assert tuned.batch_size == best_of
    assert {variant.batch_size for variant in device.tried[:4]} == {4}
    assert not any(variant.is_winograd for variant in device.tried[3:])
    assert [v.batch_size for v in device.tried if v.mode == "untrained"] == [4, 4, 4, 1, 2, 8]
    assert len(device.tried) == len(set(device.tried)) == len(tuned.timings)
    assert all(timing.seconds == pytest.approx(seconds(timing)) for timing in tuned.timings)
    assert sum(map(tuned.is_winner, tuned.timings)) == 2


def test_a_hopeless_variant_is_abandoned_after_one_step(monkeypatch, quick_config):
    device = Drawn(monkeypatch, lambda v: 10.0 if v.precision == "float32" else 0.01)
    tuned = device.tune(quick_config)
    assert tuned.precision == "bfloat16"
    assert device.now < 2 * 4 * 10 + 10


def test_no_larger_batch_is_tried_once_time_is_up(monkeypatch, quick_config):
    device = Drawn(monkeypatch, lambda v: v.batch_size**-0.1)
    tuned = device.tune(quick_config)
    assert not tuned.is_complete
    assert device.now <= BUDGET_S
    assert tuned.batch_size == {"untrained": 8, "pretrained": 4}


def test_a_variant_ends_once_time_is_up(monkeypatch, quick_config):
    device = Drawn(monkeypatch, lambda v: 13.0)
    tuned = device.tune(quick_config)
    assert [timing.seconds for timing in tuned.timings] == [13.0]
    assert not tuned.is_complete
    assert device.now == 2 * 4 * 13
    assert tuned.batch_size == {}, "nothing to compare it with: the default stays"


def test_no_larger_batch_is_tried_once_memory_is_full(monkeypatch, quick_config):
    device = Drawn(monkeypatch, lambda v: 0.01 / v.batch_size, room=4)
    tuned = device.tune(quick_config)
    assert tuned.batch_size == {"untrained": 4, "pretrained": 4}
    assert tuned.is_complete
    assert sum(variant.batch_size > 4 for variant in device.tried) == 2
    Drawn(monkeypatch, lambda v: 0.01, room=2)
    with pytest.raises(DgnError, match="no memory for 4 targets at once"):
        measure(network_named("vgg16-mini"), quick_config)
