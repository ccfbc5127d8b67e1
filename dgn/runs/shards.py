"""Sets of shards: which are whole, and half-open ranges of their numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import AfterValidator

MAX_SHARDS = 10**10  # each takes a bit of memory; a file that claims more was edited


def _in_order(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    ends = [0, *itertools.chain.from_iterable(ranges), MAX_SHARDS]
    if ends != sorted(ends) or any(start == stop for start, stop in ranges):
        raise ValueError("expected ranges of shards in order")
    return ranges


Ranges = Annotated[list[tuple[int, int]], AfterValidator(_in_order)]  # half-open, of shards


def as_ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted numbers as half-open ranges."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))
    return ranges


def in_ranges(ranges: Iterable[tuple[int, int]]) -> Iterator[int]:
    """The numbers in half-open ranges."""
    return itertools.chain.from_iterable(range(start, stop) for start, stop in ranges)


class Committed:
    """Which shards are whole, one bit each."""

    def __init__(self, num_shards: int):
        self._bits = bytearray((num_shards + 7) // 8)
        self.num_shards = num_shards
        self.count = 0

    def add(self, shard: int) -> None:
        if shard not in self:
            self._bits[shard // 8] |= 1 << shard % 8
            self.count += 1

    def __contains__(self, shard: int) -> bool:
        return 0 <= shard < self.num_shards and bool(self._bits[shard // 8] >> shard % 8 & 1)

    def __iter__(self) -> Iterator[int]:
        """The whole shards, in order."""
        return (shard for shard in range(self.num_shards) if shard in self)

    def missing(self) -> Iterator[int]:
        """The others, in order."""
        return (shard for shard in range(self.num_shards) if shard not in self)
