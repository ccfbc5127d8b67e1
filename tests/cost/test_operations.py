"""Operations of one update, counted while it runs on a CPU: what was saved once stays saved.

A multiply-add counts as two, convolutions and matrix products only. The limits are the counts, and a tenth more.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dgn.cost.counted import count_cost
from dgn.method.batch import start_batch
from dgn.method.decoder import random_decoder
from dgn.method.loop import update
from dgn.method.recipes import RenderConfig
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import network_named
from dgn.networks.weights import NetworkWeights
from tests.helpers.targets import filter_target


def counted(network, preset, mode):
    """In float32, which every CPU is fast at; other number formats take the same operations."""
    state = network_named(network).bare().state_dict()
    weights = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()}
    classifier = FrozenNetwork(NetworkWeights(network_named(network), weights, "", "zeros"))
    config = RenderConfig.from_preset(preset)
    decoder = random_decoder(config.pretrained.width) if mode == "pretrained" else None
    classifier.cut_behind((classifier.layers.class_layer,))  # which is checked once, and not counted
    batch = start_batch([filter_target(classifier.layers.class_layer, 3, mode)], config, classifier, decoder)
    optimiser = batch.optimiser()
    with FlopCounterMode(display=False) as counter:
        update(batch, optimiser, *batch.random())
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
    num_counted = counted(network, preset, mode)
    assert num_counted <= 1.1 * gflop
    plain = count_cost(RenderConfig.from_preset(preset), mode, network_named(network)).ops_per_update / 1e9
    assert num_counted < plain, "of plain convolutions, as dgn info counts them"
