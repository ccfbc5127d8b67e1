"""A frozen network on a CPU, norms folded and ReLUs fused, against the stock one in float64."""

import pytest
import torch
from torch import fx, nn

from dgn import frozen
from dgn.discriminator import Discriminator, FrozenWeights, build_network, layout


def responses_and_gradient(discriminator, images, layer):
    response = discriminator.responses(images, [layer])[layer]
    return response, torch.autograd.grad(
        (response * torch.arange(response.numel()).reshape(response.shape)).sum(), images
    )[0]


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
    model = build_network(network).eval()
    for module in model.modules():  # statistics that a norm's folding has to honour
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    layer = layer or layout(network).class_layer
    weights = FrozenWeights(
        network, {n: t.double() if t.is_floating_point() else t for n, t in model.state_dict().items()}, "", "random"
    )
    images = torch.rand(2, 3, 224, 224, dtype=torch.float64, requires_grad=True)
    ours = Discriminator(weights, dtype=torch.float64)
    got = responses_and_gradient(ours, images, layer)
    fused = ours._as_deep_as((layer,))
    assert any(isinstance(module, frozen.Convolution) for module in fused.modules())
    stock = Discriminator(weights, dtype=torch.float64)
    monkeypatch.setattr(frozen, "fuse", lambda network, make: network)
    monkeypatch.setattr(frozen, "fold_norms", lambda network: network)
    for a, b in zip(got, responses_and_gradient(stock, images, layer), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item())


def test_folding_leaves_the_networks_own_weights_alone():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval().bfloat16()
    nn.init.uniform_(network[1].running_var, 0.5, 2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded = frozen.fold_norms(fx.symbolic_trace(network))
    assert len(folded.graph.nodes) == 3
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_one_image_alone_and_odd_sizes_go_through_depthwise_gradients():
    for stride, px, kernel in ((1, 7, 3), (2, 7, 3), (2, 8, 5), (3, 11, 3)):
        torch.manual_seed(0)
        conv = nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6).double().requires_grad_(False)
        x = torch.randn(1, 6, px, px, dtype=torch.float64, requires_grad=True)
        ours, plain = frozen.Convolution(conv, 6.0)(x), conv(x).clamp(0, 6)
        grad = torch.randn_like(plain)
        torch.testing.assert_close(ours, plain)
        torch.testing.assert_close(torch.autograd.grad(ours, x, grad), torch.autograd.grad(plain, x, grad))
