"""Whether a picture costs the same in a small run and in a large one: `python -m benchmarks.growth --out FILE.json`.

Runs of 1 to 6,224 targets, as many as `--targets all` has for VGG-16. The real worker draws two kinds of picture: of a
second or so in small runs, and as short as possible in large ones. More workers than the machine has cores only sleep,
a second a picture, see `benchmarks.scale`; they write rows and no pictures. A series of small runs is measured in
rounds, in which its sizes take turns, and the median counts.

Before the clock starts, each worker renders and commits a shard, because a worker's first one also pays for tracing the
network and for imports. The clock stops at the last commit. Worker-seconds are the wall time of all workers together;
*device* is the part in which their devices worked, and *added* is the rest: scheduling, saving, committing, waiting.
Other programs on the machine change the device's seconds, so compare those of different sizes on a quiet one only.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import ray
import typer

from benchmarks.machine import machine
from benchmarks.new_run import new_run
from benchmarks.scale import Crowd, Sleepers
from dgn.cluster.driver import Driver
from dgn.cluster.events import Attempt
from dgn.cluster.rules import Workers
from dgn.cluster.schedule import Schedule
from dgn.runs.config import RunConfig


@dataclass(frozen=True)
class Size:
    """A run's size, without the shard with which each worker begins."""

    targets: int
    workers: int
    shard_size: int

    @property
    def num_shards(self) -> int:
        return -(-self.targets // self.shard_size)


@dataclass(frozen=True)
class Series:
    """Runs of the same picture, the smallest first."""

    picture: dict[str, Any]  # settings that shorten it; none if the workers sleep
    sizes: tuple[Size, ...]
    rounds: int = 1


SLEEP_S = 1.0  # of a picture
SERIES = {
    "20 updates": Series({"width": 1 / 4, "updates": 20}, (Size(1, 1, 1), Size(4, 1, 4), Size(16, 1, 4)), rounds=3),
    "1 update": Series(
        {"width": 1 / 32, "updates": 1, "views": 1}, (Size(32, 1, 32), Size(256, 1, 32), Size(6224, 1, 32))
    ),
    "asleep": Series({}, (
        Size(1, 1, 1), Size(32, 1, 8), Size(64, 2, 8), Size(128, 4, 8), Size(256, 8, 8), Size(1024, 32, 8),
        Size(6224, 195, 8),
    )),
}  # fmt: skip


class WarmSchedule(Schedule):
    """Gives each worker one shard, and the rest when these are committed."""

    num_begun = 0

    def _next_shard(self) -> int | None:
        num_workers = self.workers.at_most
        if self.num_ready < num_workers or self.committed.count < num_workers <= self.num_begun:
            return None
        self.num_begun += 1
        return super()._next_shard()


class ReadingDriver(Driver):
    """Notes when every worker has committed its first shard, when the last shard was committed, and how long the
    devices had worked by then."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.schedule = WarmSchedule(self.context.plan, self.schedule.committed, self.schedule.workers)
        self.readings: list[tuple[float, float]] = []

    def _note_done(self, attempt: Attempt) -> None:
        super()._note_done(attempt)
        if self.progress.shards_done in (self.schedule.workers.at_most, self.progress.num_shards):
            self.readings.append((time.monotonic(), self.busy_s))


def measure(size: Size, picture: dict[str, Any]) -> dict[str, Any]:
    """One run."""
    config = RunConfig(
        targets=("classes:0",), seeds=size.workers * size.shard_size + size.targets, modes=("untrained",),
        discriminator="vgg16-mini", preset="draft", shard_size=size.shard_size, **picture,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        driver = ReadingDriver(*new_run(folder, config), None, Workers(size.workers, 0, 1.0, size.workers))
        if not picture:
            sleepers = ray.remote(num_cpus=0, max_concurrency=2 * size.workers)(Sleepers)
            process = sleepers.remote(driver.context, SLEEP_S * size.shard_size)
            driver.remote_class = Crowd([process])
        progress = driver.loop()
        if not picture:
            ray.kill(process)  # it takes as much memory as a worker
    assert progress.shards_done == size.workers + size.num_shards
    (start_s, busy_before_s), (end_s, busy_after_s) = driver.readings
    worker_s = size.workers * (end_s - start_s)
    device_s = busy_after_s - busy_before_s if picture else SLEEP_S * size.targets
    return {
        "worker_s_per_picture": worker_s / size.targets,
        "device_s_per_picture": device_s / size.targets,
        "added_share": worker_s / device_s - 1,
        "added_ms_per_shard": 1000 * (worker_s - device_s) / size.num_shards,
    }


def measure_series(name: str, most: int) -> dict[str, Any]:
    """All runs of a series; prints a line for each size."""
    series = SERIES[name]
    sizes = [size for size in series.sizes if size.targets <= most]
    rounds = [[measure(size, series.picture) for size in sizes] for _ in range(series.rounds)]
    rows: list[dict[str, Any]] = []
    for size, runs in zip(sizes, zip(*rounds, strict=True), strict=True):
        row = {key: round(statistics.median(run[key] for run in runs), 5) for key in runs[0]}
        print(
            f"{name:<12}{size.targets:>8,}{size.workers:>9}{row['worker_s_per_picture']:>15.4f}"
            f"{row['device_s_per_picture']:>10.4f}{row['added_share']:>9.2%}{row['added_ms_per_shard']:>14.1f} ms"
        )
        rows.append(asdict(size) | row)
    smallest = rows[0]["worker_s_per_picture"]
    furthest = max((row["worker_s_per_picture"] / smallest - 1 for row in rows), key=abs)
    print(f"{name:<12}furthest from the smallest run's worker-seconds: {furthest:+.1%}")
    return {
        "settings": series.picture, "rounds": series.rounds, "furthest_from_smallest": round(furthest, 4), "runs": rows
    }  # fmt: skip


def main(
    series: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SERIES)}. Default: all.")] = None,
    most: Annotated[int, typer.Option(help="Leave out runs of more targets.")] = 6224,
    out: Annotated[Path | None, typer.Option(help="Also write JSON; series not measured now stay in it.")] = None,
) -> None:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    report: dict[str, Any] = json.loads(out.read_text()) if out and out.exists() else {}
    print(f"{'a picture':<12}{'targets':>8}{'workers':>9}{'worker-s each':>15}{'device':>10}{'added':>9}"
          f"{'added a shard':>17}")  # fmt: skip
    for name in series or SERIES:
        report[name] = {"machine": machine()} | measure_series(name, most)
        if out:
            out.write_text(json.dumps(report, indent=2) + "\n")
    ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
