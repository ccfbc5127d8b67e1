"""A frozen network's convolution, ReLU and 2x2 pooling in one step on a GPU, for its pictures' gradient.

In bfloat16 a stock VGG-16 spends as long on biases, ReLUs and pools as on convolutions (docs/gpu.md). cuDNN adds bias
and ReLU while it convolves. A pool that follows stores which of its four inputs was largest in one byte instead of
eight, and the map before it is not kept. The bias is added before rounding to bfloat16, so values differ by that
rounding.

Shapes: B pictures, C channels, H, W the map; all maps are channels-last.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


def convolution(conv: nn.Conv2d, relu: nn.Module | None, pool: nn.Module | None) -> nn.Module | None:
    """`ConvReLU` if a ReLU follows, with the pool if one follows that. A `fusion.Make`."""
    is_plain = conv.bias is not None and conv.groups == 1
    is_plain &= conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return ConvReLU(conv, pool is not None) if is_plain and isinstance(relu, nn.ReLU) else None


class ConvReLU(nn.Module):
    """relu(conv(x)), and the 2x2 maximum of it if `is_pooled`."""

    def __init__(self, conv: nn.Conv2d, is_pooled: bool):
        super().__init__()
        self.conv, self.is_pooled = conv, is_pooled

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
        return _ConvReLU.apply(x, conv.weight, conv.bias, geometry, self.is_pooled)


class _ConvReLU(torch.autograd.Function):
    """Its only gradient is that of x: weights are frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, geometry: tuple[Any, ...], is_pooled: bool
    ) -> Tensor:
        y = torch.cudnn_convolution_relu(x, weight, bias, *geometry)
        ctx.geometry, ctx.map_shape = geometry, y.shape
        winner = None
        if is_pooled:
            y, winner = pool(y)
        ctx.save_for_backward(x, weight, y, winner)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y, winner = ctx.saved_tensors
        if winner is None:
            grad = torch.ops.aten.threshold_backward(grads[0], y, 0)
        else:
            grad = unpool(grads[0], y, winner, ctx.map_shape)
        stride, padding, dilation, groups = ctx.geometry
        x_grad, _, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, (0, 0), groups, [True, False, False]
        )
        return x_grad, None, None, None, None


def pool(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The 2x2 maxima (B, C, H/2, W/2), and which of the four, counted row by row, was the first to reach it (uint8)."""
    x = x_BCHW.contiguous(memory_format=torch.channels_last)
    b, c, h, w = x.shape
    y = torch.empty(b, c, h // 2, w // 2, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    winner = torch.empty_like(y, dtype=torch.uint8)
    num_pixels = b * (h // 2) * (w // 2)
    _pool[(triton.cdiv(num_pixels, 32), triton.cdiv(c, 64))](x, y, winner, num_pixels, h, w, c, 32, 64)
    return y, winner


def unpool(grad_BCHW: Tensor, y: Tensor, winner: Tensor, shape: torch.Size) -> Tensor:
    """The gradient (B, C, H, W) of the map before ReLU and pool. It goes to the maxima that were not silent."""
    grad = grad_BCHW.contiguous(memory_format=torch.channels_last)
    b, c, h, w = shape
    make = torch.zeros if h % 2 or w % 2 else torch.empty  # no window covers an odd last row or column
    x_grad = make(shape, dtype=grad.dtype, device=grad.device).contiguous(memory_format=torch.channels_last)
    num_pixels = b * (h // 2) * (w // 2)
    _unpool[(triton.cdiv(num_pixels, 32), triton.cdiv(c, 64))](grad, y, winner, x_grad, num_pixels, h, w, c, 32, 64)
    return x_grad


@triton.jit
def _places(num_pixels, H, W, C, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Offsets of a window's first pixel and of its result, and whether they exist."""
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    col, row = p % (W // 2), p // (W // 2)
    h, b = row % (H // 2), row // (H // 2)
    first = ((b * H + 2 * h).to(tl.int64) * W + 2 * col) * C
    mask = (p < num_pixels)[:, None] & (c < C)[None, :]
    return first[:, None] + c[None, :], (p.to(tl.int64) * C)[:, None] + c[None, :], mask


@triton.jit
def _pool(x, y, winner, num_pixels, H, W, C, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    source, place, mask = _places(num_pixels, H, W, C, BLOCK_P, BLOCK_C)
    most = tl.load(x + source, mask=mask, other=0.0)
    best = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.int32)
    for i in tl.static_range(1, 4):
        value = tl.load(x + source + ((i // 2) * W + i % 2) * C, mask=mask, other=0.0)
        is_more = (value > most) | (value != value)
        most = tl.where(is_more, value, most)
        best = tl.where(is_more, i, best)
    tl.store(y + place, most, mask=mask)
    tl.store(winner + place, best.to(tl.uint8), mask=mask)


@triton.jit
def _unpool(grad, y, winner, x_grad, num_pixels, H, W, C, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    source, place, mask = _places(num_pixels, H, W, C, BLOCK_P, BLOCK_C)
    g = tl.load(grad + place, mask=mask, other=0.0)
    g = tl.where(tl.load(y + place, mask=mask, other=0.0) <= 0, 0.0, g)
    best = tl.load(winner + place, mask=mask, other=0).to(tl.int32)
    for i in tl.static_range(4):
        tl.store(x_grad + source + ((i // 2) * W + i % 2) * C, tl.where(best == i, g, 0.0), mask=mask)
