"""A frozen network on a CPU, norms folded and ReLUs fused, against the stock one in float64."""

import pytest
import torch
from torch import fx, nn

from dgn.engine.cpu.fused import Convolution
from dgn.engine.fusion import fold_norms
from dgn.method.engine import Engine
from dgn.networks import frozen
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import network_named
from dgn.networks.weights import NetworkWeights

PX = 112  # of the images: half of 224, and VGG's third block still has Winograd's products


def response_and_gradient(network, images, layer):
    response = network.responses(images, [layer])[layer]
    weighting = torch.arange(response.numel()).reshape(response.shape)
    return response, torch.autograd.grad((response * weighting).sum(), images)[0]


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        ("mobilenet_v2", None),  # depthwise, strided, ReLU6, norms inside torchvision's blocks
        ("mobilenet_v2", "features.1.conv.0"),  # a block's end, inside of which layers are fused
        ("mobilenet_v2", "features.2.conv.0.1"),  # a norm's own output
        ("squeezenet1_0", None),  # pools with ceilings, a ReLU at the end
        ("resnet18", "layer2.0.conv1"),  # before its norm: nothing may be folded
        ("vgg11", "conv3_2"),  # before its ReLU; Winograd's products before it
    ],
)
def test_what_is_fused_answers_as_the_stock_network(network, layer, monkeypatch):
    torch.manual_seed(0)
    model = network_named(network).built().eval()
    for module in model.modules():  # statistics that folding a norm has to take into account
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    layer = layer or network_named(network).layers.class_layer
    state = {n: t.double() if t.is_floating_point() else t for n, t in model.state_dict().items()}
    weights = NetworkWeights(network_named(network), state, "", "random")
    images = torch.rand(2, 3, PX, PX, dtype=torch.float64, requires_grad=True)
    ours = FrozenNetwork(weights, dtype=torch.float64)
    got = response_and_gradient(ours, images, layer)
    fused = [module for module in ours.cut_behind((layer,)).modules() if isinstance(module, Convolution)]
    assert fused
    assert any(module.kernels for module in fused) == network.startswith("vgg"), "Winograd's"
    monkeypatch.setattr(frozen, "fold_norms", lambda network: network)
    stock = FrozenNetwork(weights, Engine(), torch.float64)
    for a, b in zip(got, response_and_gradient(stock, images, layer), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item())
    assert not any(isinstance(module, Convolution) for module in stock.cut_behind((layer,)).modules())


def test_folding_leaves_the_networks_own_weights_alone():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval().bfloat16()
    nn.init.uniform_(network[1].running_var, 0.5, 2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded = fold_norms(fx.symbolic_trace(network))
    assert len(folded.graph.nodes) == 3
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_gradients_of_depthwise_convolutions_at_odd_sizes():
    for stride, px, kernel in ((1, 7, 3), (2, 7, 3), (2, 8, 5), (3, 11, 3)):
        torch.manual_seed(0)
        conv = nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6).double().requires_grad_(False)
        x = torch.randn(1, 6, px, px, dtype=torch.float64, requires_grad=True)
        ours, plain = Convolution(conv, 6.0)(x), conv(x).clamp(0, 6)
        grad = torch.randn_like(plain)
        torch.testing.assert_close(ours, plain)
        torch.testing.assert_close(torch.autograd.grad(ours, x, grad), torch.autograd.grad(plain, x, grad))
