"""Conditions on a run's columns, and how `--where` writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dgn.errors import DgnError
from dgn.runs.alike import FIGURE_TYPES
from dgn.runs.judgements import JUDGED_SCHEMA
from dgn.runs.schema import QUERY_COLUMNS, SCHEMA
from dgn.statuses import Status
from dgn.targets import MODES

TYPES = {name: SCHEMA.field(name).type for name in QUERY_COLUMNS} | FIGURE_TYPES
COMPARABLE = tuple(name for name, type_ in TYPES.items() if not pa.types.is_list(type_))
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">=": pc.greater_equal, "<=": pc.less_equal, "!=": pc.not_equal, "=": pc.equal, ">": pc.greater, "<": pc.less,
}  # fmt: skip
CONTAINS = "~"
WORDS: dict[str, tuple[str, ...]] = {"mode": MODES, "status": tuple(Status)}  # all values of a column
_PATTERN = re.compile(r"\s*(\w+)\s*(>=|<=|!=|==?|>|<|~)(?!=)\s*(.+)", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """`column operator value`. A null satisfies only `!=`. `~` means contains, ignoring case."""

    column: str
    operator: str
    value: Any

    def mask(self, rows: pa.Table) -> pa.ChunkedArray:
        """One boolean per row: whether it satisfies this."""
        column = rows[self.column]
        if self.operator == CONTAINS:
            satisfied = pc.match_substring(column, self.value, ignore_case=True)
        else:
            satisfied = _COMPARE[self.operator](column, pa.scalar(self.value, TYPES[self.column]))
        return pc.fill_null(satisfied, self.operator == "!=")

    def may_hold(self, least: Any, highest: Any) -> bool:
        """Whether a column with these extremes can hold a value that satisfies this."""
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
        raise DgnError(f"'{text}' is not a condition: expected COLUMN, one of = != > >= < <= ~, and a value")
    column, operator_, value = match.groups()
    return condition(column, "=" if operator_ == "==" else operator_, value)


def condition(column: str, operator_: str, value: Any) -> Condition:
    """Raises: DgnError for an unknown column or one of lists, or a value that the column cannot have."""
    check_columns([column])
    if column not in COMPARABLE:
        raise DgnError(f"cannot compare column '{column}': it holds lists")
    if column in WORDS and operator_ in ("=", "!=") and value not in WORDS[column]:
        raise DgnError(f"unknown {column} '{value}': expected one of {', '.join(WORDS[column])}")
    type_ = TYPES[column]
    if operator_ == CONTAINS:
        if not pa.types.is_string(type_):
            raise DgnError(f"'{column}{CONTAINS}{value}': ~ searches text, but {column} is of type {type_}")
        return Condition(column, operator_, value)
    try:
        if pa.types.is_timestamp(type_) and isinstance(value, str):
            moment = datetime.fromisoformat(value)
            value = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        parsed = pa.scalar(value).cast(type_).as_py()
        if parsed != parsed:  # NaN, which satisfies no comparison
            raise ValueError(value)
    except (pa.ArrowException, ValueError) as error:
        raise DgnError(f"'{column}{operator_}{value}': expected a value of type {type_}") from error
    return Condition(column, operator_, parsed)


def check_columns(names: Iterable[str], known: Sequence[str] = tuple(TYPES)) -> None:
    """Raises: DgnError."""
    for name in names:
        if name not in known:
            judged = "; judgements are in the table judged of --sql" if name in JUDGED_SCHEMA.names else ""
            raise DgnError(f"unknown column '{name}': expected one of {', '.join(known)}{judged}")
