"""A frozen network's convolution and ReLU in one step on a CPU, for its pictures' gradient.

A frozen layer needs less than a stock one keeps and computes: no gradient of weights, and only the ReLU's result.

Shapes: N pictures, C channels, H, W the map.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgn.engine.cpu.algorithms import SAME_3, pays
from dgn.engine.cpu.winograd import backward, forward


def convolution(is_winograd: bool, conv: nn.Conv2d, relu: nn.Module | None, pool: nn.Module | None) -> nn.Module | None:
    """The fastest step for a convolution and its ReLU on a CPU, None to leave them: a `fusion.Make`, given the form."""
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    most = {nn.ReLU: torch.inf, nn.ReLU6: 6.0}[type(relu)] if relu is not None else None
    return Convolution(conv, most, is_winograd)


class Convolution(nn.Module):
    """min(relu(conv(x)), most), or the convolution alone if `most` is None. Its only gradient is that of x."""

    def __init__(self, conv: nn.Conv2d, most: float | None, is_winograd: bool = True):
        super().__init__()
        self.conv, self.most = conv, most
        _, c, *kernel = conv.weight.shape
        geometry = (conv.stride, conv.padding, conv.dilation)
        self.is_dense = kernel == [3, 3] and geometry == ((1, 1), (1, 1), (1, 1))
        self.is_dense &= conv.groups == 1 and is_winograd
        self.is_pointwise = kernel == [1, 1] and (*geometry, conv.groups) == ((1, 1), (0, 0), (1, 1), 1)
        self.is_depthwise = c == 1 and conv.groups == conv.out_channels and conv.dilation == (1, 1)
        self.kernels: list[Tensor] = []  # computed at the first map that is large enough

    def forward(self, x: Tensor) -> Tensor:
        return _Convolution.apply(x, self)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Convolution) -> Tensor:
        conv, most = layer.conv, layer.most
        ctx.is_winograd = layer.is_dense and pays(conv.in_channels, conv.out_channels, min(x.shape[2:]))
        if ctx.is_winograd:
            layer.kernels = layer.kernels or SAME_3.kernels(conv.weight.double(), conv.weight.dtype)
            y = _activated(forward(SAME_3, x, conv.bias, layer.kernels)[0], most)
        else:
            y = _convolved(x, conv, most)
        if most is not None:
            ctx.save_for_backward(y)
        ctx.layer, ctx.shape = layer, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, layer, shape = grads[0], ctx.layer, ctx.shape
        conv = layer.conv
        if layer.most == torch.inf:
            grad = torch.ops.aten.threshold_backward(grad, ctx.saved_tensors[0], 0)
        elif layer.most is not None:
            grad = torch.ops.aten.hardtanh_backward(grad, ctx.saved_tensors[0], 0, layer.most)
        if ctx.is_winograd:
            return backward(SAME_3, grad, shape, layer.kernels)[0], None
        if layer.is_pointwise:  # as a matrix product: PyTorch's gradient takes up to twice as long
            return F.linear(grad.permute(0, 2, 3, 1), conv.weight[:, :, 0, 0].T).permute(0, 3, 1, 2), None
        if layer.is_depthwise:
            return _depthwise_backward(grad, conv, shape), None
        # Only the shape of the input is read.
        like = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
        geometry = (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups, (True, False, False))
        return torch.ops.aten.convolution_backward(grad, like, conv.weight, None, *geometry)[0], None


def _convolved(x: Tensor, conv: nn.Conv2d, most: float | None) -> Tensor:
    if most is None or not _writes_relus(x.dtype):
        y = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        return _activated(y, most)
    # oneDNN writes the ReLU's result at once; PyTorch's compiler calls it in the same way. NaN becomes 0 there. None is
    # expected: weights are finite, or refused when they are loaded, and pictures are looked at when they are finished.
    relu, bounds = ("relu", []) if most == torch.inf else ("hardtanh", [0.0, most])
    geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
    return torch.ops.mkldnn._convolution_pointwise(x, conv.weight, conv.bias, *geometry, relu, bounds, "")


@cache
def _writes_relus(dtype: torch.dtype) -> bool:
    """Whether oneDNN has the operator for this machine."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _activated(y: Tensor, most: float | None) -> Tensor:
    return y if most is None else y.clamp_(0, None if most == torch.inf else most)


def _depthwise_backward(grad: Tensor, conv: nn.Conv2d, shape: torch.Size) -> Tensor:
    """The gradient as a depthwise convolution with the flipped kernel, up to 15 times faster than oneDNN's own."""
    assert not isinstance(conv.padding, str)
    (step_h, step_w), (pad_h, pad_w), (k_h, k_w) = conv.stride, conv.padding, conv.kernel_size
    n, c, h, w = shape
    size = (n, c, h + 2 * pad_h - k_h + 1, w + 2 * pad_w - k_w + 1)
    if grad.shape != size:  # strided: with zeros in between and at the end
        wide = torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last).zero_()
        wide[:, :, ::step_h, ::step_w] = grad
        grad = wide
    turned = conv.weight.flip(2, 3)
    x_grad = F.conv2d(grad, turned, None, 1, (k_h - 1, k_w - 1), 1, conv.groups)
    return x_grad[:, :, pad_h : pad_h + h, pad_w : pad_w + w]
