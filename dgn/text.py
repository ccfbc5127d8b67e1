"""Text from elsewhere (errors, file names, labels), made safe to print on one line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable

NOT_JSON = (json.JSONDecodeError, UnicodeDecodeError, RecursionError)  # what `json.loads` raises for other bytes
MAX_CHARS = 300
A_BUCKET = "s3://, gs:// or az://bucket/prefix"  # the addresses of buckets, in help and messages


def printable(text: object) -> str:
    """The text with control characters escaped, so that it can neither steer a terminal nor add lines."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def plural(num: int, noun: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"


def as_flag(values: float | Iterable[float]) -> str:
    """Numbers as a flag takes them: `0.5`, `0.485,0.456,0.406`."""
    return ",".join(f"{number:g}" for number in (values if isinstance(values, Iterable) else (values,)))


def near(name: str, known: Iterable[str], are: str = "expected") -> str:
    """What to try instead of an unknown name: `did you mean A or B?` or, if none is similar, the first of all."""
    by_lower = {one.lower(): one for one in known}
    similar = [by_lower[one] for one in difflib.get_close_matches(name.lower(), by_lower, n=3)]
    return f"did you mean {' or '.join(similar)}?" if similar else f"{are} {some(list(by_lower.values()))}"


def some(names: list[str], at_most: int = 6) -> str:
    """The first names of a list, and how many there are."""
    return ", ".join(names[:at_most]) + (f", ... ({len(names)} in all)" if len(names) > at_most else "")


def in_one_line(error: BaseException) -> str:
    """An error as `Type: message` on one line, without the wrapper that Ray puts around a remote error."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"[:MAX_CHARS]
