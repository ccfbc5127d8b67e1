"""`dgn gc`: deletes pictures left by killed attempts, which no row names."""

from __future__ import annotations

from typing import Annotated

import typer

from dgn.errors import DgnError
from dgn.jobs.common.flags import RunArgument
from dgn.runs.lease import is_driver_at_work
from dgn.runs.run import Run
from dgn.text import plural, printable


def command(
    run: RunArgument,
    uncommitted: Annotated[
        bool,
        typer.Option("--uncommitted", help="Also delete unfinished shards and files; only while nothing renders RUN."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be deleted.")] = False,
) -> None:
    """Deletes pictures that a committed shard's rows do not name. An uncommitted shard may still be rendering, so its
    pictures are deleted only if asked to."""
    opened = Run.at(run)
    info = opened.info()
    store = opened.store
    if uncommitted and not dry_run and is_driver_at_work(store):
        raise DgnError(
            f"a driver is at work on {store.url}: --uncommitted would delete its pictures; wait until it ends"
        )
    committed = opened.committed(info.num_shards)

    def delete(key: str) -> None:
        if dry_run:
            print(printable(key))
        else:
            store.delete(key)

    named: dict[int, set[str]] = {}
    num_deleted = num_kept = num_temporary = 0
    for key in store.list("images"):
        name = key.split("/")[1]
        if not name.isdecimal():
            continue  # not a shard's folder
        shard = int(name)
        if shard in committed and shard not in named:
            named = {shard: set(next(opened.tables([shard], ["file_name"]))["file_name"].to_pylist())}
        is_left_over = key not in named[shard] if shard in committed else uncommitted
        if not is_left_over:
            num_kept += 1
            continue
        num_deleted += 1
        delete(key)
    if uncommitted:
        for key in list(store.list("", is_hidden=True)):
            num_temporary += 1
            delete(key)
    files = plural(num_deleted, "picture") + (f" and {plural(num_temporary, 'unfinished file')}" if uncommitted else "")
    print(f"{files} {'would be ' if dry_run else ''}deleted, {plural(num_kept, 'picture')} kept")
