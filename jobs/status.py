"""`dgn status`: a run's progress."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any

import pyarrow as pa
import typer

from dgn.jobs.common.arguments import RunArgument
from dgn.jobs.common.printing import print_json
from dgn.runs.index import indexed_rows
from dgn.runs.info import RunInfo
from dgn.runs.lease import Lookout
from dgn.runs.run import Run
from dgn.runs.shards import Committed
from dgn.text import plural, printable

WATCH_S = 2.0


def command(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every two seconds until the run is whole.")] = False,
) -> None:
    opened = Run.at(run)
    statuses = _Statuses(opened)
    summary = _summary(statuses)
    lookout = Lookout(opened.store)
    start, done_at_start = time.monotonic(), summary["pictures_done"]
    while watch and not summary["is_whole"]:
        minutes = (time.monotonic() - start) / 60
        rate = (summary["pictures_done"] - done_at_start) / minutes if minutes else 0.0
        left_min = (summary["pictures"] - summary["pictures_done"]) / rate if rate else None
        pace = f"; {rate:.1f}/min, {plural(round(left_min), 'minute')} left" if left_min is not None else ""
        idle = "" if lookout.sees_driver() else "; no driver is at work: dgn resume continues the run"
        print(_line(summary) + pace + idle, flush=True)
        time.sleep(WATCH_S)
        summary = _summary(statuses)
    if as_json:
        print_json(summary)
    else:
        begun_as = f"{summary['discriminator']}, preset {summary['preset']}, run {summary['run_id']}"
        print(printable(f"{summary['run']}: {begun_as}"))
        print(_line(summary))


class _Statuses:
    """Counts of committed pictures by status. Every row is read only once, most of them from the index."""

    def __init__(self, run: Run):
        self.run = run
        self.counts, self.seen = Counter[str](), Committed(0)

    def update(self, info: RunInfo, committed: Committed) -> Counter[str]:
        if self.seen.num_shards < info.num_shards:  # targets were added
            seen, self.seen = self.seen, Committed(info.num_shards)
            for shard in seen:
                self.seen.add(shard)
        if not self.seen.count:
            for part, rows in indexed_rows(self.run, info, committed, ["status"]):
                self._add(part.shard_numbers(), rows)
        new = [shard for shard in committed if shard not in self.seen]
        for shard, table in zip(new, self.run.tables(new, ["status"]), strict=True):
            self._add([shard], table)
        return self.counts

    def _add(self, shards: Iterable[int], rows: pa.Table) -> None:
        self.counts.update({one["values"]: one["counts"] for one in rows["status"].value_counts().to_pylist()})
        for shard in shards:
            self.seen.add(shard)


def _summary(statuses: _Statuses) -> dict[str, Any]:
    run = statuses.run
    info = run.info()
    committed = run.committed(info.num_shards)
    counts = statuses.update(info, committed)
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
        f"{summary['pictures_done']:,} of {plural(summary['pictures'], 'picture')} ({outcomes}), "
        f"{summary['shards_done']:,} of {plural(summary['shards'], 'shard')}, "
        f"{plural(summary['failed_attempts'], 'failed attempt')}"
    )
