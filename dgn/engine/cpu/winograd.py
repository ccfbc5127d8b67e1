"""Convolutions in fewer multiplications: Winograd's minimal filtering, with stock products inside.

Computed one by one, two values of a convolution with k taps take 2k products. If sums of inputs are multiplied by sums
of taps, k + 1 suffice (Winograd 1980; F(2, 3) takes 4 for 6). After nearest x2 upsampling inputs come in pairs, and
even fewer suffice. Such an algorithm is three linear maps: of the input map, of the kernel, and of the products. Here
the first and the last add whole rows or columns of channels-last maps, large contiguous pieces, and each product is a
stock convolution. Values agree except for rounding. Gradients go through the transposed maps and take as few products.

Shapes: N pictures, C channels, O output channels, H, W the map, k kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgn.engine.cpu.algorithms import Algorithm


class Convolution(torch.autograd.Function):
    """relu(conv(x) + b), or without the ReLU, by an algorithm's kernels: (N, C, H, W) -> (N, O, H', W')."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias_O: Tensor, algorithm: Algorithm, has_relu: bool, *kernels: Tensor) -> Tensor:
        y, maps = forward(algorithm, x, bias_O, kernels)
        if has_relu:
            y.clamp_min_(0)
        ctx.algorithm, ctx.shape, ctx.has_relu = algorithm, x.shape, has_relu
        ctx.save_for_backward(y if has_relu else None, *kernels, *(maps if any(ctx.needs_input_grad[4:]) else []))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.needs_input_grad[1] == any(ctx.needs_input_grad[4:]), "bias and kernels learn together"
        y, *saved = ctx.saved_tensors
        num_kernels = len(ctx.algorithm.groups)
        grad = grads[0] if y is None else torch.ops.aten.threshold_backward(grads[0], y, 0)
        x_grad, bias_grad, kernel_grads = backward(
            ctx.algorithm, grad, ctx.shape, saved[:num_kernels], saved[num_kernels:], ctx.needs_input_grad[0]
        )
        return x_grad, bias_grad, None, None, *kernel_grads


