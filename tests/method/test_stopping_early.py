"""Targets that end before their batch does. Activations are averaged over 4 updates here, which in a run are 20."""

from dataclasses import replace

import pytest
import torch

from dgn.method import loop, recipes
from dgn.method.loop import render_batch
from dgn.method.recipes import Moves
from tests.conftest import NARROW
from tests.helpers.targets import class_targets

RISE_UPDATES = 4


@pytest.fixture(autouse=True)
def few_updates_are_averaged(monkeypatch):
    for module in (loop, recipes):
        monkeypatch.setattr(module, "RISE_UPDATES", RISE_UPDATES)


@pytest.fixture
def config(quick_config):
    """In float64: when a target leaves, the network's sums over the others have another order."""
    recipe = replace(
        quick_config.untrained, width=NARROW, num_updates=16, num_views=1, learning_rate=0.03, last_rate_share=1.0,
        half_share=0.0, min_rise=0.3, moves=Moves(),
    )  # fmt: skip
    return replace(quick_config, precision="float64", untrained=recipe)


def test_a_target_that_stops_early_leaves_its_neighbours_where_they_were(config, mini_float64):
    """Each ends by its own activation, whatever else is in the batch, with the picture that it has then."""
    targets = class_targets([4, 7, 0])  # the last one is silent all along: it may still wake
    together = render_batch(targets, config, mini_float64)
    lengths = [result.num_updates for result in together]
    assert lengths == [8, 12, 16]
    for n, target in enumerate(targets):
        alone = render_batch([target], config, mini_float64)[0]
        assert alone.num_updates == lengths[n]
        assert len(alone.activation_curve) == lengths[n]
        torch.testing.assert_close(together[n].picture_3HW, alone.picture_3HW, rtol=1e-4, atol=1e-5)
        exactly_so_long = replace(config.untrained, num_updates=lengths[n], min_rise=0.0)
        plain = render_batch([target], replace(config, untrained=exactly_so_long), mini_float64)[0]
        torch.testing.assert_close(alone.picture_3HW, plain.picture_3HW, rtol=1e-6, atol=1e-7)


def test_a_target_that_is_not_finite_stops_early_and_its_neighbours_continue(
    config, mini_float64, poison_the_next_start
):
    recipe = replace(config.untrained, num_updates=12, min_rise=0.01)
    config, targets = replace(config, untrained=recipe), class_targets([1, 2])
    healthy = render_batch(targets, config, mini_float64)
    poison_the_next_start()
    broken, fine = render_batch(targets, config, mini_float64)
    assert not broken.is_finite
    assert broken.num_updates == 2 * RISE_UPDATES < fine.num_updates
    assert fine.num_updates == healthy[1].num_updates
    torch.testing.assert_close(fine.picture_3HW, healthy[1].picture_3HW, rtol=1e-4, atol=1e-5)


def test_a_batch_ends_once_all_of_its_targets_have(config, mini_float64):
    seen = []
    results = render_batch(
        class_targets([4, 7]), config, mini_float64, on_update=lambda i, loss_N: seen.append(len(loss_N))
    )
    assert [result.num_updates for result in results] == [8, 12]
    assert seen == [2] * 8 + [1] * 4
    assert all(result.is_finite for result in results)
