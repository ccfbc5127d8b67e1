"""`dgn failed`: a run's missing shards, and pictures that are not ok."""

from __future__ import annotations

from dgn.jobs.common.arguments import RunArgument
from dgn.runs.run import Run
from dgn.statuses import Status
from dgn.text import plural, printable


def command(run: RunArgument) -> None:
    opened = Run.at(run)
    info = opened.info()
    committed = opened.committed(info.num_shards)
    num_attempts = num_pictures = 0
    for failure in opened.failures():
        if failure["shard"] not in committed:
            num_attempts += 1
            attempt = f"shard {failure['shard']:06d} attempt {failure['attempt']} {failure['failed_at']}"
            print(printable(f"{attempt}: {failure['error']}"))
    for table in opened.tables(committed, ["target_id", "status", "reason"]):
        for row in table.to_pylist():
            if Status(row["status"]).is_failure:
                num_pictures += 1
                print(printable(f"{row['target_id']}: {row['status']}, {row['reason']}"))
    missing = info.num_shards - committed.count
    print(
        f"{plural(missing, 'shard')} missing after {plural(num_attempts, 'failed attempt')}, "
        f"{plural(num_pictures, 'picture')} not ok"
    )