def forward(
    algorithm: Algorithm, x: Tensor, bias_O: Tensor | None, kernels: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """(N, C, H, W) -> (N, O, H', W'), and the maps that were multiplied, which gradients of kernels need."""
    maps, num_each = _maps(algorithm, x), [len(group) for group in algorithm.groups.values()]
    o = len(kernels[0]) // num_each[0]
    products: dict[tuple[int, int], Tensor] = {}
    for group, kernel, each in zip(algorithm.groups.values(), kernels, maps, strict=True):
        bias = None
        if algorithm.biased in group and bias_O is not None:
            bias = x.new_zeros(len(group), o)
            bias[group.index(algorithm.biased)] = bias_O
            bias = bias.flatten()
        products.update(zip(group, F.conv2d(each, kernel, bias).split(o, 1), strict=True))
    return _results(algorithm, products, x.shape), maps


def backward(
    algorithm: Algorithm,
    grad: Tensor,
    shape: torch.Size,
    kernels: Sequence[Tensor],
    maps: Sequence[Tensor] = (),
    needs_x: bool = True,
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """Gradients of x, which had that shape, and, where `maps` are given, of the bias and the kernels."""
    bias_grad = None
    map_grads: list[Tensor] = []
    kernel_grads: list[Tensor | None] = []
    # Where no kernel's gradient is asked for, only the shapes of the maps are read.
    inputs = maps or _empty_maps(algorithm, grad, shape)
    product_grads = _product_grads(algorithm, grad, shape)
    for group, of_product, each, kernel in zip(algorithm.groups.values(), product_grads, inputs, kernels, strict=True):
        sizes = [len(kernel)] if maps and algorithm.biased in group else None
        needs = [needs_x, bool(maps), sizes is not None]
        map_grad, kernel_grad, bias_grads = torch.ops.aten.convolution_backward(
            of_product, each, kernel, sizes, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, needs
        )
        if sizes:
            bias_grad = bias_grads.chunk(len(group))[group.index(algorithm.biased)]
        map_grads.append(map_grad)
        kernel_grads.append(kernel_grad)
    return _map_grads(algorithm, map_grads, grad, shape) if needs_x else None, bias_grad, kernel_grads


def _empty(like: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    return torch.empty((n, c, h, w), dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _turned(maps: Sequence[Tensor]) -> list[Tensor]:
    return [each.transpose(2, 3) for each in maps]


def _empty_maps(algorithm: Algorithm, like: Tensor, shape: torch.Size) -> list[Tensor]:
    """What products multiply, in order of `groups`. Where columns are convolved as they are, with zeros beside them."""
    n, c, h, w = shape
    rows, columns = algorithm.rows, algorithm.columns
    return [
        _empty(like, n, c, rows.map_px(h, i), columns.map_px(w, j) if columns else w + algorithm.kernel_px - 1)
        for i, j in algorithm.groups
    ]


def _inner(algorithm: Algorithm, each: Tensor, w: int) -> Tensor:
    before = (algorithm.kernel_px - 1) // 2
    return each[..., before : before + w]


def _maps(algorithm: Algorithm, x: Tensor) -> list[Tensor]:
    n, c, h, w = x.shape
    rows, columns = algorithm.rows, algorithm.columns
    maps = _empty_maps(algorithm, x, x.shape)
    if not columns:
        before = (algorithm.kernel_px - 1) // 2
        for each in maps:
            each[..., :before] = 0
            each[..., before + w :] = 0
        rows.map_sums.write([_inner(algorithm, each, w) for each in maps], [x])
        return maps
    by_rows = [_empty(x, n, c, rows.map_px(h, i), w) for i in range(1 + max(rows.of_product))]
    rows.map_sums.write(by_rows, [x])
    for i, each in enumerate(by_rows):
        results = [m for m, (of, _) in zip(maps, algorithm.groups, strict=True) if of == i]
        columns.map_sums.write(_turned(results), _turned([each]))
    return maps


def _results(algorithm: Algorithm, products: Mapping[tuple[int, int], Tensor], shape: torch.Size) -> Tensor:
    rows, columns = algorithm.rows, algorithm.columns
    n, _, h, w = shape
    like = next(iter(products.values()))
    o = like.shape[1]
    out_w = columns.out_px(w) if columns else w
    by_rows = []
    for m, i in enumerate(rows.of_product):
        if columns:
            each = _empty(like, n, o, rows.map_px(h, i), out_w)
            of_row = [products[m, k] for k in range(len(columns.of_product))]
            columns.result_sums.write(_turned([each]), _turned(of_row))
        else:
            each = products[m, 0]
        by_rows.append(each)
    y = _empty(like, n, o, rows.out_px(h), out_w)
    rows.result_sums.write([y], by_rows)
    return y


def _product_grads(algorithm: Algorithm, grad: Tensor, shape: torch.Size) -> list[Tensor]:
    rows, columns = algorithm.rows, algorithm.columns
    n, _, h, w = shape
    o, out_w = grad.shape[1], grad.shape[3]
    wholes: list[Tensor] = []
    parts: dict[tuple[int, int], Tensor] = {}
    for (i, j), group in algorithm.groups.items():
        whole = _empty(grad, n, len(group) * o, rows.map_px(h, i), columns.map_px(w, j) if columns else w)
        wholes.append(whole)
        parts.update(zip(group, whole.split(o, 1), strict=True))
    if columns:
        by_rows = [_empty(grad, n, o, rows.map_px(h, i), out_w) for i in rows.of_product]
        rows.result_sums.transposed.write(by_rows, [grad])
        for m, each in enumerate(by_rows):
            of_row = [parts[m, k] for k in range(len(columns.of_product))]
            columns.result_sums.transposed.write(_turned(of_row), _turned([each]))
    else:
        rows.result_sums.transposed.write([parts[m, 0] for m in range(len(rows.of_product))], [grad])
    return wholes


def _map_grads(algorithm: Algorithm, map_grads: Sequence[Tensor], like: Tensor, shape: torch.Size) -> Tensor:
    rows, columns = algorithm.rows, algorithm.columns
    n, c, h, w = shape
    if columns:
        by_rows = []
        for i in range(1 + max(rows.of_product)):
            each = _empty(like, n, c, rows.map_px(h, i), w)
            sources = [g for g, (of, _) in zip(map_grads, algorithm.groups, strict=True) if of == i]
            columns.map_sums.transposed.write(_turned([each]), _turned(sources))
            by_rows.append(each)
    else:
        by_rows = [_inner(algorithm, each, w) for each in map_grads]
    x_grad = _empty(like, n, c, h, w)
    rows.map_sums.transposed.write([x_grad], by_rows)
    return x_grad
