"""A batch's pictures: where they start, and what is kept of them."""

from dataclasses import replace

import pytest
import torch

from dgn.method.architecture import Architecture
from dgn.method.batch import Batch, start_batch
from dgn.method.decoder import random_decoder
from dgn.method.loop import render_batch
from dgn.method.recipes import RenderConfig
from tests.conftest import NARROW, WIDTH
from tests.helpers.targets import class_targets


def test_the_papers_pretrained_picture_is_the_median_of_ten_snapshots(paper_config, mini_float64, monkeypatch):
    taken = []
    real = Batch.snapshot
    monkeypatch.setattr(Batch, "snapshot", lambda batch: taken.append(real(batch)) or taken[-1])
    recipe = replace(paper_config.pretrained, width=NARROW, num_updates=22, updates_per_snapshot=2)
    config, decoder = replace(paper_config, pretrained=recipe), random_decoder(NARROW)
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
    config, decoder = replace(quick_config, precision="float64", pretrained=recipe), random_decoder(NARROW)
    targets = class_targets([3, 7, 11], "pretrained")
    together = render_batch(targets, config, mini_float64, decoder)
    for n, target in enumerate(targets):
        alone = render_batch([target], config, mini_float64, decoder)[0]
        assert alone.is_finite
        torch.testing.assert_close(together[n].picture_3HW, alone.picture_3HW, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together[0].picture_3HW, together[1].picture_3HW)


def test_standard_pictures_start_at_the_mean_code_with_a_contrast_of_their_own(mini_float64):
    decoder = random_decoder(WIDTH)
    gamma = decoder[Architecture("pretrained", WIDTH).picture_gamma]
    gamma *= torch.tensor([0.2, -0.4, 0.3])
    decoder["code.mean"] = torch.randn(decoder["code.mean"].shape, generator=torch.Generator().manual_seed(1))
    config = RenderConfig.from_preset("standard", "float64", width=WIDTH)
    batch = start_batch(class_targets([3], "pretrained"), config, mini_float64, decoder)
    assert torch.equal(batch.features(None)[0], decoder["code.mean"].double())
    raw_N3HW = mini_float64.engine.draw(batch.architecture, batch.own, batch.shared, batch.features(None))
    deviations = raw_N3HW.std((0, 2, 3))
    assert deviations.tolist() == pytest.approx([0.87, 0.45, 0.38], rel=1e-3)
    assert torch.equal(batch.shared[batch.architecture.picture_gamma].sign(), gamma.double().sign())
    with torch.no_grad():
        batch.own["alpha"].unflatten(1, (-1, 25))[0, 2, 7] = 1
    moved = (batch.features(None)[0] - decoder["code.mean"]).unflatten(0, (-1, 25)).detach()
    expected = torch.zeros_like(moved)
    expected[:, 7] = decoder["code.directions"][:, 2]
    torch.testing.assert_close(moved, expected)
