"""Questions about a run's rows: conditions on every column, the best of a column, through the index.

The index's parts and row groups tell the least and the highest value of every column, so that only those are read that
can hold an answer. Committed shards that are not indexed yet are read one by one and asked the same.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from cluster.index import Group, Index, Part, arrow_dataset, open_part, read_groups, read_index
from cluster.judgements import JUDGED_SCHEMA
from cluster.rows import SCHEMA
from cluster.run import Run, metadata_key
from dgn.errors import DgnError

COLUMNS = tuple(name for name in SCHEMA.names if name != "thumbnail")  # that can be asked for
COMPARABLE = tuple(name for name in COLUMNS if not pa.types.is_list(SCHEMA.field(name).type))
BEST_FIRST = {"activation": "descending", "probability": "descending", "rank": "ascending"}
GROUPS_AT_A_TIME = 4  # read between two looks at whether any other can still hold a better row
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">=": pc.greater_equal, "<=": pc.less_equal, "!=": pc.not_equal, "=": pc.equal, ">": pc.greater, "<": pc.less,
}  # fmt: skip
CONTAINS = "~"
_PATTERN = re.compile(r"\s*(\w+)\s*(>=|<=|!=|==?|>|<|~)(?!=)\s*(.+)", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """`column operator value`. A missing value fulfils none but `!=`. `~`: contains, whatever its case."""

    column: str
    operator: str
    value: Any

    def mask(self, rows: pa.Table) -> pa.ChunkedArray:
        """One boolean per row."""
        column = rows[self.column]
        if self.operator == CONTAINS:
            fulfilled = pc.match_substring(column, self.value, ignore_case=True)
        else:
            fulfilled = _COMPARE[self.operator](column, pa.scalar(self.value, SCHEMA.field(self.column).type))
        return pc.fill_null(fulfilled, self.operator == "!=")

    def may_hold(self, least: Any, highest: Any) -> bool:
        """Whether a column of values between these can have one that fulfils this."""
        match self.operator:
            case "=":
                return least <= self.value <= highest
            case ">=" | ">":
                return _COMPARE[self.operator](pa.scalar(highest), pa.scalar(self.value)).as_py()
            case "<=" | "<":
                return _COMPARE[self.operator](pa.scalar(least), pa.scalar(self.value)).as_py()
        return True


def parse_condition(text: str) -> Condition:
    """`activation>=20`, `label~heron`, `status=ok`. Raises: DgnError."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise DgnError(f"'{text}' is no condition: expected COLUMN, one of = != > >= < <= ~, and a value")
    column, operator_, value = match.groups()
    return condition(column, "=" if operator_ == "==" else operator_, value)


def condition(column: str, operator_: str, value: Any) -> Condition:
    """Raises: DgnError for a column that cannot be compared, or a value of another kind."""
    check_columns([column])
    if column not in COMPARABLE:
        raise DgnError(f"cannot compare column '{column}': it holds lists")
    type_ = SCHEMA.field(column).type
    if operator_ == CONTAINS:
        if not pa.types.is_string(type_):
            raise DgnError(f"'{column}{CONTAINS}{value}': ~ looks into text, {column} is of type {type_}")
        return Condition(column, operator_, value)
    try:
        if pa.types.is_timestamp(type_) and isinstance(value, str):
            moment = datetime.fromisoformat(value)
            value = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        parsed = pa.scalar(value).cast(type_).as_py()
        if parsed != parsed:  # not a number, which fulfils no comparison
            raise ValueError(value)
    except (pa.ArrowException, ValueError) as error:
        raise DgnError(f"'{column}{operator_}{value}': expected a value of type {type_}") from error
    return Condition(column, operator_, parsed)


