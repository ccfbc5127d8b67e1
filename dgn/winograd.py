"""Convolutions in fewer multiplications: Winograd's minimal filtering, with stock products inside.

Two values of a convolution with k taps take 2k products, one by one; k + 1 do where sums of inputs are multiplied by
sums of taps (Winograd 1980; F(2, 3) takes 4 for 6). After nearest x2 upsampling inputs come in pairs and fewer do
still. Such an algorithm is three linear maps: of the map, of the kernel, and of the products. Here the first and the
last add whole rows or columns of channels-last maps, large contiguous pieces, and a product is a stock matrix product
or convolution. The values are the same but for rounding; gradients go through the transposed maps and take as few
products.

Shapes: N pictures, C channels, O output channels, H, W the map, k kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


class Rows(NamedTuple):
    """Rows step * t + offset of one map, for all integers t at which there are such."""

    map: int
    step: int
    offset: int

    def span(self, height: int) -> range:
        """The t at which a map of this height has a row."""
        return range(-(self.offset // self.step), -((self.offset - height) // self.step))

    def slice(self, first: int, count: int) -> slice:
        start = self.step * first + self.offset
        return slice(start, start + self.step * (count - 1) + 1, self.step)


@dataclass(frozen=True, eq=False)
class RowSums:
    """Maps whose rows are sums of rows of other maps, each with a factor. Beyond a map all is zero.

    Sums that several rows have in common are maps of their own, written first: those of the numbers below zero.
    """

    sums: Mapping[Rows, Sequence[tuple[float, Rows]]]

    @cached_property
    def num_common(self) -> int:
        return -min(0, *(result.map for result in self.sums))

    @cached_property
    def transposed(self) -> RowSums:
        sums: dict[Rows, list[tuple[float, Rows]]] = {}
        for result, terms in self.sums.items():
            for factor, source in terms:
                shift, offset = divmod(source.offset, source.step)
                back = result._replace(offset=result.offset - result.step * shift)
                sums.setdefault(source._replace(offset=offset), []).append((factor, back))
        return RowSums(dict(sorted(sums.items(), key=lambda entry: entry[0].map)))

    def write(self, results: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        """Fills `results`, (N, C, H', W) each, from `sources`, (N, C, H, W) each."""
        heights = tuple(each.shape[2] for each in results), tuple(each.shape[2] for each in sources)
        if self.num_common:
            like = min(results, key=lambda each: each.shape[2])[:, :, : min(*heights[0], *heights[1])]
            common = [torch.empty_like(like) for _ in range(self.num_common)]
            results, sources = [*results, *common], [*sources, *common]
        for (into, rows), terms in _plan(self, *heights):
            _add([(factor, sources[i][:, :, of]) for factor, i, of in terms], results[into][:, :, rows])


Piece = tuple[tuple[int, slice], list[tuple[float, int, slice]]]


@lru_cache(maxsize=1024)
def _plan(sums: RowSums, result_heights: tuple[int, ...], source_heights: tuple[int, ...]) -> list[Piece]:
    """The slices of rows that are added up, in order: where each result lies, and its terms."""
    common_height = [min(*result_heights, *source_heights)] * sums.num_common
    heights, from_heights = [*result_heights, *common_height], [*source_heights, *common_height]

    def index(map_number: int, of: list[int]) -> int:
        return map_number if map_number >= 0 else len(of) - sums.num_common - 1 - map_number

    plan: list[Piece] = []
    for result, terms in sums.sums.items():
        span = result.span(heights[index(result.map, heights)])
        spans = [source.span(from_heights[index(source.map, from_heights)]) for _, source in terms]
        first, last = max(s.start for s in (span, *spans)), min(s.stop for s in (span, *spans))
        pieces = [(first, last - first)] if first < last else []
        pieces += [(t, 1) for t in span if not first <= t < last]  # at the edges, where some source has no row
        for t, count in pieces:
            parts = [
                (factor, index(source.map, from_heights), source.slice(t, count))
                for (factor, source), there in zip(terms, spans, strict=True)
                if t in there
            ]
            parts.sort(key=lambda part: part[0] != 1)
            plan.append(((index(result.map, heights), result.slice(t, count)), parts))
    return plan


def _add(parts: Sequence[tuple[float, Tensor]], out: Tensor) -> None:
    """`parts` that are added as they are come first."""
    if not parts:
        out.zero_()
    elif parts[0][0] != 1:
        torch.mul(parts[0][1], parts[0][0], out=out)
    elif len(parts) == 1:
        out.copy_(parts[0][1])
    else:
        torch.add(parts[0][1], parts[1][1], alpha=parts[1][0], out=out)
    for factor, part in parts[1 if parts and parts[0][0] != 1 else 2 :]:
        out.add_(part, alpha=factor)


@dataclass(frozen=True, eq=False)
class Axis:
    """An algorithm along one axis, written down for rows; columns are the rows of the transposed map.

    map_sums: the maps that are multiplied, from the map (0). of_product: which of them each product multiplies.
    taps: each product's sum of the kernel's k rows. result_sums: the result (0) from the products. biased: a product
    that enters every row of the result once, so that a bias can go with it.
    """

    map_sums: RowSums
    of_product: tuple[int, ...]
    taps: tuple[tuple[float, ...], ...]
    result_sums: RowSums
    biased: int
    is_after_upsample: bool = False
    tile: int = 2

    def out_px(self, px: int) -> int:
        return 2 * px - len(self.taps[0]) + 1 if self.is_after_upsample else px

    def map_px(self, px: int, index: int) -> int:
        """A row for two of the result's; after upsampling all rows (0), and their differences (1)."""
        return px - index if self.is_after_upsample else -(-px // self.tile)


@dataclass(frozen=True, eq=False)
class Algorithm:
    """Algorithms along both axes, or along the rows alone, with columns convolved as they are ('same')."""

    rows: Axis
    columns: Axis | None

    @property
    def kernel_px(self) -> int:
        return len(self.rows.taps[0])

    @property
    def biased(self) -> tuple[int, int]:
        return self.rows.biased, self.columns.biased if self.columns else 0

    @cached_property
    def groups(self) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """Products (of rows, of columns) by the map that they multiply."""
        groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for m, i in enumerate(self.rows.of_product):
            for n, j in enumerate(self.columns.of_product if self.columns else (0,)):
                groups.setdefault((i, j), []).append((m, n))
        return groups

    def kernels(self, weight_OCkk: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """A kernel for each of `groups`: its products' outputs, one after another, (products * O, C, 1, taps or 1).

        Quickest where weights lie in memory as `lay_out` puts them.
        """
        o, c, k, _ = weight_OCkk.shape
        sums = _kernel_sums(self, weight_OCkk.dtype)
        products = (sums @ weight_OCkk.permute(2, 3, 0, 1).reshape(sums.shape[1], -1)).to(dtype)
        parts = products.split([len(group) for group in self.groups.values()])
        if self.columns:
            return [part.reshape(-1, c, 1, 1) for part in parts]
        return [part.reshape(-1, k, o, c).permute(0, 2, 3, 1).reshape(-1, c, 1, k) for part in parts]


@lru_cache
def _kernel_sums(algorithm: Algorithm, dtype: torch.dtype) -> Tensor:
    """(products, k * k), or (products, k) where columns are convolved as they are; products in order of `groups`."""
    order = list(itertools.chain.from_iterable(algorithm.groups.values()))
    rows = torch.tensor(algorithm.rows.taps, dtype=dtype, device="cpu")[[m for m, _ in order]]
    if not algorithm.columns:
        return rows
    columns = torch.tensor(algorithm.columns.taps, dtype=dtype, device="cpu")[[n for _, n in order]]
    return (rows[:, :, None] * columns[:, None]).flatten(1)


def pays(c: int, o: int, px: int) -> bool:
    """Whether `SAME_3` and `SAME_4` save a CPU more than their sums cost (measured: docs/performance.md)."""
    return min(c, o) >= 128 and px >= 28


def lay_out(stacked: Tensor) -> Tensor:
    """Stacked kernels (N, O, C, k, k) with the memory order (N, k, k, O, C); others as is."""
    if stacked.ndim != 5:
        return stacked
    return stacked.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)


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


Term = tuple[float, tuple[int, int, int]]


def _sums(sums: Mapping[tuple[int, int, int], Sequence[Term]]) -> RowSums:
    return RowSums({Rows(*r): tuple((f, Rows(*source)) for f, source in terms) for r, terms in sums.items()})


def minimal(tile: int, k: int, pairs: Sequence[float], single: float | None = None) -> Axis:
    """Toom and Cook's F(tile, k) for 'same' convolutions: a row of a kernel's polynomial at 0, at +-a for the pairs, at
    `single` where one more is needed, and at infinity. Products of a pair share their sums.
    """
    before = (k - 1) // 2
    points = [0.0, *(sign * a for a in pairs for sign in (1, -1)), *([] if single is None else [single])]
    assert len(points) == tile + k - 2
    map_sums: dict[tuple[int, int, int], list[Term]] = {}
    result_sums: dict[tuple[int, int, int], list[Term]] = {(0, tile, j): [] for j in range(tile)}
    common: dict[tuple[int, int, int], list[Term]] = {}
    taps = []

    def of_map(polynomial: NDArray[Any]) -> list[Term]:
        return [(float(f), (0, tile, j - before)) for j, f in enumerate(polynomial) if f]

    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        taps.append(tuple(point**j / math.prod(point - other for other in others) for j in range(k)))
        if abs(point) not in pairs:
            map_sums[i, 1, 0] = of_map(np.poly(others)[::-1])
            for j in range(tile):
                if point**j:
                    result_sums[0, tile, j].append((point**j, (i, 1, 0)))
        elif point > 0:
            # The polynomials of +-a are (x +- a) R(x): their sum and difference, and later the products'.
            rest = np.poly([other for other in others if other != -point])[::-1]
            even, odd = -1 - len(common), -2 - len(common)
            common[even, 1, 0], common[odd, 1, 0] = of_map(np.append(0, rest)), of_map(point * rest)
            for n, sign in ((i, 1.0), (i + 1, -1.0)):
                map_sums[n, 1, 0] = [(1.0, (even, 1, 0)), (sign, (odd, 1, 0))]
            for j in range(tile):
                result_sums[0, tile, j].append((point**j, ((odd if j % 2 else even), 1, 0)))
    last = len(points)
    taps.append(tuple(float(j == k - 1) for j in range(k)))
    map_sums[last, 1, 0] = of_map(np.poly(points)[::-1])
    result_sums[0, tile, tile - 1].append((1, (last, 1, 0)))
    sums: dict[tuple[int, int, int], list[Term]] = {}
    for pair, a in enumerate(pairs):
        i = points.index(a)
        for n, sign in ((-1 - 2 * pair, 1.0), (-2 - 2 * pair, -1.0)):
            sums[n, 1, 0] = [(1.0, (i, 1, 0)), (sign, (i + 1, 1, 0))]
    return Axis(
        map_sums=_sums(common | map_sums),
        of_product=tuple(range(last + 1)),
        taps=tuple(taps),
        result_sums=_sums(sums | result_sums),
        biased=points.index(1.0),
        tile=tile,
    )


# After upsampling, with d[i] = x[i + 1] - x[i] and S the sum of all taps: what is S x[i] but for some differences.
_DIFFERENCES = _sums({(0, 1, 0): [(1, (0, 1, 0))], (1, 1, 0): [(1, (0, 1, 1)), (-1, (0, 1, 0))]})
_UPSAMPLED_2 = Axis(
    map_sums=_DIFFERENCES,
    of_product=(0, 1),
    taps=((1, 1), (0, 1)),
    result_sums=_sums({(0, 2, 0): [(1, (0, 1, 0))], (0, 2, 1): [(1, (0, 1, 0)), (1, (1, 1, 0))]}),
    biased=0,
    is_after_upsample=True,
)
_UPSAMPLED_3 = Axis(
    map_sums=_DIFFERENCES,
    of_product=(0, 1, 1),
    taps=((1, 1, 1), (0, 0, 1), (-1, 0, 0)),
    result_sums=_sums({
        (0, 2, 0): [(1, (0, 1, 0)), (1, (1, 1, 0))],
        (0, 2, 1): [(1, (0, 1, 1)), (1, (2, 1, 0))],
    }),
    biased=0,
    is_after_upsample=True,
)  # fmt: skip
_UPSAMPLED_4 = Axis(
    map_sums=_DIFFERENCES,
    of_product=(0, 1, 1, 1),
    taps=((1, 1, 1, 1), (0, 0, 1, 1), (-1, 0, 0, 0), (0, 0, 0, 1)),
    result_sums=_sums({
        (0, 2, 0): [(1, (0, 1, 0)), (1, (1, 1, 0))],
        (0, 2, 1): [(1, (0, 1, 1)), (1, (2, 1, 0)), (1, (3, 1, 1))],
    }),
    biased=0,
    is_after_upsample=True,
)  # fmt: skip
SAME_3 = Algorithm(minimal(4, 3, pairs=(1, 2)), None)
SAME_4 = Algorithm(minimal(4, 4, pairs=(1, 2), single=0.5), None)
UPSAMPLED = {k: Algorithm(axis, axis) for k, axis in ((2, _UPSAMPLED_2), (3, _UPSAMPLED_3), (4, _UPSAMPLED_4))}
