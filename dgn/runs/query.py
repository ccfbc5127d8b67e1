"""Selecting a run's rows by conditions, best first, through the index.

Parquet's statistics give the minimum and maximum of every column of a row group, so only row groups that can hold an
answer are read. Committed shards that are not indexed yet are read one by one.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dgn.errors import DgnError
from dgn.runs.alike import FIGURE_TYPES, SIMILARITY, Alike
from dgn.runs.conditions import Condition, check_columns
from dgn.runs.index_file import Group, Index, Part, read_index
from dgn.runs.index_parts import arrow_dataset, open_part, read_groups
from dgn.runs.layout import metadata_key
from dgn.runs.run import Run
from dgn.runs.schema import QUERY_COLUMNS, SCHEMA

BEST_FIRST = {
    "activation": "descending", "probability": "descending", "rank": "ascending",
    **dict.fromkeys(FIGURE_TYPES, "descending"),
}  # fmt: skip
GROUPS_AT_A_TIME = 4  # read before asking again whether another can hold a better row


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A row group and the best value that it can hold."""

    best: float
    part: Part
    row_group: int


class Rows:
    """The rows of a run's committed shards, as of the first question."""

    def __init__(self, run: Run):
        self.run, self.info = run, run.info()
        self.index: Index | None = read_index(run)
        if self.index and self.index.run_id != self.info.run_id:
            self.index = None
        self._files: dict[str, pq.ParquetFile] = {}

    def layers(self) -> list[str]:
        """The run's layers in order of depth. Reads every shard that is not indexed."""
        first: dict[str, int] = {}
        for layer, shard in self._layers_with_shards():
            first[layer] = min(shard, first.get(layer, shard))
        return sorted(first, key=lambda layer: first[layer])

    def _layers_with_shards(self) -> Iterator[tuple[str, int]]:
        for part in self.index.parts if self.index else ():
            yield from ((group.layer, group.first_shard) for group in part.groups)
        for shard, table in zip(new := self._not_indexed, self.run.tables(new, ["layer"]), strict=True):
            yield from ((layer, shard) for layer in table["layer"].unique().to_pylist())

    def select(
        self,
        conditions: Sequence[Condition] = (),
        columns: Sequence[str] = QUERY_COLUMNS,
        by: str = "activation",
        top: int | None = None,
    ) -> pa.Table:
        """The rows that satisfy all conditions, best first: the `top` best of them, or all. Nulls come last.

        Columns and conditions may name figures of `dgn alike` too.

        Raises: DgnError for an unknown column, a `top` below 1, or figures that nobody has computed; StoreError.
        """
        _check_top(top)
        check_columns(columns)
        check_columns([by], tuple(BEST_FIRST))
        needed = list(dict.fromkeys([*columns, by, "activation", "target_id", *(c.column for c in conditions)]))
        if not FIGURE_TYPES.keys().isdisjoint(needed):
            return self._select_by_figures(conditions, needed, by, top).select(list(columns))
        found = [pa.table({name: pa.array([], SCHEMA.field(name).type) for name in needed})]
        for rows in self.run.tables(self._not_indexed, needed):
            found = _with_matching(found, rows, conditions, by, top)
        candidates = self._candidates(conditions, by)
        while candidates and not _is_beaten(found[0], by, top, candidates[0].best):
            some, candidates = candidates[:GROUPS_AT_A_TIME], candidates[GROUPS_AT_A_TIME:]
            for part, of_part in itertools.groupby(some, key=operator.attrgetter("part")):
                rows = read_groups(self.run, part, self._open(part), [one.row_group for one in of_part], needed)
                found = _with_matching(found, rows, conditions, by, top)
        return _best_first(pa.concat_tables(found), by).select(list(columns))

    def _select_by_figures(
        self, conditions: Sequence[Condition], needed: Sequence[str], by: str, top: int | None
    ) -> pa.Table:
        """All rows that satisfy the other conditions get their figures first."""
        stored = [name for name in dict.fromkeys([*needed, "attempt"]) if name not in FIGURE_TYPES]
        plain = [one for one in conditions if one.column not in FIGURE_TYPES]
        of_figures = [one for one in conditions if one.column in FIGURE_TYPES]
        rows = Alike.of(self.run).figures_of(self.select(plain, stored))
        return _best_first(pa.concat_tables(_with_matching([], rows, of_figures, by, None)), by, top)

    def like(
        self,
        target_id: str,
        conditions: Sequence[Condition] = (),
        columns: Sequence[str] = (*QUERY_COLUMNS, SIMILARITY),
        top: int | None = None,
    ) -> pa.Table:
        """The rows that satisfy all conditions and whose pictures resemble a target's most, the most similar first.

        `similarity` is the cosine of their embeddings; the target itself comes first, with 1.

        Raises: DgnError as `select`, and if the target is not among the pictures that `dgn alike` has compared, or was
            rendered again since.
        """
        _check_top(top)
        check_columns([name for name in columns if name != SIMILARITY])
        alike = Alike.of(self.run)
        number, keys = alike.number_of(target_id), ["target_id", "attempt"]
        among = self._is_there(alike, pa.concat_tables(self.tables(keys)))
        if not among[number]:
            raise DgnError(f"'{target_id}' was rendered again since: repeat dgn alike {self.run.store.url}")
        if conditions:
            among &= self._is_there(alike, self.select(conditions, keys))
        count = int(among.sum())
        found = alike.like(number, min(top or count, count), among)
        stored = [name for name in dict.fromkeys([*columns, "target_id", "attempt"]) if name in QUERY_COLUMNS]
        ids = found["target_id"].combine_chunks()
        rows = pa.concat_tables(table.filter(pc.is_in(table["target_id"], ids)) for table in self.tables(stored))
        places = alike.places_of(found, rows)
        rows = rows.take(places.drop_null())
        rows = rows.append_column(SIMILARITY, found[SIMILARITY].filter(places.is_valid()))
        if not FIGURE_TYPES.keys().isdisjoint(columns):
            rows = alike.figures_of(rows)
        return rows.select(list(columns))

    @staticmethod
    def _is_there(alike: Alike, rows: pa.Table) -> NDArray[np.bool_]:
        """Which of the compared pictures are among these rows."""
        places = alike.places_of(rows, alike.targets)
        return np.isin(np.arange(len(alike.targets)), places.drop_null().to_numpy())

    def tables(self, columns: Sequence[str] = QUERY_COLUMNS) -> Iterator[pa.Table]:
        """All rows in stored order, a few thousand at a time."""
        for part in self.index.parts if self.index else ():
            for group in range(self._open(part).num_row_groups):
                yield read_groups(self.run, part, self._open(part), [group], columns)
        yield from (table.select(list(columns)) for table in self.run.tables(self._not_indexed, list(columns)))

    def dataset(self) -> ds.Dataset:
        """All rows, for engines that read Arrow datasets."""
        keys = [part.rows_key for part in self.index.parts] if self.index else []
        keys += [metadata_key(shard) for shard in self._not_indexed]
        return arrow_dataset(self.run, keys, pa.schema([SCHEMA.field(name) for name in QUERY_COLUMNS]))

    def _candidates(self, conditions: Sequence[Condition], by: str) -> list[_Candidate]:
        """The row groups that may hold answers, most promising first."""
        sign = 1 if BEST_FIRST[by] == "descending" else -1
        candidates = []
        for part in self.index.parts if self.index else ():
            if any(_group_may_hold(group, conditions) for group in part.groups):
                metadata = self._open(part).metadata
                for number in range(metadata.num_row_groups):
                    chunks = _chunks(metadata.row_group(number))
                    if all(_chunk_may_hold(chunks[one.column], one) for one in conditions):
                        candidates.append(_Candidate(sign * _best_possible(chunks[by], sign), part, number))
        return sorted(candidates, key=lambda candidate: -sign * candidate.best)

    @cached_property
    def _not_indexed(self) -> list[int]:
        """Committed shards that the index lacks. Lists nothing if the index is whole."""
        if self.index and self.index.is_whole:
            return []
        committed = self.run.committed(self.info.num_shards)
        indexed = {shard for part in self.index.parts for shard in part.shard_numbers()} if self.index else set()
        return [shard for shard in range(self.info.num_shards) if shard in committed and shard not in indexed]

    def _open(self, part: Part) -> pq.ParquetFile:
        if part.id not in self._files:
            self._files[part.id] = open_part(self.run, part)
        return self._files[part.id]


