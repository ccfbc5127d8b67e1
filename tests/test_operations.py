"""Operations of one update, counted while it runs on a CPU: what was saved once stays saved.

A multiply-add counts as two, convolutions and matrix products only. The limits are what they came to, and a tenth.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dgn import render
from dgn.decoder import random_decoder
from dgn.discriminator import Discriminator, FrozenWeights, bare_network, layout
from dgn.recipes import RenderConfig
from dgn.targets import Target, WeightedUnit


def counted(network, preset, mode):
    state = bare_network(network).state_dict()
    weights = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()}
    discriminator = Discriminator(FrozenWeights(network, weights, "", "zeros"), dtype=torch.bfloat16)
    config = RenderConfig.from_preset(preset, "bfloat16")
    decoder = random_decoder(config.pretrained.width) if mode == "pretrained" else None
    target = Target((WeightedUnit(layout(network).class_layer, 3),), mode, 0)
    batch = render._Batch.start([target], config, discriminator, decoder)
    optimiser = render.make_optimiser(batch.recipe, batch.own)
    with FlopCounterMode(display=False) as counter:
        batch.update(optimiser, *batch.draw())
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize(
    ("network", "preset", "mode", "gflop"),
    [
        ("vgg16", "paper", "untrained", 64.97),
        ("vgg16", "paper", "pretrained", 65.72),
        ("mobilenet_v2", "standard", "untrained", 14.68),
        ("mobilenet_v2", "standard", "pretrained", 30.89),
    ],
)
def test_an_update_takes_no_more_operations_than_it_did(network, preset, mode, gflop):
    assert counted(network, preset, mode) <= 1.1 * gflop
