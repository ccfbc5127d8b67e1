"""The algorithms behind `winograd.py`: which sums of inputs are multiplied by which sums of taps.

An algorithm is written down once, as numbers: minimal filtering for 'same' convolutions (Toom, Cook, Winograd), and
differences for convolutions after nearest x2 upsampling.

Shapes: C channels, O output channels, k kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgn.engine.cpu.row_sums import Rows, RowSums
from dgn.method.architecture import out_px


@dataclass(frozen=True, eq=False)
class Axis:
    """An algorithm along one axis, written down for rows; columns are the rows of the transposed map."""

    map_sums: RowSums  # the maps that are multiplied, from the input map (number 0)
    of_product: tuple[int, ...]  # which of those maps each product multiplies
    taps: tuple[tuple[float, ...], ...]  # each product's weighted sum of the kernel's k rows
    result_sums: RowSums  # the result (number 0), from the products
    biased: int  # a product that enters every row of the result exactly once, so that it can carry the bias
    is_after_upsample: bool = False
    tile: int = 2  # rows of the result that are computed together

    def out_px(self, px: int) -> int:
        """Side of the result for an input map of side `px`."""
        return out_px(px, len(self.taps[0]), self.is_after_upsample)

    def map_px(self, px: int, index: int) -> int:
        """Side of a multiplied map: one row per tile; after upsampling all rows (0) or their differences (1)."""
        return px - index if self.is_after_upsample else -(-px // self.tile)


@dataclass(frozen=True, eq=False)
class Algorithm:
    """Algorithms along both axes; or along the rows alone, while columns are convolved plainly ('same')."""

    rows: Axis
    columns: Axis | None

    @property
    def kernel_px(self) -> int:
        return len(self.rows.taps[0])

    @property
    def biased(self) -> tuple[int, int]:
        """The product (of rows, of columns) that carries the bias."""
        return self.rows.biased, self.columns.biased if self.columns else 0

    @cached_property
    def groups(self) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """Products (of rows, of columns), grouped by the map that they multiply."""
        groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for m, i in enumerate(self.rows.of_product):
            for n, j in enumerate(self.columns.of_product if self.columns else (0,)):
                groups.setdefault((i, j), []).append((m, n))
        return groups

    def kernels(self, weight_OCkk: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """One kernel for each of `groups`, the outputs of its products one after another: (products * O, C, 1, k or 1).

        Fastest if the weights have the memory order of `convolutions.lay_out`.
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
    """(products, k * k), or (products, k) if columns are convolved plainly; products in the order of `groups`."""
    order = list(itertools.chain.from_iterable(algorithm.groups.values()))
    rows = torch.tensor(algorithm.rows.taps, dtype=dtype, device="cpu")[[m for m, _ in order]]
    if not algorithm.columns:
        return rows
    columns = torch.tensor(algorithm.columns.taps, dtype=dtype, device="cpu")[[n for _, n in order]]
    return (rows[:, :, None] * columns[:, None]).flatten(1)


def pays(c: int, o: int, px: int) -> bool:
    """Whether `SAME_3` and `SAME_4` save a CPU more time than their sums cost (measured, docs/performance.md)."""
    return min(c, o) >= 128 and px >= 28


Term = tuple[float, tuple[int, int, int]]


def _sums(sums: Mapping[tuple[int, int, int], Sequence[Term]]) -> RowSums:
    return RowSums({Rows(*r): tuple((f, Rows(*source)) for f, source in terms) for r, terms in sums.items()})


def minimal(tile: int, k: int, pairs: Sequence[float], single: float | None = None) -> Axis:
    """Toom and Cook's F(tile, k) for 'same' convolutions.

    Polynomials are evaluated at 0, at +a and -a for each of `pairs`, at `single` if one more point is needed, and at
    infinity. The two products of a pair share their sums.
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
            # The polynomials of +a and -a are (x +- a) R(x): they share x R(x) and a R(x), and later their sums.
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


# After upsampling every value of the result is S x[i], with S the sum of all taps, plus taps times differences
# d[i] = x[i + 1] - x[i].
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