def check_columns(names: Iterable[str], known: Sequence[str] = COLUMNS) -> None:
    """Raises: DgnError."""
    for name in names:
        if name not in known:
            judged = "; what judges say is in --sql's table judged" if name in JUDGED_SCHEMA.names else ""
            raise DgnError(f"unknown column '{name}': expected one of {', '.join(known)}{judged}")


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A row group and the best value that it can hold."""

    best: float
    part: Part
    row_group: int


class Rows:
    """The rows of a run's whole shards, as they were when this was made."""

    def __init__(self, run: Run):
        self.run, self.info = run, run.info()
        self.index: Index | None = read_index(run)
        if self.index and self.index.run_id != self.info.run_id:
            self.index = None
        self._files: dict[str, pq.ParquetFile] = {}

    def layers(self) -> list[str]:
        """In order of depth. Reads all shards that are not indexed."""
        first: dict[str, int] = {}
        for layer, shard in self._layers_with_shards():
            first[layer] = min(shard, first.get(layer, shard))
        return sorted(first, key=lambda layer: first[layer])

    def _layers_with_shards(self) -> Iterator[tuple[str, int]]:
        for part in self.index.parts if self.index else ():
            yield from ((group.layer, group.first_shard) for group in part.groups)
        for shard, table in zip(new := self._not_indexed(), self.run.tables(new, ["layer"]), strict=True):
            yield from ((layer, shard) for layer in table["layer"].unique().to_pylist())

    def select(
        self,
        conditions: Sequence[Condition] = (),
        columns: Sequence[str] = COLUMNS,
        by: str = "activation",
        top: int | None = None,
    ) -> pa.Table:
        """Rows that fulfil all conditions, best first, the `top` best of them or all. Missing values come last.

        Raises: DgnError for an unknown column, StoreError.
        """
        check_columns(columns)
        check_columns([by], tuple(BEST_FIRST))
        needed = list(dict.fromkeys([*columns, by, "activation", "target_id", *(c.column for c in conditions)]))
        found = [pa.table({name: pa.array([], SCHEMA.field(name).type) for name in needed})]
        for rows in self.run.tables(self._not_indexed(), needed):
            found = _with_matching(found, rows, conditions, by, top)
        candidates = self._candidates(conditions, by)
        while candidates and not _is_beaten(found[0], by, top, candidates[0].best):
            some, candidates = candidates[:GROUPS_AT_A_TIME], candidates[GROUPS_AT_A_TIME:]
            for part, of_part in itertools.groupby(some, key=operator.attrgetter("part")):
                rows = read_groups(self.run, part, self._open(part), [one.row_group for one in of_part], needed)
                found = _with_matching(found, rows, conditions, by, top)
        return _best_first(pa.concat_tables(found), by).select(list(columns))

    def tables(self, columns: Sequence[str] = COLUMNS) -> Iterator[pa.Table]:
        """All rows, in the order in which they are stored, a few thousand at a time."""
        for part in self.index.parts if self.index else ():
            for group in range(self._open(part).num_row_groups):
                yield read_groups(self.run, part, self._open(part), [group], columns)
        yield from (table.select(list(columns)) for table in self.run.tables(self._not_indexed(), list(columns)))

    def dataset(self) -> ds.Dataset:
        """All rows for engines that read Arrow's datasets."""
        keys = [part.rows_key for part in self.index.parts] if self.index else []
        keys += [metadata_key(shard) for shard in self._not_indexed()]
        return arrow_dataset(self.run, keys, pa.schema([SCHEMA.field(name) for name in COLUMNS]))

    def _candidates(self, conditions: Sequence[Condition], by: str) -> list[_Candidate]:
        """Row groups that may hold answers, the most promising first."""
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

    def _not_indexed(self) -> list[int]:
        """Whole shards of which the index does not know. No listing where it has all."""
        if self.index and self.index.is_whole:
            return []
        committed = self.run.committed(self.info.num_shards)
        indexed = {shard for part in self.index.parts for shard in part.shard_numbers()} if self.index else set()
        return [shard for shard in range(self.info.num_shards) if shard in committed and shard not in indexed]

    def _open(self, part: Part) -> pq.ParquetFile:
        if part.id not in self._files:
            self._files[part.id] = open_part(self.run, part)
        return self._files[part.id]


def _with_matching(
    found: list[pa.Table], rows: pa.Table, conditions: Sequence[Condition], by: str, top: int | None
) -> list[pa.Table]:
    """What was found so far and those of `rows` that fulfil all conditions; of only `top`, one table, best first."""
    if conditions:
        rows = rows.filter(functools.reduce(pc.and_, (one.mask(rows) for one in conditions)))
    return [*found, rows] if top is None else [_best_first(pa.concat_tables([*found, rows]), by, top)]


def _is_beaten(rows: pa.Table, by: str, top: int | None, best: float) -> bool:
    """Whether there are `top` rows already and the last of them is better than what else there can be."""
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
