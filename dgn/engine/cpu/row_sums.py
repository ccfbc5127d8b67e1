"""Sums of whole rows of maps: the linear maps that `winograd.py` computes before and after its products.

Rows of channels-last maps are large contiguous pieces of memory, so adding them is as fast as memory allows. Columns
are the rows of the transposed map.

Shapes: N pictures, C channels, H, W the map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """The rows step * t + offset of one map, for every integer t for which the map has that row."""

    map: int
    step: int
    offset: int

    def span(self, height: int) -> range:
        """Every t for which a map of this height has the row."""
        return range(-(self.offset // self.step), -((self.offset - height) // self.step))

    def slice(self, first: int, count: int) -> slice:
        start = self.step * first + self.offset
        return slice(start, start + self.step * (count - 1) + 1, self.step)


@dataclass(frozen=True, eq=False)
class RowSums:
    """Maps whose rows are weighted sums of rows of other maps. Rows beyond a map's edge count as zero.

    Partial sums that several rows share are maps of their own. They have negative numbers and are written first.
    """

    sums: Mapping[Rows, Sequence[tuple[float, Rows]]]  # result rows -> (factor, source rows)

    @cached_property
    def num_common(self) -> int:
        """How many maps of shared partial sums there are."""
        return -min(0, *(result.map for result in self.sums))

    @cached_property
    def transposed(self) -> RowSums:
        """The transposed linear map, which gradients go through."""
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


Piece = tuple[tuple[int, slice], list[tuple[float, int, slice]]]  # (result, its rows), [(factor, source, its rows)]


@lru_cache(maxsize=1024)
def _plan(sums: RowSums, result_heights: tuple[int, ...], source_heights: tuple[int, ...]) -> list[Piece]:
    """Which slices of rows are added up into which, in order."""
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
        pieces += [(t, 1) for t in span if not first <= t < last]  # at the edges, where some source has no such row
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
    """Writes the weighted sum of `parts` to `out`. Parts with factor 1 come first."""
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
