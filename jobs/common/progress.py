"""Progress of a job: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal

from dgn.text import plural

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from dgn.cluster.progress import Progress as RunProgress

log = logging.getLogger("dgn")

LOG_EVERY_S = 10.0


def log_to_stderr(log_format: Literal["text", "json"] = "text") -> None:
    """Logs lines of text. JSON lines are written by Ray, from `connection.connect` on."""
    if log_format == "text":
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for chatty in ("ray", "botocore", "aiobotocore", "s3fs", "adlfs", "fsspec", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for doubling in ("azure", "gcsfs", "google"):  # they log what they raise, over many lines
        logging.getLogger(doubling).setLevel(logging.CRITICAL)


@contextmanager
def bar(what: str, total: int | None, state: str = "", is_transient: bool = False) -> Iterator[tuple[Progress, TaskID]]:
    """Shows a bar on standard error if that is a terminal, followed by the task's field `state`."""
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
def pictures_done(num_pictures: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that adds a number of finished pictures."""
    with bar("pictures", num_pictures, is_transient=True) as (progress, task):
        yield lambda num: progress.advance(task, num)


@contextmanager
def shards_done(what: str, num_shards: int) -> Iterator[Callable[[int, int], None]]:
    """Yields an observer of the numbers of finished shards and pictures: a bar on a terminal, log lines elsewhere."""
    start = last = time.monotonic()
    if not sys.stderr.isatty():

        def report(num_done: int, num_pictures: int) -> None:
            nonlocal last
            if time.monotonic() - last > LOG_EVERY_S:
                last = time.monotonic()
                rate = 60 * num_pictures / (last - start)
                log.info("%d of %d %s, %.0f pictures/min", num_done, num_shards, what, rate)

        yield report
        return
    with bar(what, num_shards) as (progress, task):

        def observe(num_done: int, num_pictures: int) -> None:
            rate = 60 * num_pictures / max(time.monotonic() - start, 1e-9)
            progress.update(task, completed=num_done, state=f"{rate:.0f} pictures/min")

        yield observe


@contextmanager
def render_progress(what: str = "pictures") -> Iterator[Callable[[RunProgress], None]]:
    """Yields an observer of the driver: a bar with pictures per minute and time left, or log lines."""
    if not sys.stderr.isatty():
        yield _log_render_progress(what.removesuffix("s"))
        return
    with ExitStack() as stack:
        shown: list[tuple[Progress, TaskID]] = []

        def observe(run: RunProgress) -> None:
            if not shown:  # not before, or bad input would leave an empty bar above its error
                shown.append(stack.enter_context(bar(what, run.num_targets)))
            progress, task = shown[0]
            state = f"{run.pictures_per_minute:.1f}/min" if run.workers_ready else "starting workers"
            progress.update(task, completed=run.pictures_done, state=state)

        yield observe


def _log_render_progress(what: str) -> Callable[[RunProgress], None]:
    last: tuple[int, float] = (-1, 0.0)

    def observe(run: RunProgress) -> None:
        nonlocal last
        if run.pictures_done not in (0, last[0]) and time.monotonic() - last[1] > LOG_EVERY_S:
            last = (run.pictures_done, time.monotonic())
            rate = run.pictures_per_minute
            num_left = run.num_targets - run.pictures_done
            left = f", {plural(round(num_left / rate), 'minute')} left" if rate and num_left else ""
            log.info(
                "%d of %s, %.1f/min%s, %d retries",
                run.pictures_done, plural(run.num_targets, what), rate, left, run.retries,
                extra={"run": run.run_id},
            )  # fmt: skip

    return observe
