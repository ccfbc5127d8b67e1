"""A frozen network on a CPU, norms folded and ReLUs fused, against the stock one in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from dgn.engine.cpu import fused as fused_module
from dgn.engine.cpu.fused import Convolution
from dgn.engine.fusion import called_as_modules, fold_norms
from dgn.method.engine import Engine
from dgn.networks import frozen as frozen_module
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import network_named
from dgn.networks.weights import NetworkWeights
from tests.helpers.own_networks import Own, conv, frozen, pictures, seeded

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
    described = network_named(network).with_settings(size=PX)
    model = described.built().eval()
    for module in model.modules():  # statistics that folding a norm has to take into account
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    layer = layer or described.layers.class_layer
    state = {n: t.double() if t.is_floating_point() else t for n, t in model.state_dict().items()}
    weights = NetworkWeights(described, state, "", "random")
    images = torch.rand(2, 3, PX, PX, dtype=torch.float64, requires_grad=True)
    ours = FrozenNetwork(weights, dtype=torch.float64)
    got = response_and_gradient(ours, images, layer)
    fused = [module for module in ours.cut_behind((layer,)).modules() if isinstance(module, Convolution)]
    assert fused
    assert any(module.kernels for module in fused) == network.startswith("vgg"), "Winograd's"
    monkeypatch.setattr(frozen_module, "fold_norms", lambda network: network)
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


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        ("efficientnet_lite0", "_blocks.2._project_conv"),  # whose convolutions pad and call a function
        ("timm:test_efficientnet", "classifier"),  # whose norms call a function and end in the activation
        ("timm:test_efficientnet", "blocks.1.0.bn1.drop"),
    ],
)
def test_convolutions_and_norms_called_as_functions_are_fused_too(network, layer, monkeypatch):
    described = network_named(network).with_settings(size=48)
    state = {name: tensor.double() for name, tensor in seeded(described.built()).state_dict().items()}
    weights = NetworkWeights(described, state, "", "random")
    images = torch.rand(2, 3, 48, 48, dtype=torch.float64, requires_grad=True)
    ours = FrozenNetwork(weights, dtype=torch.float64)
    got = response_and_gradient(ours, images, layer)
    targets = [node.target for node in ours.cut_behind((layer,)).graph.nodes]
    assert torch.conv2d not in targets
    if not layer.endswith("drop"):
        assert F.batch_norm not in targets, "every norm is folded"
    monkeypatch.setattr(frozen_module, "called_as_modules", lambda network: network)
    monkeypatch.setattr(frozen_module, "fold_norms", lambda network: network)
    stock = FrozenNetwork(weights, Engine(), torch.float64)
    assert torch.conv2d in [n.target for n in stock.cut_behind((layer,)).graph.nodes] or network.startswith("timm")
    for a, b in zip(got, response_and_gradient(stock, images, layer), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item())
    want, _ = stock.scores(images, layer)
    torch.testing.assert_close(got[0].float(), want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


class Functions(nn.Module):
    """Convolutions and a norm as functions of stored and of calculated weights, by position and by name."""

    def __init__(self):
        super().__init__()
        for name, shape in (("a", (4, 3, 3, 3)), ("b", (4, 1, 3, 3)), ("c", (5, 4, 1, 1))):
            setattr(self, name, nn.Parameter(torch.rand(shape)))
        self.bias = nn.Parameter(torch.rand(4))
        self.register_buffer("mean", torch.rand(4))
        self.register_buffer("var", torch.rand(4) + 0.5)

    def forward(self, x):
        x = F.conv2d(x, self.a, None, 2, (1, 0))
        x = F.batch_norm(x, self.mean, self.var, self.bias, self.bias, False, 0.1, 0.3)
        x = F.conv2d(F.relu(x), self.b, groups=4, padding="same")
        return F.conv2d(x, self.c / self.c.norm(), bias=None, dilation=2)


def test_what_is_stored_becomes_a_module_and_what_is_calculated_stays():
    torch.manual_seed(0)
    module = Functions().double().eval()
    graph = fold_norms(called_as_modules(fx.symbolic_trace(module)))
    kinds = [type(graph.get_submodule(n.target)).__name__ for n in graph.graph.nodes if n.op == "call_module"]
    assert kinds == ["Conv2d", "Conv2d"]
    assert [node.target for node in graph.graph.nodes].count(torch.conv2d) == 1
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(graph(images), module(images), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("of", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_calculated_weights_are_left_to_their_module(of):
    model = nn.Sequential(of(conv()), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    network = frozen(model)
    for layer in ("1", "4"):
        got, (want, _) = network.responses(pictures(2), [layer])[layer], network.scores(pictures(2), layer)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4),
     nn.InstanceNorm2d(4), nn.SyncBatchNorm(4)],
    ids=lambda norm: type(norm).__name__,
)  # fmt: skip
def test_norms_of_every_kind_answer_as_they_are(norm):
    model = seeded(Own(lambda s, x: s.fc(s.norm(s.stem(x)).relu().mean((2, 3))), stem=conv(), norm=norm,
                       fc=nn.Linear(4, 3)))  # fmt: skip
    network = frozen(model)
    for layer in ("stem", "norm", "fc"):
        got, (want, _) = network.responses(pictures(2), [layer])[layer], network.scores(pictures(2), layer)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("most", [6.0, torch.inf])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(8, 8, 3, 1, 1), (8, 16, 1, 1, 1), (8, 8, 3, 2, 8), (8, 12, 3, 1, 4), (3, 8, 7, 2, 1)], ids=str
)
def test_onednn_writes_the_relus_results(shape, has_bias, most, dtype, monkeypatch):
    """(channels, channels out, kernel, stride, groups). The stock convolution is not called."""
    if not fused_module._writes_relus(dtype):
        pytest.skip(f"oneDNN does not write ReLUs in {dtype} here")
    torch.manual_seed(0)
    c, o, k, stride, groups = shape
    conv = nn.Conv2d(c, o, k, stride, k // 2, groups=groups, bias=has_bias).to(dtype).requires_grad_(False)
    x = torch.randn(2, c, 18, 18).to(dtype, memory_format=torch.channels_last).requires_grad_()
    expected = (4 * conv(x)).clamp(0, most)
    weighting = torch.randn_like(expected)
    [expected_gradient] = torch.autograd.grad((expected * weighting).sum(), x)
    conv.weight.mul_(4)
    if has_bias:
        conv.bias.mul_(4)
    layer = Convolution(conv, most, is_winograd=False)
    with monkeypatch.context() as patched:
        patched.setattr(F, "conv2d", None)
        got = layer(x)
    [gradient] = torch.autograd.grad((got * weighting).sum(), x)
    tolerance = 0.03 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        gradient, expected_gradient, rtol=tolerance, atol=tolerance * gradient.abs().max().item()
    )
