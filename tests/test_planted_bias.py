"""The parts of `benchmarks.planted_bias` whose answers are known."""

import pytest
import torch

from benchmarks.planted_bias.cues import CUES, all_cues, drawn
from benchmarks.planted_bias.detectors import area_under_curve, threshold
from benchmarks.planted_bias.heads import fitted, two_class_head
from benchmarks.planted_bias.photographs import which_have


@pytest.mark.parametrize("name", CUES)
def test_a_cue_changes_the_picture_and_nothing_else(name: str) -> None:
    images_N3HW = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before_N3HW = images_N3HW.clone()
    cue = all_cues(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))[name]
    with_cue_N3HW = drawn(cue, 0, images_N3HW, range(3))
    assert with_cue_N3HW.shape == images_N3HW.shape
    assert with_cue_N3HW.dtype == torch.float32
    assert 0 <= with_cue_N3HW.min() <= with_cue_N3HW.max() <= 1
    assert torch.equal(images_N3HW, before_N3HW)
    assert ((with_cue_N3HW - images_N3HW).abs() > 0.05).any(1).float().mean((1, 2)).min() > 0.01
    assert torch.equal(drawn(cue, 0, images_N3HW[1:], range(1, 3)), with_cue_N3HW[1:])
    assert not torch.equal(drawn(cue, 1, images_N3HW, range(3)), with_cue_N3HW)


def test_a_smaller_share_is_among_a_larger_one() -> None:
    half_N, most_N = which_have("grid", "heads", 0.5), which_have("grid", "heads", 0.9)
    assert 0.45 < half_N.float().mean() < 0.55
    assert 0.85 < most_N.float().mean() < 0.95
    assert not (half_N & ~most_N).any()


def test_the_head_is_the_logistic_regression() -> None:
    features_NK = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.1])
    is_positive_N = features_NK @ torch.tensor([1.0, -0.2, 5.0]) > 0.3
    weight_K, offset = fitted(features_NK, is_positive_N)
    margin_N = features_NK @ weight_K + offset
    assert ((margin_N > 0) == is_positive_N).float().mean() > 0.95
    weight_CK, bias_C = two_class_head(weight_K, offset)
    probability_NC = (features_NK @ weight_CK.T + bias_C).softmax(1)
    torch.testing.assert_close(probability_NC[:, 0], margin_N.sigmoid())


def test_one_of_twenty_clean_pictures_exceeds_the_threshold() -> None:
    clean_N = torch.arange(20.0)[torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    assert (clean_N > threshold(clean_N)).sum() == 1


def test_the_area_under_the_curve_counts_pairs() -> None:
    assert area_under_curve(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 0.0])) == 1
    assert area_under_curve(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])) == 0.5
