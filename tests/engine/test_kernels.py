"""The Triton kernels against PyTorch's own: on a GPU where there is one, else in Triton's interpreter on the CPU."""

import pytest
import torch
import torch.nn.functional as F

from dgn.engine.fusion import fuse
from dgn.method.architecture import Architecture
from dgn.method.engine import Engine
from dgn.method.generator import conv_after_upsample, conv_same, generate, initial_weights
from dgn.networks.frozen import FrozenNetwork
from dgn.targets import MODES

pytest.importorskip("triton", reason="Triton comes with PyTorch's builds for GPUs alone")
from dgn.engine.cuda import fused, stacked
from dgn.engine.cuda.adamax import Adamax

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Triton 3.9's interpreter gives wrong products of bfloat16.
PRECISIONS = [(torch.float32, 1e-5), *([(torch.bfloat16, 2e-2)] if DEVICE.type == "cuda" else [])]
# 70: a weight gradient in several parts. The interpreter takes seconds where a GPU takes none.
SIZES, CHANNELS = ([5, 70], [(3, 5), (64, 48), (130, 3)]) if DEVICE.type == "cuda" else ([5], [(3, 5), (20, 3)])
IMAGE_PX = 224 if DEVICE.type == "cuda" else 72  # whose fourth pool has an odd map of 9 px


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("px", SIZES)
@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("is_after_upsample", [True, False])
def test_stacked_convolutions_equal_plain_ones_forward_and_backward(
    is_after_upsample, kernel, px, channels, dtype, tolerance
):
    stream = torch.Generator(DEVICE).manual_seed(0)
    n, (c, o) = 3, channels
    draw = lambda *shape: torch.randn(shape, generator=stream, device=DEVICE, dtype=torch.float64)  # noqa: E731
    x, w, b = draw(n, c, px, px), draw(n, o, c, kernel, kernel) / (c * kernel**2) ** 0.5, draw(n, o)
    x, w = (tensor.to(dtype).double() for tensor in (x, w))  # both compute with the same numbers
    variables = [tensor.requires_grad_() for tensor in (x, w, b)]
    one = conv_after_upsample if is_after_upsample else conv_same
    plain = torch.cat([F.relu(one(x[i : i + 1], w[i], b[i])) for i in range(n)])
    weight = w.permute(0, 3, 4, 2, 1)
    weight = (stacked._widened(weight) if is_after_upsample else weight).to(dtype).contiguous()
    maps = x.permute(2, 3, 0, 1).to(dtype).contiguous()
    ours = stacked.Convolution.apply(maps, weight, b.float(), is_after_upsample, True).permute(2, 3, 0, 1)
    grad = draw(*plain.shape)
    expected = [plain, *torch.autograd.grad(plain, variables, grad * (ours > 0) * (plain > 0))]
    got = [ours, *torch.autograd.grad(ours, variables, (grad * (plain > 0)).to(dtype))]
    for a, e in zip(got, expected, strict=True):
        assert (a.double() - e).norm() < tolerance * e.norm()


def test_a_weight_gradient_in_parts_is_their_sum(monkeypatch):
    a, b = (torch.randn(6, 7, 2, channels, device=DEVICE) for channels in (3, 5))
    whole = stacked.outer(a, b, 3, 1)
    monkeypatch.setattr(stacked, "PIXELS_PER_PART", 16)
    torch.testing.assert_close(stacked.outer(a, b, 3, 1), whole)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="224 px take Triton's interpreter many minutes")
