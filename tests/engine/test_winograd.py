"""Convolutions in fewer multiplications against plain ones: the same values and gradients, to float64's rounding."""

import pytest
import torch
import torch.nn.functional as F

from dgn.cost.counted import operation_counter
from dgn.engine.cpu.algorithms import SAME_3, SAME_4, UPSAMPLED, Algorithm, minimal
from dgn.engine.cpu.convolutions import lay_out
from dgn.engine.cpu.winograd import Convolution, backward, forward
from dgn.method.generator import conv_after_upsample, conv_same

ALGORITHMS = {
    "same 3": (SAME_3, conv_same),
    "same 4": (SAME_4, conv_same),
    **{f"upsampled {k}": (UPSAMPLED[k], conv_after_upsample) for k in (2, 3, 4)},
    # Smaller tiles and both axes at once, from the same construction.
    "same 3, tiles of 2": (Algorithm(minimal(2, 3, pairs=(1,)), None), conv_same),
    "same 3, both axes": (Algorithm(*[minimal(2, 3, pairs=(1,))] * 2), conv_same),
    "same 4, tiles of 2": (Algorithm(minimal(2, 4, pairs=(1,), single=0.5), None), conv_same),
}


def variables(algorithm, px, dtype=torch.float64, channels=(3, 5)):
    stream = torch.Generator().manual_seed(px)
    draw = lambda *shape: torch.randn(shape, generator=stream, dtype=torch.float64).to(dtype)  # noqa: E731
    (c, o), k = channels, algorithm.kernel_px
    x = draw(2, c, px, px).contiguous(memory_format=torch.channels_last)
    weight = lay_out(draw(1, o, c, k, k) / (c * k * k) ** 0.5)[0]
    return [tensor.requires_grad_() for tensor in (x, weight, draw(o))]


@pytest.mark.parametrize("has_relu", [True, False])
@pytest.mark.parametrize("px", [2, 7, 9, 12])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_values_and_gradients_are_those_of_a_plain_convolution(name, px, has_relu):
    algorithm, convolve = ALGORITHMS[name]
    if algorithm.rows.is_after_upsample and px < 3:
        pytest.skip("a map of 2 px is smaller than the kernel's reach")
    x, weight, bias = variables(algorithm, px)
    plain = convolve(x, weight, bias)
    plain = F.relu(plain) if has_relu else plain
    kernels = algorithm.kernels(weight, torch.float64)
    ours = Convolution.apply(x, bias, algorithm, has_relu, *kernels)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, (x, weight, bias), grad)
    for got, one in zip(torch.autograd.grad(ours, (x, weight, bias), grad), expected, strict=True):
        torch.testing.assert_close(got, one, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_frozen_kernels_give_the_maps_gradient_alone(name):
    algorithm, convolve = ALGORITHMS[name]
    x, weight, bias = (tensor.detach() for tensor in variables(algorithm, 9))
    x.requires_grad_()
    plain = convolve(x, weight, bias)
    kernels = algorithm.kernels(weight, torch.float64)
    ours, _ = forward(algorithm, x.detach(), bias, kernels)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(plain)
    got, bias_grad, kernel_grads = backward(algorithm, grad, x.shape, kernels)
    torch.testing.assert_close(got, torch.autograd.grad(plain, x, grad)[0], rtol=1e-11, atol=1e-11)
    assert bias_grad is None
    assert kernel_grads == [None] * len(kernels)


@pytest.mark.parametrize(
    ("name", "px", "share"),
    [
        ("same 3", 32, 6 / 12),  # six products for four rows of three taps
        ("same 4", 32, 7 / 16),
        ("same 3, both axes", 32, 16 / 36),
        ("upsampled 2", 64, 4 / 9),  # of the four phases' taps: (1 + 2) squared
        ("upsampled 3", 64, 9 / 16),
        ("upsampled 4", 64, 16 / 25),
    ],
)
def test_products_are_as_few_as_the_algorithm_promises(name, px, share):
    """Forward and backward; at the edges a few rows more or less."""
    algorithm, convolve = ALGORITHMS[name]
    counts = []
    for is_ours in (True, False):
        x, weight, bias = variables(algorithm, px, torch.float32, (16, 16))
        with operation_counter() as counter:
            if is_ours:
                kernels = [kernel.detach().requires_grad_() for kernel in algorithm.kernels(weight, x.dtype)]
                y = Convolution.apply(x, bias, algorithm, False, *kernels)
            else:
                y = convolve(x, weight, bias)
            y.sum().backward()
        by_operation = counter.get_flop_counts()["Global"]
        counts.append(sum(n for op, n in by_operation.items() if "conv" in str(op)))
    if name.startswith("upsampled") and name != "upsampled 4":  # the plain one has taps of zero there: four phases of
        k = algorithm.kernel_px  # (k // 2 + 1) squared taps each
        counts[1] *= {2: 9 / 16, 3: 1}[k]
    assert counts[0] / counts[1] == pytest.approx(share, rel=0.06)


@pytest.mark.parametrize(("name", "tolerance"), [("same 3", 1e-2), ("same 4", 1.2e-2), ("upsampled 4", 1e-2)])
def test_bfloat16_rounds_within_a_hundredth(name, tolerance):
    """A plain convolution's rounding is 0.0024; sums of the map and of products are rounded as well."""
    algorithm, convolve = ALGORITHMS[name]
    x, weight, bias = variables(algorithm, 32, channels=(64, 64))
    x = x.relu().bfloat16()
    ours = Convolution.apply(x, bias, algorithm, False, *algorithm.kernels(weight.float(), torch.bfloat16))
    exact = convolve(x.double(), weight, bias)
    assert (ours.double() - exact).norm() < tolerance * exact.norm()
