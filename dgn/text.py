"""Text from elsewhere (errors, file names, labels), made safe to print on one line."""

from __future__ import annotations

import json

NOT_JSON = (json.JSONDecodeError, UnicodeDecodeError, RecursionError)  # what `json.loads` raises for other bytes
MAX_CHARS = 300


def printable(text: object) -> str:
    """The text with control characters escaped, so that it can neither steer a terminal nor add lines."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def plural(num: int, noun: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"


def in_one_line(error: BaseException) -> str:
    """An error as `Type: message` on one line, without the wrapper that Ray puts around a remote error."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"[:MAX_CHARS]