@pytest.mark.parametrize("mode", MODES)
def test_the_whole_stacked_generator_equals_that_of_one_target(mode):
    architecture = Architecture(mode, 0.02)
    starts = [initial_weights(architecture, torch.Generator().manual_seed(seed)) for seed in range(2)]
    own = {name: stacked.lay_out(torch.stack([start[name] for start in starts]).to(DEVICE)) for name in starts[0]}
    own = {name: tensor.requires_grad_() for name, tensor in own.items()}
    ours = stacked.generate(architecture, own, own["alpha"])
    exact = {name: tensor.detach().double().cpu().requires_grad_() for name, tensor in own.items()}
    plain = torch.stack(
        [generate(architecture, {name: t[n] for name, t in exact.items()}, exact["alpha"][n]) for n in range(2)]
    )
    assert (ours.double().cpu() - plain).norm() < 1e-4 * plain.norm()
    grad = torch.randn(plain.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got = torch.autograd.grad(ours, list(own.values()), grad.to(ours))
    expected = torch.autograd.grad(plain, list(exact.values()), grad)
    total = sum(e.norm() ** 2 for e in expected) ** 0.5
    for name, g, e in zip(own, got, expected, strict=True):
        # A bias before a normalisation has no gradient but rounding.
        assert (g.double().cpu() - e).norm() < 1e-2 * e.norm() + 1e-5 * total, name


class FusedEngine(Engine):
    """Stock PyTorch but for a network's convolutions, which are fused as the CUDA engine fuses them."""

    def fuse(self, network):
        return fuse(network, fused.convolution)


@pytest.mark.parametrize("layers", [["fc8"], ["conv1_2"], ["conv3_1", "conv5_3"]])
def test_the_fused_network_is_as_near_to_float32_as_the_stock_one(layers, mini_weights, monkeypatch):
    """In bfloat16 it adds the bias before it rounds, the stock one after: neither is the other's yardstick."""
    dtype = torch.bfloat16
    if DEVICE.type == "cpu":
        dtype = torch.float32
        only_with_cudnn = lambda x, weight, bias, *geometry: F.conv2d(x, weight, bias, *geometry).relu()  # noqa: E731
        monkeypatch.setattr(torch, "cudnn_convolution_relu", only_with_cudnn)
    images = torch.rand(2, 3, IMAGE_PX, IMAGE_PX, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    images.requires_grad_()
    made = []
    for engine, precision in ((Engine(DEVICE), torch.float64), (Engine(DEVICE), dtype), (FusedEngine(DEVICE), dtype)):
        network = FrozenNetwork(mini_weights, engine, precision)
        is_fused = any(isinstance(module, fused.ConvReLU) for module in network.cut_behind(tuple(layers)).modules())
        assert is_fused == isinstance(engine, FusedEngine)
        responses = network.responses(images, layers)
        total = sum((response.double() ** 2).sum() for response in responses.values())
        made.append([tensor.double() for tensor in (*responses.values(), torch.autograd.grad(total, images)[0])])
    for expected, stock, ours in zip(*made, strict=True):
        assert (ours - expected).norm() < 1.2 * (stock - expected).norm() + 1e-5 * expected.norm()


@pytest.mark.parametrize("px", [6, 7])
def test_pooling_and_its_gradient_equal_plain_ones(px):
    x = torch.randn(3, 70, px, px, device=DEVICE, requires_grad=True)
    plain = F.max_pool2d(x.relu(), 2)
    y, winner = fused.pool(x.detach().relu())
    grad = torch.randn_like(plain)
    assert torch.equal(y, plain)
    assert torch.equal(fused.unpool(grad, y, winner, x.shape), torch.autograd.grad(plain, x, grad)[0])


def test_adamax_equals_pytorchs():
    ours = torch.randn(3, 1, 5, 5, 70, device=DEVICE).permute(0, 4, 1, 2, 3).requires_grad_()
    plain = ours.detach().clone().requires_grad_()
    idle = torch.zeros(3, device=DEVICE, requires_grad=True)  # had no gradient: stays
    settings = {"lr": 0.002, "betas": (0.9, 0.999), "eps": 1e-8}
    optimisers = Adamax([ours, idle], **settings), torch.optim.Adamax([plain], **settings)
    for _ in range(20):
        plain.grad = torch.randn_like(plain)
        ours.grad = plain.grad.contiguous()  # of another memory order
        for optimiser in optimisers:
            optimiser.step()
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert not idle.any()
