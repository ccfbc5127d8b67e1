"""`dgn gc`: deletes pictures left by killed attempts, which no row names."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from dgn.errors import DgnError
from dgn.jobs.common.arguments import RunArgument
from dgn.runs.lease import is_driver_at_work
from dgn.runs.run import Run
from dgn.text import plural, printable

MIN_AGE_HOURS = 24.0  # a worker outlives its driver by minutes, or by hours where the network is gone between them


def command(
    run: RunArgument,
    uncommitted: Annotated[
        bool,
        typer.Option("--uncommitted", help="Also delete unfinished shards and files; only while nothing renders RUN."),
    ] = False,
    older_than: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="HOURS",
            help="With --uncommitted: spare what was written later than this, because a worker may still be writing "
            f"when its driver is gone; {MIN_AGE_HOURS:g} by default.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be deleted.")] = False,
) -> None:
    """Deletes pictures that a committed shard's rows do not name. An uncommitted shard may still be rendering, so its
    pictures are deleted only if asked to, and if they are old."""
    if older_than is not None and not uncommitted:
        raise DgnError("--older-than is for unfinished shards and files: give --uncommitted too, or leave it out")
    opened = Run.at(run)
    info = opened.info()
    store = opened.store
    if uncommitted and not dry_run and is_driver_at_work(store):
        raise DgnError(
            f"a driver is at work on {store.url}: --uncommitted would delete its pictures; wait until it ends"
        )
    committed = opened.committed(info.num_shards)
    hours = MIN_AGE_HOURS if older_than is None else older_than
    newest = time.time() - hours * 3600
    num_young = 0

    def delete(key: str) -> int:
        if dry_run:
            print(printable(key))
        else:
            store.delete(key)
        return 1

    def delete_old(key: str, written_at: float) -> int:
        nonlocal num_young
        if written_at <= newest:
            return delete(key)
        num_young += 1
        return 0

    named: dict[int, set[str]] = {}
    num_deleted = num_kept = num_temporary = 0
    for key, written_at in store.list_dated("images"):
        name = key.split("/")[1]
        if not name.isdecimal():
            continue  # not a shard's folder
        shard = int(name)
        if shard in committed and shard not in named:
            named = {shard: set(next(opened.tables([shard], ["file_name"]))["file_name"].to_pylist())}
        if shard in committed and key not in named[shard]:
            num_deleted += delete(key)  # at any age: whatever its attempt still writes, another one has won
        elif shard not in committed and uncommitted:
            num_deleted += delete_old(key, written_at)
        else:
            num_kept += 1
    if uncommitted:
        num_temporary = sum(delete_old(*dated) for dated in list(store.list_dated("", is_hidden=True)))
    files = plural(num_deleted, "picture") + (f" and {plural(num_temporary, 'unfinished file')}" if uncommitted else "")
    spared = f"; {plural(num_young, 'file')} spared, written less than {hours:g} hours ago" if num_young else ""
    print(f"{files} {'would be ' if dry_run else ''}deleted, {plural(num_kept, 'picture')} kept{spared}")
