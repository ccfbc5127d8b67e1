"""Workers side by side, and one whose pictures go to a folder or to S3: `python -m benchmarks.scaling --out FILE.json`.

Real workers with a thread each, on the embedded classifier and the preset `draft`, shortened. Time runs from when all
workers are ready to the last commit. `busy`: the devices' share of the time from each worker's first shard to its last
picture; `idle a shard`: the rest of it, by the shard, which is what scheduling, saving and committing cost the devices.
`python -m benchmarks.scale` drives a thousand workers that only sleep.
"""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import ray
import typer

from benchmarks.machine import machine
from benchmarks.new_run import new_run
from dgn.cluster.driver import Driver
from dgn.cluster.events import Attempt
from dgn.cluster.rules import Workers
from dgn.cluster.schedule import Schedule
from dgn.runs.config import RunConfig
from dgn.runs.stores.s3 import S3Store
from tests.conftest import running_s3
from tests.helpers.machines import surroundings

NUM_SHARDS = 8
SHARD_SIZE = 4
NUM_WORKERS = (1, 2, 4)


class TogetherSchedule(Schedule):
    """Starts when all workers are ready: how long that takes has nothing to do with scaling."""

    started_at = 0.0

    def _next_shard(self) -> int | None:
        if not self.started_at and self.num_ready == self.workers.at_most:
            self.started_at = time.monotonic()
        return super()._next_shard() if self.started_at else None


class TogetherDriver(Driver):
    """Notes when the last shard was committed."""

    ended_at = 0.0

    def _note_done(self, attempt: Attempt) -> None:
        super()._note_done(attempt)
        self.ended_at = time.monotonic()


def measure(url: str, num_workers: int, updates: int) -> dict[str, Any]:
    """A run of eight shards: a class each, four times."""
    config = RunConfig(
        targets=(f"classes:0-{NUM_SHARDS - 1}",), seeds=SHARD_SIZE, modes=("untrained",), discriminator="vgg16-mini",
        preset="draft", width=0.25, updates=updates, shard_size=SHARD_SIZE,
    )  # fmt: skip
    workers = Workers(num_workers, 0, 1.0, num_workers)
    driver = TogetherDriver(*new_run(url, config), None, workers)
    schedule = driver.schedule = TogetherSchedule(driver.context.plan, driver.schedule.committed, workers)
    progress = driver.loop()
    assert progress.shards_done == NUM_SHARDS
    seconds = driver.ended_at - schedule.started_at
    return {
        "store": "S3" if url.startswith("s3://") else "folder",
        "workers": num_workers,
        "pictures": progress.pictures_done,
        "seconds": round(seconds, 2),
        "pictures_per_minute": round(60 * progress.pictures_done / seconds, 1),
        "busy_share": round(driver.busy_s / driver.span_s, 4),
        "idle_ms_per_shard": round(1000 * (driver.span_s - driver.busy_s) / NUM_SHARDS, 1),
    }


def main(
    updates: Annotated[int, typer.Option(help="Of each picture.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Also write JSON.")] = None,
) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(surroundings(stack.enter_context(running_s3(folder / "s3"))))
        S3Store("s3://scaling/run").client.create_bucket(Bucket="scaling")
        ray.init(address="local", num_cpus=max(NUM_WORKERS), include_dashboard=False, log_to_driver=False)
        stack.callback(ray.shutdown)
        runs = [measure(str(folder / f"run-{count}"), count, updates) for count in NUM_WORKERS]
        runs.append(measure("s3://scaling/run", 1, updates))
    alone = runs[0]["pictures_per_minute"]
    print(f"{'store':<8}{'workers':>8}{'pictures/min':>14}{'efficiency':>12}{'busy':>9}{'idle a shard':>14}")
    for figures in runs:
        figures["efficiency"] = round(figures["pictures_per_minute"] / alone / figures["workers"], 3)
        print(
            f"{figures['store']:<8}{figures['workers']:>8}{figures['pictures_per_minute']:>14.1f}"
            f"{figures['efficiency']:>12.1%}{figures['busy_share']:>9.2%}{figures['idle_ms_per_shard']:>11.1f} ms"
        )
    if out:
        out.write_text(json.dumps({"machine": machine(), "updates": updates, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
