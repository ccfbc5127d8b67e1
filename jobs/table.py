"""A table on standard output."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dgn.errors import printable

PIPED_CHARS = 160  # a line's, where no terminal says


def print_table(names: Sequence[str], is_number: Sequence[bool], rows: Sequence[Sequence[str]]) -> None:
    """A line for each row, or where that would not fit, as with many columns, a line for each of its values."""
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
