"""How far a job is, on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@contextmanager
def bar(what: str, total: int, state: str = "", is_transient: bool = False) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on standard error, nothing where that is no terminal. The task's field `state` is shown behind it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    console, is_hidden = Console(stderr=True), not sys.stderr.isatty()
    with Progress(*columns, console=console, disable=is_hidden, transient=is_transient) as progress:
        yield progress, progress.add_task(what, total=total, state=state)


@contextmanager
def pictures_shown(num_pictures: int) -> Iterator[Callable[[int], None]]:
    """To be told of pictures done."""
    with bar("pictures", num_pictures, is_transient=True) as (progress, task):
        yield lambda num: progress.advance(task, num)
