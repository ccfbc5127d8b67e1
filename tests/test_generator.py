"""G against Table 1's counts and against plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from dgn.generator import (
    Architecture,
    conv_after_upsample,
    conv_same,
    generate,
    generate_batch,
    initial_weights,
    layers,
)
from tests.conftest import WIDTH
from tests.paper_port import PaperGenerator


@pytest.mark.parametrize(("mode", "count"), [("untrained", 5_240_841), ("pretrained", 3_200)])
def test_trainable_variables_of_table_1(mode, count):
    architecture = Architecture(mode)
    assert architecture.num_trainable == count
    weights = initial_weights(architecture, torch.Generator().manual_seed(0))
    assert sum(weights[name].numel() for name in architecture.trainable) == count


@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("px", [5, 8])
def test_convolution_after_upsampling_is_exact_forward_and_backward(kernel, px):
    stream = torch.Generator().manual_seed(kernel)
    x = torch.randn(1, 6, px, px, dtype=torch.float64, generator=stream, requires_grad=True)
    w = torch.randn(4, 6, kernel, kernel, dtype=torch.float64, generator=stream, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, generator=stream, requires_grad=True)
    plain = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), w, b)
    ours = conv_after_upsample(x, w, b)
    assert ours.shape == plain.shape
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    weighting = torch.randn(plain.shape, dtype=torch.float64, generator=stream)
    for ours_grad, plain_grad in zip(
        torch.autograd.grad((ours * weighting).sum(), (x, w, b)),
        torch.autograd.grad((plain * weighting).sum(), (x, w, b)),
        strict=True,
    ):
        torch.testing.assert_close(ours_grad, plain_grad, rtol=1e-11, atol=1e-11)


def test_even_kernels_pad_the_odd_row_after():
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, 0] = 1
    w = torch.arange(16.0).reshape(1, 1, 4, 4)
    y = conv_same(x, w, torch.zeros(1))
    assert y.shape == x.shape
    assert y[0, 0, 0, 0] == w[0, 0, 1, 1], "4x4 pads one row before and two after"


@pytest.mark.parametrize("mode", ["untrained", "pretrained"])
def test_picture_is_224_px_and_equals_stock_modules(mode):
    architecture = Architecture(mode, WIDTH)
    weights = {n: w.double() for n, w in initial_weights(architecture, torch.Generator().manual_seed(1)).items()}
    picture = generate(architecture, weights, weights["alpha"])
    assert picture.shape == (3, 224, 224)
    port = PaperGenerator(mode, WIDTH).double().load(weights)
    plain = port.layers(weights["alpha"].reshape(1, -1, 5, 5))[0]
    torch.testing.assert_close(picture, plain, rtol=1e-9, atol=1e-9)


def test_frozen_weights_draw_a_batch_as_they_draw_each():
    """As on a GPU; its Triton kernels are tested in tests/test_kernels.py."""
    stacked = pytest.importorskip("dgn.stacked", reason="Triton comes with PyTorch's builds for GPUs alone")
    architecture = Architecture("pretrained", WIDTH)
    streams = [torch.Generator().manual_seed(n) for n in range(3)]
    starts = [{k: w.double() for k, w in initial_weights(architecture, s).items()} for s in streams]
    features = torch.stack([start["alpha"] for start in starts])
    own = {name: torch.stack([start[name] for start in starts]) for name in architecture.trainable}
    shared = {name: w for name, w in starts[0].items() if name not in own}
    looped = generate_batch(architecture, own, shared, features)
    together = layers(architecture, shared, features, stacked.shared_statistics)
    torch.testing.assert_close(looped, together, rtol=1e-9, atol=1e-9)


def test_width_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="width 9"):
        Architecture("untrained", 9)


@pytest.mark.parametrize("mode", ["untrained", "pretrained"])
def test_fewer_multiplications_draw_the_same_picture_at_full_width(mode, monkeypatch):
    """In float64, with gradients, through every algorithm that full width chooses, and a decoder's prepared kernels."""
    from dgn import winograd
    from dgn.generator import prepared

    architecture = Architecture(mode, 1.0)
    weights = initial_weights(architecture, torch.Generator().manual_seed(0))
    own = {name: winograd.lay_out(weights[name].double()[None]).requires_grad_() for name in architecture.trainable}
    shared = {name: tensor.double() for name, tensor in weights.items() if name not in own}
    used, forward = [], winograd.forward
    monkeypatch.setattr(
        winograd, "forward", lambda algorithm, *rest: (used.append(algorithm), forward(algorithm, *rest))[1]
    )
    drawn = []
    for is_winograd in (True, False):
        frozen = prepared(architecture, shared, torch.float64, is_winograd) if mode == "pretrained" else {}
        picture = generate_batch(architecture, own, frozen, own["alpha"] * 1.0, is_winograd)
        drawn.append([picture, *torch.autograd.grad((picture**3).sum(), list(own.values()))])
    expected = [winograd.UPSAMPLED[2], *[winograd.UPSAMPLED[3]] * 3, winograd.UPSAMPLED[4], winograd.SAME_4]
    if mode == "pretrained":  # frozen, the 'same' convolutions of stages 3 and 4 too, and one more upsampling
        expected += [winograd.UPSAMPLED[3], winograd.SAME_3, winograd.SAME_3]
    assert sorted(map(id, used)) == sorted(map(id, expected))
    for ours, plain in zip(*drawn, strict=True):
        assert (ours - plain).norm() <= 1e-9 * plain.norm() + 1e-9
