"""Presets, and settings that contradict each other."""

import pytest

from dgn.errors import DgnError
from dgn.method.recipes import PRESETS, RenderConfig


def test_presets_are_table_1():
    paper = PRESETS["paper"]
    assert (paper["untrained"].learning_rate, paper["untrained"].noise_sigma) == (0.002, 2.0)
    assert (paper["pretrained"].learning_rate, paper["pretrained"].noise_sigma) == (0.01, 0.05)
    assert (paper["untrained"].num_updates, paper["pretrained"].num_updates) == (500, 1200)
    with pytest.raises(DgnError, match="unknown preset 'best'"):
        RenderConfig.from_preset("best")


def test_stopping_early_has_its_range_and_one_snapshot():
    assert not any(recipe.min_rise for recipes in PRESETS.values() for recipe in recipes.values())
    with pytest.raises(DgnError, match=r"smallest rise 1\.5"):
        RenderConfig.from_preset("standard", min_rise=1.5)
    with pytest.raises(DgnError, match="preset paper cannot stop early"):
        RenderConfig.from_preset("paper", min_rise=0.01)
    with pytest.raises(DgnError, match="40 updates are too few to stop early"):
        RenderConfig.from_preset("draft", min_rise=0.01, num_updates=40)
    assert RenderConfig.from_preset("draft", min_rise=0.01).pretrained.min_rise == 0.01


def test_the_learning_rate_falls_along_half_a_cosine():
    recipe = RenderConfig.from_preset("standard", num_updates=100, learning_rate=2.0, last_rate_share=0.1).untrained
    assert [recipe.rate(update) for update in (0, 50, 100)] == pytest.approx([2.0, 1.1, 0.2])
    assert RenderConfig.from_preset("paper").untrained.rate(400) == 0.002
    with pytest.raises(DgnError, match="optimiser sgd with a learning rate that falls: expected adamax"):
        RenderConfig.from_preset("paper", last_rate_share=0.1)
