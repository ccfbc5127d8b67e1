"""`dgn status` and `dgn failed`: how far a run is and what went wrong."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from cluster.lease import Lookout
from cluster.run import Committed, Run
from cluster.storage import open_store
from dgn.errors import printable
from jobs.cli import print_json

WATCH_S = 2.0


def open_run(url: str) -> Run:
    """Raises: StoreError where there is no folder, bucket or run."""
    store = open_store(url)
    store.check(must_write=False)
    return Run(store)


class _Statuses:
    """Outcomes of committed pictures; a shard is read once however often it is asked."""

    def __init__(self, run: Run):
        self.run, self.counts, self.seen = run, Counter[str](), set[int]()

    def update(self, committed: Committed) -> Counter[str]:
        new = [shard for shard in range(committed.num_shards) if shard in committed and shard not in self.seen]
        for shard, table in zip(new, self.run.tables(new, ["status"]), strict=True):
            self.counts.update(table["status"].to_pylist())
            self.seen.add(shard)
        return self.counts


def _summary(run: Run, statuses: _Statuses) -> dict[str, Any]:
    info = run.info()
    committed = run.committed(info.num_shards)
    counts = statuses.update(committed)
    return {
        "run": run.store.url,
        "run_id": info.run_id,
        "discriminator": info.fingerprint["discriminator"],
        "preset": info.config["preset"],
        "pictures_done": counts.total(),
        "pictures": info.num_targets,
        "shards_done": committed.count,
        "shards": info.num_shards,
        "statuses": dict(sorted(counts.items())),
        "failed_attempts": sum(1 for _ in run.store.list("failures")),
        "is_whole": committed.count == info.num_shards,
    }


def _line(summary: dict[str, Any]) -> str:
    outcomes = ", ".join(f"{count:,} {status}" for status, count in summary["statuses"].items()) or "none yet"
    return printable(
        f"{summary['pictures_done']:,} of {summary['pictures']:,} pictures ({outcomes}), "
        f"{summary['shards_done']:,} of {summary['shards']:,} shards, {summary['failed_attempts']} failed attempts"
    )


def status_command(url: str, as_json: bool, watch: bool) -> None:
    run = open_run(url)
    statuses = _Statuses(run)
    summary = _summary(run, statuses)
    lookout = Lookout(run.store)
    start, done_at_start = time.monotonic(), summary["pictures_done"]
    while watch and not summary["is_whole"]:
        minutes = (time.monotonic() - start) / 60
        rate = (summary["pictures_done"] - done_at_start) / minutes if minutes else 0.0
        left_min = (summary["pictures"] - summary["pictures_done"]) / rate if rate else None
        pace = f"; {rate:.1f} a minute, {left_min:,.0f} minutes left" if left_min is not None else ""
        idle = "" if lookout.sees_driver() else "; no driver is at work: the same dgn render line goes on"
        print(_line(summary) + pace + idle, flush=True)
        time.sleep(WATCH_S)
        summary = _summary(run, statuses)
    if as_json:
        print_json(summary)
    else:
        begun_as = f"{summary['discriminator']}, preset {summary['preset']}, run {summary['run_id']}"
        print(printable(f"{summary['run']}: {begun_as}"))
        print(_line(summary))


def failed_command(url: str) -> None:
    run = open_run(url)
    info = run.info()
    committed = run.committed(info.num_shards)
    num_shards = 0
    for failure in run.failures():
        if failure["shard"] not in committed:
            num_shards += 1
            attempt = f"shard {failure['shard']:06d} attempt {failure['attempt']} {failure['failed_at']}"
            print(printable(f"{attempt}: {failure['error']}"))
    num_pictures = 0
    columns = ["target_id", "status", "reason"]
    for table in run.tables((shard for shard in range(info.num_shards) if shard in committed), columns):
        for row in table.to_pylist():
            if row["status"] != "ok":
                num_pictures += 1
                print(printable(f"{row['target_id']}: {row['status']}, {row['reason']}"))
    missing = info.num_shards - committed.count
    print(f"{missing} shards missing ({num_shards} failed attempts at them), {num_pictures} pictures not ok")
