"""The generator's convolutions on a CPU: in fewer multiplications if that takes less time.

Shapes: N targets, C channels, O output channels, H, W the map, k kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgn.engine.cpu.algorithms import SAME_3, SAME_4, UPSAMPLED, Algorithm, pays
from dgn.engine.cpu.winograd import Convolution
from dgn.method.architecture import Architecture, Conv, Weights
from dgn.method.generator import convolve

UPSAMPLED_WORK = 300_000  # channels in x channels out x pixels a side, from which on an upsampled algorithm pays


def quick(x: Tensor, weights: Weights, i: int, conv: Conv) -> Tensor:
    """`generator.convolve`, in fewer multiplications if that is faster."""
    weight_OCkk, bias_O = weights[f"conv{i}.weight"], weights[f"conv{i}.bias"]
    algorithm = _algorithm(conv, x.shape[-1], not weight_OCkk.requires_grad)
    if algorithm is None:
        return convolve(x, weights, i, conv)
    prepared = [name for name in weights if name.startswith(f"conv{i}.kernel")]  # by `frozen_kernels`
    kernels = [weights[name] for name in prepared] or algorithm.kernels(weight_OCkk, x.dtype)
    return Convolution.apply(x, bias_O, algorithm, conv.has_relu, *kernels)


def frozen_kernels(architecture: Architecture, frozen: Weights, dtype: torch.dtype) -> dict[str, Tensor]:
    """A decoder's kernels as the algorithms multiply them, `conv{i}.kernel{n}`, computed once for all updates."""
    kernels = {}
    for i, (conv, px) in enumerate(architecture.convs_with_px()):
        if algorithm := _algorithm(conv, px, is_frozen=True):
            for n, kernel in enumerate(algorithm.kernels(frozen[f"conv{i}.weight"], dtype)):
                kernels[f"conv{i}.kernel{n}"] = kernel
    return kernels


def _algorithm(conv: Conv, px: int, is_frozen: bool) -> Algorithm | None:
    """Chosen by measurement (docs/performance.md): below these sizes the sums cost more than the products they save."""
    c, o, k = conv.in_channels, conv.out_channels, conv.kernel_px
    if conv.is_after_upsample:
        return UPSAMPLED[k] if o > 3 and (k == 4 or c * o * px > UPSAMPLED_WORK) else None
    if k == 3:
        return SAME_3 if is_frozen and pays(c, o, px) else None
    return SAME_4 if k == 4 and pays(c, o, px) else None


def lay_out(stacked: Tensor) -> Tensor:
    """Stacked kernels (N, O, C, k, k) with the memory order (N, k, k, O, C), from which `Algorithm.kernels` reads whole
    matrices; other tensors unchanged."""
    if stacked.ndim != 5:
        return stacked
    return stacked.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)


class Unbind(torch.autograd.Function):
    """`stacked.unbind()` with a gradient in `stacked`'s memory order, so that the optimiser reads both alike."""

    @staticmethod
    def forward(ctx: Any, stacked: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(stacked)
        return stacked.unbind()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        whole = torch.empty_like(ctx.saved_tensors[0])
        for part, grad in zip(whole, grads, strict=True):
            part.copy_(grad)
        return whole
