"""The generator's layers: Table 1's counts, and sizes as real convolutions have them."""

import pytest
import torch
import torch.nn.functional as F

from dgn.method.architecture import PICTURE_PX, Architecture
from dgn.method.generator import conv_same, initial_weights
from dgn.targets import MODES


@pytest.mark.parametrize(("mode", "count"), [("untrained", 5_240_841), ("pretrained", 3_200)])
def test_trainable_variables_of_table_1(mode, count):
    architecture = Architecture(mode)
    assert architecture.num_trainable == count
    weights = initial_weights(architecture, torch.Generator().manual_seed(0))
    assert sum(weights[name].numel() for name in architecture.trainable) == count


@pytest.mark.parametrize("mode", MODES)
def test_sizes_are_those_of_real_convolutions(mode):
    """Without memory or arithmetic, at full width: each map has the channels and the side that are announced."""
    architecture = Architecture(mode)
    with torch.device("meta"):
        x = torch.empty(1, architecture.feature_channels, 5, 5)
        for i, (conv, px) in enumerate(architecture.convs_with_px()):
            assert x.shape == (1, conv.in_channels, px, px), i
            weight = torch.empty(architecture.shapes()[f"conv{i}.weight"])
            if conv.is_after_upsample:
                x = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight)
            else:
                x = conv_same(x, weight, torch.empty(conv.out_channels))
            assert x.shape == (1, conv.out_channels, conv.out_px(px), conv.out_px(px)), i
    assert x.shape == (1, 3, PICTURE_PX, PICTURE_PX)


def test_width_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="width 9"):
        Architecture("untrained", 9)
