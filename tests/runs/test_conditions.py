"""Conditions as people write them."""

import re
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from dgn.errors import DgnError
from dgn.runs.conditions import COMPARABLE, TYPES, condition, parse_condition
from dgn.runs.schema import QUERY_COLUMNS, SCHEMA

BAD = {
    "activation": "'activation' is not a condition: expected COLUMN, one of = != > >= < <= ~, and a value",
    "label<=": "is not a condition: expected COLUMN",
    "label===heron": "is not a condition: expected COLUMN",
    "activation>nan": "expected a value of type float",
    "judge_rank=1": "judgements are in the table judged of --sql",
    "thumbnail=1": "unknown column 'thumbnail': expected one of run_id, target_id",
    "top5=1": "cannot compare column 'top5': it holds lists",
    "rank=abc": "'rank=abc': expected a value of type int32",
    "rank=1.5": "expected a value of type int32",
    "unit=99999999999": "expected a value of type int32",
    "rank~1": "~ searches text, but rank is of type int32",
    "rendered_at>yesterday": "expected a value of type timestamp",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_wrong_is_named(text):
    with pytest.raises(DgnError, match=re.escape(BAD[text])):
        parse_condition(text)


@pytest.mark.parametrize(
    ("text", "column", "operator", "value"),
    [
        ("layer=fc8", "layer", "=", "fc8"),
        ("layer==fc8", "layer", "=", "fc8"),  # as in Python
        (" activation >= 20", "activation", ">=", 20.0),
        ("label~great white", "label", "~", "great white"),
        ("rank!=1", "rank", "!=", 1),
        ("rendered_at>2026-01-01", "rendered_at", ">", datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
def test_what_is_right_is_understood(text, column, operator, value):
    parsed = parse_condition(text)
    assert (parsed.column, parsed.operator, parsed.value) == (column, operator, value)


def test_every_column_but_lists_can_be_compared():
    plain = {name for name in QUERY_COLUMNS if not pa.types.is_list(SCHEMA.field(name).type)}
    assert set(COMPARABLE) == plain | {"redundancy", "spread"}
    for name in COMPARABLE:
        type_ = TYPES[name]
        text = {"mode": "untrained", "status": "ok"}.get(name, "a")
        value = "2026-01-01" if pa.types.is_timestamp(type_) else text if pa.types.is_string(type_) else 1
        assert condition(name, "=", value).column == name
