"""The generator against plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from dgn.method.architecture import Architecture
from dgn.method.generator import conv_after_upsample, conv_same, generate, initial_weights
from dgn.targets import MODES
from tests.conftest import WIDTH
from tests.helpers.paper_port import PaperGenerator


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


@pytest.mark.parametrize("mode", MODES)
def test_picture_is_224_px_and_equals_stock_modules(mode):
    architecture = Architecture(mode, WIDTH)
    weights = {n: w.double() for n, w in initial_weights(architecture, torch.Generator().manual_seed(1)).items()}
    picture = generate(architecture, weights, weights["alpha"])
    assert picture.shape == (3, 224, 224)
    port = PaperGenerator(mode, WIDTH).double().load(weights)
    plain = port.layers(weights["alpha"].reshape(1, -1, 5, 5))[0]
    torch.testing.assert_close(picture, plain, rtol=1e-9, atol=1e-9)
