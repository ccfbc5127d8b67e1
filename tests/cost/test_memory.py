"""A worker's own memory on a CPU, counted by part. `benchmarks.worker_peaks` compares it with what a worker takes."""

from torch import nn

from dgn.cost.counted import IMPORTS_BYTES, WORKSPACES, count_cost
from dgn.method.recipes import RenderConfig
from dgn.networks.network import Network
from dgn.networks.registry import network_named

FLOAT32 = RenderConfig.from_preset("standard", precision="float32")


def test_a_large_network_takes_workspace_for_its_largest_convolution_and_shares_its_weights():
    cost = count_cost(FLOAT32, "untrained", network_named("vgg16"))
    assert cost.num_views == 4
    assert cost.convolution_bytes == 4 * 2 * 64 * 224**2 * 4  # conv1_2 reads and writes 64 channels of 224 px
    assert cost.own_weight_bytes == 0
    assert cost.cpu_worker_bytes == IMPORTS_BYTES + cost.bytes_per_target + WORKSPACES * cost.convolution_bytes


def test_batch_norms_make_other_weights_of_a_network_s_own():
    network = network_named("mobilenet_v2")
    convs = [module for module in network.bare().modules() if isinstance(module, nn.Conv2d)]
    cost = count_cost(FLOAT32, "untrained", network)
    assert cost.own_weight_bytes == 4 * sum(conv.weight.numel() + conv.out_channels for conv in convs)
    assert cost.convolution_bytes == 4 * (3 * 224**2 + 32 * 112**2) * 4  # neither 1x1 nor depthwise ones
    assert cost.cpu_worker_bytes > IMPORTS_BYTES + cost.own_weight_bytes + cost.bytes_per_target


class Mixed(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip


def test_code_of_one_s_own_copies_its_weights_and_groups_count_if_they_hold_several_channels():
    network = Network(Mixed, size=32, mean=0, std=1)
    num_weights = sum(weight.numel() for weight in Mixed().parameters())
    for precision, num_bytes in (("float32", 4), ("bfloat16", 6)):
        config = RenderConfig.from_preset("draft", precision=precision)
        assert count_cost(config, "untrained", network).own_weight_bytes == num_bytes * num_weights


def test_the_generator_s_convolutions_count_too():
    paper = RenderConfig.from_preset("paper", precision="float32")
    cost = count_cost(paper, "untrained", network_named("mobilenet_v2"))
    assert cost.num_views == 1
    assert cost.convolution_bytes > 4 * (3 * 224**2 + 32 * 112**2), "the generator's last ones are larger"