def _check_top(top: object) -> None:
    """Raises: DgnError."""
    if top is not None and (not isinstance(top, int) or top < 1):
        raise DgnError(f"number of rows: expected an integer of at least 1, got {top!r}")


def _with_matching(
    found: list[pa.Table], rows: pa.Table, conditions: Sequence[Condition], by: str, top: int | None
) -> list[pa.Table]:
    """`found` and the rows that satisfy all conditions; with `top`, only the best of both, in one table."""
    if conditions:
        rows = rows.filter(reduce(pc.and_, (one.mask(rows) for one in conditions)))
    return [*found, rows] if top is None else [_best_first(pa.concat_tables([*found, rows]), by, top)]


def _is_beaten(rows: pa.Table, by: str, top: int | None, best: float) -> bool:
    """Whether there are `top` rows already, all of them better than `best`."""
    if top is None or rows.num_rows < top:
        return False
    last = rows[by][top - 1].as_py()
    return last is not None and (last > best if BEST_FIRST[by] == "descending" else last < best)


def _best_first(rows: pa.Table, by: str, top: int | None = None) -> pa.Table:
    keys = {by: BEST_FIRST[by], "activation": "descending", "target_id": "ascending"}
    return rows.take(pc.sort_indices(rows, [(name, order, "at_end") for name, order in keys.items()])[:top])


def _group_may_hold(group: Group, conditions: Sequence[Condition]) -> bool:
    known = {"layer": group.layer, "mode": group.mode}
    return all(one.may_hold(known[one.column], known[one.column]) for one in conditions if one.column in known)


def _chunks(row_group: pq.RowGroupMetaData) -> dict[str, pq.ColumnChunkMetaData]:
    columns = (row_group.column(i) for i in range(row_group.num_columns))
    return {column.path_in_schema: column for column in columns}


def _chunk_may_hold(chunk: pq.ColumnChunkMetaData, one: Condition) -> bool:
    statistics = chunk.statistics
    if statistics is None:
        return True
    if statistics.null_count == chunk.num_values:
        return one.operator == "!="
    return not statistics.has_min_max or one.may_hold(statistics.min, statistics.max)


def _best_possible(chunk: pq.ColumnChunkMetaData, sign: int) -> float:
    """The highest of sign * value that the chunk can hold."""
    statistics = chunk.statistics
    if statistics is None:
        return math.inf
    if statistics.null_count == chunk.num_values:
        return -math.inf
    return max(sign * statistics.min, sign * statistics.max) if statistics.has_min_max else math.inf
