"""The driver under the load of a thousand workers: what it loses, what it holds, what the store takes.

    python -m benchmarks.scale                             # 1,000 workers, a million targets, shards of 20 s
    python -m benchmarks.scale --seconds 0 --targets 200000   # as fast as the driver can
    python -m benchmarks.scale --url s3://bucket/scale     # commits to S3

The renderer only sleeps; the plan, the driver, Ray's calls and the commits (rows, no pictures) are the real ones. A
thousand processes do not fit on one machine, so a few Ray actors each sleep for many workers at once.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import psutil
import ray
import typer

from dgn.cluster import connection
from dgn.cluster.context import Place, RunContext, ShardReport
from dgn.cluster.driver import Driver
from dgn.cluster.rules import Workers
from dgn.networks.registry import network_named
from dgn.runs.config import RunConfig
from dgn.runs.plan import fingerprint, make_plan
from dgn.runs.run import Run
from dgn.runs.stores import open_store

NUM_PROCESSES = 4
NUM_THREADS = 16  # of each, for commits


class Sleepers:
    """Many workers in one process: each sleeps as long as a shard takes, and commits its rows during the next sleep."""

    def __init__(self, context: RunContext, seconds: float):
        self.context, self.seconds, self.run = context, seconds, Run(open_store(context.url))
        self.free_since: dict[int, float] = {}
        self.slept: dict[str, tuple[int, float]] = {}  # by attempt: the shard and when it started
        self.threads = ThreadPoolExecutor(NUM_THREADS)
        self.idle_s = self.busy_s = self.commit_s = 0.0

    async def ready(self) -> Place:
        return Place.here("asleep")

    async def render(self, seat: int, index: int, attempt: str) -> None:
        start = time.monotonic()
        self.idle_s += start - self.free_since.get(seat, start)
        await asyncio.sleep(self.seconds)
        end = self.free_since[seat] = time.monotonic()
        self.busy_s += end - start
        self.slept[attempt] = index, start

    async def finish(self, attempt: str) -> ShardReport:
        index, start = self.slept.pop(attempt)
        shard = self.context.plan.shard(index)
        rows = [
            {
                "run_id": self.context.run_id, "target_id": target.target_id, "shard": index, "attempt": attempt,
                "layer": target.layer, "unit": target.unit, "mode": target.mode, "seed": target.seed, "status": "ok",
                "file_name": None,
            }
            for target in shard.targets
        ]  # fmt: skip
        await asyncio.get_running_loop().run_in_executor(self.threads, self._commit, index, attempt, rows)
        return ShardReport(index, len(rows), {"ok": len(rows)}, time.monotonic() - start)

    def _commit(self, index: int, attempt: str, rows: list[dict[str, Any]]) -> None:
        before = time.monotonic()
        self.run.commit(index, attempt, rows, {"run_id": self.context.run_id})
        self.commit_s += time.monotonic() - before

    async def pulse(self) -> float:
        return time.monotonic()

    async def totals(self) -> tuple[float, float, float]:
        return self.idle_s, self.busy_s, self.commit_s


class Seat:
    """One worker's handle: what the driver calls on an actor, sent to the process that sleeps for it."""

    def __init__(self, process: Any, number: int):
        self.ready, self.pulse, self.finish = process.ready, process.pulse, process.finish
        self.render = self
        self.process, self.number = process, number

    def remote(self, index: int, attempt: str) -> Any:
        return self.process.render.remote(self.number, index, attempt)


class Crowd:
    """In place of the driver's class of workers: each is a seat in a shared process instead of one of its own."""

    def __init__(self, processes: list[Any]):
        self.seats = (Seat(processes[number % len(processes)], number) for number in itertools.count())

    def remote(self, *_: Any) -> Seat:
        return next(self.seats)


def main(
    workers: int = 1000,
    targets: Annotated[int, typer.Option(help="A multiple of 1,000: every class, with so many seeds.")] = 1_000_000,
    seconds: Annotated[float, typer.Option(help="That a shard of 32 takes.")] = 20.0,
    url: str = "build/scale",
    out: Annotated[Path | None, typer.Option(help="Also write JSON.")] = None,
) -> None:
    config = RunConfig(targets=("classes",), modes=("untrained",), seeds=targets // 1000, weights="none")
    plan = make_plan(config, network_named("vgg16").layers)
    render = config.render_config("float32")
    identity = fingerprint(plan, render, network_named("vgg16"), "", None)
    run = Run(open_store(url))
    run.store.check(must_write=True)
    info = run.start(identity, config, plan.num_targets, plan.num_shards)
    connection.connect()
    context = RunContext(run.store.url, info.run_id, plan, render, identity, 1)
    sleepers = ray.remote(num_cpus=0, max_concurrency=2 * workers)(Sleepers)
    processes = [sleepers.remote(context, seconds) for _ in range(NUM_PROCESSES)]
    ray.get([process.ready.remote() for process in processes])
    me = psutil.Process()
    begin_bytes = me.memory_info().rss
    driver = Driver(run, info, context, None, None, Workers(workers, 0, 0, workers))  # type: ignore[arg-type]
    driver.remote_class = Crowd(processes)
    num_before, start, start_cpu = driver.schedule.committed.count, time.monotonic(), time.process_time()
    progress = driver.loop()
    wall_s, cpu_s = time.monotonic() - start, time.process_time() - start_cpu
    num_done = progress.shards_done - num_before
    idle_s, busy_s, commit_s = map(sum, zip(*ray.get([p.totals.remote() for p in processes]), strict=True))
    listing = time.monotonic()
    count = run.committed(plan.num_shards).count
    listing_s = time.monotonic() - listing
    figures = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "store": "s3" if url.startswith("s3://") else "local",
        "workers": workers, "targets": plan.num_targets, "shards": plan.num_shards, "shards_done": num_done,
        "shard_s": seconds, "wall_s": round(wall_s, 1), "shards_per_s": round(num_done / wall_s, 1),
        # Between a shard's end and the next one's beginning, on the same worker; and all in all, with the first calls,
        # the commits, the tail and these processes' own lateness.
        "share_lost_between_shards": round(idle_s / (idle_s + busy_s), 5),
        "share_lost_in_all": round(1 - num_done * seconds / (workers * wall_s), 5),
        "driver_cpu_ms_per_shard": round(1000 * cpu_s / max(num_done, 1), 2),
        "driver_bytes_before": begin_bytes, "driver_bytes_after": me.memory_info().rss,
        "commit_ms": round(1000 * commit_s / max(num_done, 1), 1),
        "listed": count, "listing_s": round(listing_s, 2), "listed_per_s": round(count / listing_s),
    }  # fmt: skip
    print(json.dumps(figures, indent=2))
    if out:
        out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
