"""A batch's pictures: where they start, and what is kept of them."""

import math
from dataclasses import replace

import pytest
import torch

from dgn.errors import DgnError
from dgn.method.architecture import Architecture
from dgn.method.batch import Batch, start_batch
from dgn.method.colours import from_axes
from dgn.method.decoder import random_decoder
from dgn.method.lapped import LappedTransform
from dgn.method.loop import render_batch
from dgn.method.recipes import RenderConfig
from tests.conftest import NARROW, WIDTH
from tests.helpers.targets import class_targets


def test_the_papers_pretrained_picture_is_the_median_of_ten_snapshots(paper_config, mini_float64, monkeypatch):
    taken = []
    real = Batch.snapshot
    monkeypatch.setattr(Batch, "snapshot", lambda batch: taken.append(real(batch)) or taken[-1])
    recipe = replace(paper_config.pretrained, width=NARROW, num_updates=22, updates_per_snapshot=2)
    config, decoder = replace(paper_config, pretrained=recipe), random_decoder(recipe)
    result = render_batch(class_targets([0], "pretrained"), config, mini_float64, decoder)[0]
    assert len(taken) == 10
    assert torch.equal(result.picture_3HW, torch.stack(taken).median(0).values[0])


def test_notebook_tone_mapping_uses_the_whole_range(paper_config, mini_float64):
    recipe = replace(paper_config.untrained, width=NARROW, num_updates=2, tone_mapping="notebook")
    picture = render_batch(class_targets([0]), replace(paper_config, untrained=recipe), mini_float64)[0].picture_3HW
    assert picture.min() == 0
    assert picture.max() == pytest.approx(1)


@pytest.mark.parametrize("preset", ["standard", "paper"])
def test_both_ways_to_use_a_decoder_keep_targets_apart(preset, quick_config, mini_float64):
    recipe = RenderConfig.from_preset(preset, "float64", width=NARROW, num_updates=3).pretrained
    config, decoder = replace(quick_config, precision="float64", pretrained=recipe), random_decoder(recipe)
    targets = class_targets([3, 7, 11], "pretrained")
    together = render_batch(targets, config, mini_float64, decoder)
    for n, target in enumerate(targets):
        alone = render_batch([target], config, mini_float64, decoder)[0]
        assert alone.is_finite
        torch.testing.assert_close(together[n].picture_3HW, alone.picture_3HW, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together[0].picture_3HW, together[1].picture_3HW)


def started(config, network):
    """A batch of one target at its start, and the decoder."""
    decoder = random_decoder(config.pretrained)
    architecture = Architecture("pretrained", WIDTH, generator=config.pretrained.generator)
    stream = torch.Generator().manual_seed(1)
    decoder["code.mean"] = torch.randn(architecture.num_features, generator=stream)
    if config.pretrained.generator == "convolutions":  # of an earlier file
        channels = architecture.feature_channels
        decoder["code.directions"] = torch.randn(channels, channels, generator=stream)
    return start_batch(class_targets([3], "pretrained"), config, network, decoder), decoder


def moved_by(batch, decoder, number, step):
    """How the code changes where one of alpha's numbers is `step`."""
    with torch.no_grad():
        batch.own["alpha"][0, number] = step
    return (batch.features(None)[0] - decoder["code.mean"]).detach()


def test_standard_steps_from_the_mean_code_stay_within_three_deviations(mini_float64):
    batch, decoder = started(RenderConfig.from_preset("standard", "float64", width=WIDTH), mini_float64)
    assert torch.equal(batch.features(None)[0], decoder["code.mean"].double())
    for step in (0.01, 1.0, 50.0):
        moved = moved_by(batch, decoder, 39, step)
        expected = torch.zeros_like(moved)
        expected[39] = 3 * math.tanh(step / 3) * decoder["code.deviations"][39]
        torch.testing.assert_close(moved, expected)


def test_standard_pictures_are_sums_of_windows_whatever_the_precision(mini_float64, mini):
    batch, decoder = started(RenderConfig.from_preset("standard", "float64", width=WIDTH), mini_float64)
    transform = LappedTransform.of({name: tensor.double() for name, tensor in decoder.items()})
    wanted = from_axes(transform.decode(batch.features(None), 224)).clamp(0, 1)
    torch.testing.assert_close(batch.pictures(None, 224), wanted)
    batch, _ = started(RenderConfig.from_preset("standard", "bfloat16", width=WIDTH), mini)
    torch.testing.assert_close(batch.pictures(None, 224), wanted.float(), atol=1e-4, rtol=0)


def test_recipes_of_earlier_runs_keep_their_contrast_and_have_no_limit(mini_float64):
    earlier = replace(
        RenderConfig.from_preset("standard").pretrained,
        width=WIDTH, code_limit=None, generator="convolutions", contrast=(0.87, 0.45, 0.38),
    )  # fmt: skip
    config = replace(RenderConfig.from_preset("standard", "float64"), pretrained=earlier)
    batch, decoder = started(config, mini_float64)
    drawn = mini_float64.engine.draw(batch.architecture, batch.own, batch.shared, batch.features(None))
    assert drawn.std((0, 2, 3)).tolist() == pytest.approx([0.87, 0.45, 0.38], rel=1e-3)
    moved = moved_by(batch, decoder, 2 * 25 + 7, 5.0).unflatten(0, (-1, 25))  # the third channel at the eighth place
    torch.testing.assert_close(moved[:, 7], 5 * decoder["code.directions"][:, 2].double())


def test_limits_and_windows_need_a_code_whose_deviations_are_known():
    paper = RenderConfig.from_preset("paper").pretrained
    with pytest.raises(DgnError, match="limit 3 for a code of ones"):
        replace(paper, code_limit=3.0)
    with pytest.raises(DgnError, match="code ones or contrast None for windows"):
        replace(paper, generator="windows")
