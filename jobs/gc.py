"""`dgn gc`: deletes pictures that no row names."""

from __future__ import annotations

from cluster.lease import is_driver_at_work
from dgn.errors import DgnError, printable
from jobs.status import open_run


def gc_command(url: str, uncommitted: bool, dry_run: bool) -> None:
    """Of whole shards, every picture that its rows do not name: another attempt's. Of the others only when asked to,
    since an attempt at them may be under way."""
    run = open_run(url)
    info = run.info()
    if uncommitted and not dry_run and is_driver_at_work(run.store):
        raise DgnError(f"a driver is at work on {run.store.url}: --uncommitted would delete what it is making; wait")
    committed = run.committed(info.num_shards)
    named: dict[int, set[str]] = {}
    num_deleted = num_kept = num_temporary = 0
    for key in run.store.list("images"):
        name = key.split("/")[1]
        if not name.isdecimal():
            continue  # not ours
        shard = int(name)
        if shard in committed and shard not in named:
            named = {shard: set(next(run.tables([shard], ["file_name"]))["file_name"].to_pylist())}
        is_left_over = key not in named[shard] if shard in committed else uncommitted
        if not is_left_over:
            num_kept += 1
            continue
        num_deleted += 1
        if dry_run:
            print(printable(key))
        else:
            run.store.delete(key)
    if uncommitted:
        for key in list(run.store.list("", is_hidden=True)):
            num_temporary += 1
            if dry_run:
                print(printable(key))
            else:
                run.store.delete(key)
    files = f"{num_deleted} pictures" + (f" and {num_temporary} unfinished files" if uncommitted else "")
    print(f"{files} {'would be ' if dry_run else ''}deleted, {num_kept} pictures kept")
