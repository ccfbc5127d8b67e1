"""Files of labels: one per line, JSON, or CSV."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from dgn.errors import DgnError
from dgn.text import NOT_JSON, in_one_line, plural

NUMBERS, TEXTS = (
    ("", "index", "idx", "id", "class_id", "class", "unit", "number"),
    ("label", "name", "class_name", "labels", "names"),
)


def parse_labels(data: bytes, name: str) -> tuple[str, ...]:
    """The labels in a file, by unit.

    Args:
        name: the file's, whose ending says what it is. `.json`: a list, `{"0": "cat"}` or `{"cat": 0}`, or an object
            with one of these as `id2label`. `.csv`: labels alone, or a column of numbers from 0 and one of labels. Any
            other: a label per line.

    Raises: DgnError.
    """
    try:
        text = data.decode("utf-8-sig")
        if name.lower().endswith(".json"):
            labels = _of_json(json.loads(text, object_pairs_hook=_once_each))
        elif name.lower().endswith(".csv"):
            labels = _of_csv(list(csv.reader(io.StringIO(text), strict=True)))
        else:
            labels = [line.strip() for line in text.splitlines()]
            while labels and not labels[-1]:
                labels.pop()
    except (*NOT_JSON, ValueError, csv.Error) as error:
        raise DgnError(f"labels {name}: {in_one_line(error)}; expected one label per line, or JSON, or CSV") from error
    if not labels or not all(labels):
        where = f"class {labels.index('')} (from 0) has an empty label" if labels else "it is empty"
        raise DgnError(f"labels {name}: {where}; expected one label per class")
    return tuple(labels)


def _of_json(content: Any) -> list[str]:
    if isinstance(content, dict) and "id2label" in content:
        content = content["id2label"]
    if isinstance(content, list) and all(isinstance(label, str) for label in content):
        return content
    if isinstance(content, dict) and all(isinstance(value, str) for value in content.values()):
        return _in_order([(int(key), label) for key, label in content.items()])
    if isinstance(content, dict) and all(type(value) is int for value in content.values()):
        return _in_order([(number, label) for label, number in content.items()])
    raise ValueError("it is neither a list of labels nor numbers with labels")


def _of_csv(rows: list[list[str]]) -> list[str]:
    rows = [[cell.strip() for cell in row] for row in rows if row]
    if not rows:
        return []
    for number_of_row, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise ValueError(f"row {number_of_row} has {plural(len(row), 'cell')}, row 1 has {len(rows[0])}")
    header = [cell.lower() for cell in rows[0]]
    is_header = any(cell in TEXTS for cell in header)
    body = rows[1:] if is_header else rows
    if len(header) == 1:
        return [label for [label] in body]
    column = next((header.index(name) for name in TEXTS if name in header), None)
    number = next((header.index(name) for name in NUMBERS if name in header), None) if is_header else 0
    column = column if column is not None else 1
    if number is None:
        return [row[column] for row in body]
    return _in_order([(int(row[number]), row[column]) for row in body])


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("an object of it has a key twice")
    return content


def _in_order(numbered: list[tuple[int, str]]) -> list[str]:
    if sorted(number for number, _ in numbered) != list(range(len(numbered))):
        raise ValueError(f"its numbers are not 0 to {len(numbered) - 1}, each once")
    return [label for _, label in sorted(numbered)]
