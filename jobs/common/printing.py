"""Tables and JSON on standard output."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from dgn.text import printable

PIPED_CHARS = 160  # per line, if standard output is not a terminal


def print_table(names: Sequence[str], is_number: Sequence[bool], rows: Sequence[Sequence[str]]) -> None:
    """Prints one line per row or, if rows are too wide, one line per value."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else PIPED_CHARS)
    table = Table(box=box.SIMPLE_HEAD)
    for name, is_right in zip(names, is_number, strict=True):
        table.add_column(Text(printable(name)), justify="right" if is_right else "left")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    if Measurement.get(console, console.options.update(max_width=sys.maxsize), table).maximum > console.width:
        table = Table(box=box.SIMPLE, show_header=False)
        table.add_column()
        table.add_column(overflow="fold")
        for row in rows:
            for name, cell in zip(names, row, strict=True):
                table.add_row(Text(printable(name)), Text(printable(cell)))
            table.add_section()
    console.print(table)


def print_json(value: Any) -> None:
    """Prints one JSON document. Infinities and NaN, which JSON lacks, become null."""
    print(json.dumps(_finite(value), indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage that says 0% only for none and 100% only for all."""
    if share is None:
        return ""
    text = f"{share:.0%}"
    return {"0%": "<1%", "100%": ">99%"}.get(text, text) if 0 < share < 1 else text
