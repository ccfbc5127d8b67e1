"""Where codes of windows begin: at the photograph's whose picture excites the target most."""

from dataclasses import replace
from weakref import WeakKeyDictionary

import pytest
import torch

from dgn.method import starts
from dgn.method.batch import start_batch
from dgn.method.colours import from_axes
from dgn.method.decoder import random_decoder, read_decoder, serialise
from dgn.method.lapped import LappedTransform
from dgn.method.loop import render_batch
from dgn.method.recipes import RenderConfig
from dgn.targets import Directions, Target, WeightedUnit
from tests.conftest import WIDTH
from tests.helpers.targets import class_targets

CONFIG = RenderConfig.from_preset("standard", "float64", width=WIDTH)
NUM_STARTS = 20  # more than the network sees at a time


@pytest.fixture(scope="module")
def decoder():
    decoder = random_decoder(CONFIG.pretrained)
    stream = torch.Generator().manual_seed(2)
    decoder["code.mean"] = torch.randn(len(decoder["code.mean"]), generator=stream)
    decoder["code.starts"] = 1.5 * torch.randn(NUM_STARTS, decoder["code.starts"].shape[1], generator=stream)
    return decoder


def photographs(decoder):
    """Pictures of all starts by a plain loop: (M, 3, 224, 224)."""
    wide = {name: tensor.double() for name, tensor in decoder.items()}
    transform, count = LappedTransform.of(wide), wide["code.starts"].shape[1]
    pictures = []
    for steps in wide["code.starts"]:
        code = wide["code.mean"].clone()
        code[:count] += wide["code.deviations"][:count] * steps.clamp(-2.91, 2.91)
        pictures.append(from_axes(transform.decode(code[None], 224)).clamp(0, 1)[0])
    return torch.stack(pictures)


def test_each_target_begins_at_the_best_photograph(mini_float64, decoder):
    direction = Directions("fc8", ("d",), torch.randn(1, 24, generator=torch.Generator().manual_seed(3)).numpy())
    targets = {
        "sum": [*class_targets([3, 7, 11, 2], "pretrained"), Target((WeightedUnit("fc8", 1, -1.0),), "pretrained", 0)],
        "cosine": [Target(direction[0], "pretrained", 0, "cosine", "d")],
    }
    pictures = photographs(decoder)
    response_MU = mini_float64.scores(pictures, "fc8")[0].double()
    found = set()
    for measure, some in targets.items():
        batch = start_batch(some, CONFIG, mini_float64, decoder)
        for n, target in enumerate(some):
            wanted_U = torch.zeros(24).double()
            for unit in target.units:
                wanted_U[unit.unit] = unit.weight
            along_M = response_MU @ wanted_U
            if measure == "cosine":
                along_M = along_M / response_MU.norm(dim=1)
            best = int(along_M.argmax())
            found.add(best)
            torch.testing.assert_close(batch.pictures(None, 224)[n], pictures[best])
    assert len(found) > 2


def test_a_batch_begins_as_each_of_its_targets_does(mini_float64, decoder):
    config = replace(CONFIG, pretrained=replace(CONFIG.pretrained, num_updates=2, num_views=1))
    targets = class_targets([3, 7], "pretrained")
    together = render_batch(targets, config, mini_float64, decoder)
    for target, one in zip(targets, together, strict=True):
        [alone] = render_batch([target], config, mini_float64, decoder)
        torch.testing.assert_close(one.picture_3HW, alone.picture_3HW, rtol=1e-5, atol=1e-6)


def test_photographs_are_looked_at_once_per_layer(mini_float64, decoder, monkeypatch):
    monkeypatch.setattr(starts, "_seen", WeakKeyDictionary())
    looks = []
    real = mini_float64.responses
    monkeypatch.setattr(
        mini_float64, "responses", lambda pictures, layers: looks.append(layers) or real(pictures, layers)
    )
    for units in ([1], [2, 3]):
        start_batch(class_targets(units, "pretrained"), CONFIG, mini_float64, decoder)
    assert looks == [["fc8"]] * 2, "20 photographs, 16 at a time"
    other = {**decoder, "code.starts": decoder["code.starts"].flip(0)}
    start_batch(class_targets([1], "pretrained"), CONFIG, mini_float64, other)
    start_batch([Target((WeightedUnit("conv1_1", 1),), "pretrained", 0)], CONFIG, mini_float64, other)
    assert looks[2:] == [["fc8"], ["fc8"], ["conv1_1"], ["conv1_1"]]


def test_without_photographs_codes_begin_at_the_mean(mini_float64, decoder):
    without = {**decoder, "code.starts": decoder["code.starts"][:0]}
    batch = start_batch(class_targets([3], "pretrained"), CONFIG, mini_float64, without)
    assert torch.equal(batch.features(None)[0], decoder["code.mean"].double())


def test_starts_are_kept_in_eight_bits(decoder):
    again = read_decoder(serialise(decoder, {"width": WIDTH}), "it").weights["code.starts"]
    torch.testing.assert_close(again, decoder["code.starts"].clamp(-127 / 42, 127 / 42), atol=0.5 / 42 + 1e-6, rtol=0)
