"""A worker's own memory on a CPU, counted by part. `benchmarks.worker_peaks` compares it with what a worker takes."""

from torch import nn

from dgn.cost.counted import IMPORTS_BYTES, WORKSPACES, count_cost
from dgn.method.recipes import RenderConfig
from dgn.networks.registry import network_named

FLOAT32 = RenderConfig.from_preset("standard", precision="float32")


def test_a_large_network_takes_workspace_for_its_largest_convolution_and_shares_its_weights():
    cost = count_cost(FLOAT32, "untrained", network_named("vgg16"))
    assert cost.num_views == 4
    assert cost.convolution_bytes == 4 * 2 * 64 * 224**2 * 4  # conv1_2 reads and writes 64 channels of 224 px
    assert cost.folded_bytes == 0
    assert cost.cpu_worker_bytes == IMPORTS_BYTES + cost.bytes_per_target + WORKSPACES * cost.convolution_bytes


def test_batch_norms_make_other_weights_of_a_network_s_own():
    network = network_named("mobilenet_v2")
    convs = [module for module in network.bare().modules() if isinstance(module, nn.Conv2d)]
    cost = count_cost(FLOAT32, "untrained", network)
    assert cost.folded_bytes == 4 * sum(conv.weight.numel() + conv.out_channels for conv in convs)
    assert cost.convolution_bytes == 4 * (3 * 224**2 + 32 * 112**2) * 4  # neither 1x1 nor depthwise ones
    assert cost.cpu_worker_bytes > IMPORTS_BYTES + cost.folded_bytes + cost.bytes_per_target


def test_the_generator_s_convolutions_count_too():
    paper = RenderConfig.from_preset("paper", precision="float32")
    cost = count_cost(paper, "untrained", network_named("mobilenet_v2"))
    assert cost.num_views == 1
    assert cost.convolution_bytes > 4 * (3 * 224**2 + 32 * 112**2), "the generator's last ones are larger"
