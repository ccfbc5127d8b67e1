"""A run that loses workers, machines and drivers at random moments, and is started again by the same command.

    python -m tests.helpers.random_kills --kills 100                    # a local folder
    python -m tests.helpers.random_kills --kills 100 --store s3         # a real S3 server on loopback
    python -m tests.helpers.random_kills --kills 100 --seed 7           # the same choices again

The seed decides how far into the run something is killed, and whether that is a worker, a machine or a driver. Which
process and shard it hits depends on timing.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import psutil
import typer

from dgn.runs.run import Run
from dgn.runs.stores import open_store
from tests.conftest import running_s3
from tests.helpers.machines import ROOT, Job, Machines, surroundings, workers

NUM_MACHINES = 4  # a worker on each
KINDS = ("worker", "worker", "worker", "machine", "driver")


class Store(StrEnum):
    local = "local"
    s3 = "s3"


def random_kills(url: str, folder: Path, machines: Machines, num_shards: int, num_kills: int, seed: int) -> dict:
    """Renders the whole run despite the kills. Returns what happened, with what `dgn verify` says."""
    chance = random.Random(seed)
    line = [
        "render", url, "--targets", "filters:conv3_1", "--seeds", "64", "--discriminator", "vgg16-mini",
        "--shard-size", str(-(-2048 // num_shards)), "--workers", str(NUM_MACHINES),
    ]  # fmt: skip
    # A kill per so many committed shards, each at its own moment, so that the last comes before the end.
    moments = sorted(chance.uniform(0, 0.95 * num_shards) for _ in range(num_kills))
    kinds = [chance.choice(KINDS) for _ in moments]
    victims = random.Random(seed)  # another stream: how often it is asked is a matter of timing
    run, killed = Run(open_store(url)), Counter[str]()
    start, num_drivers, num_left_out, was_killed, job = time.monotonic(), 0, 0, False, None
    machines.top_up(NUM_MACHINES)
    while True:
        if job is None or job.process.poll() is not None:
            if job is not None and job.process.returncode == 0:
                break
            if job is not None and not was_killed:
                # A driver may end by itself for one reason only: a shard was hit three times by chance and left out.
                last = job.log.strip().splitlines()[-1]
                assert job.process.returncode == 1 and "failed repeatedly and were left out" in last, job.log  # noqa: PT018
                num_left_out += 1
                print(f"{time.monotonic() - start:6.1f} s: {last}", flush=True)
            was_killed = False
            job, num_drivers = Job(machines, folder, "SleepyWorker", *line), num_drivers + 1
        assert time.monotonic() - start < 15 * num_shards, "it does not end"
        done = sum(1 for _ in run.store.list("metadata"))
        if moments and done >= moments[0]:
            kind = kinds[-len(moments)]
            at_work = [(node, process) for node in machines.alive for process in workers(node)]
            if at_work and job.records("worker ready"):
                moments.pop(0)
                killed[kind] += 1
                node, process = victims.choice(at_work)
                if kind == "worker":
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                elif kind == "machine":
                    machines.kill(node)
                    machines.top_up(NUM_MACHINES)
                else:
                    job.kill()
                    was_killed = True
                print(f"{time.monotonic() - start:6.1f} s: {done} shards done, killed a {kind}", flush=True)
        time.sleep(victims.uniform(0.05, 0.3))
    assert not moments, f"the run was whole before {len(moments)} of the kills"
    verified = subprocess.run(
        [sys.executable, "-m", "jobs", "verify", url, "--sample", "0"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "seed": seed,
        "kills": sum(killed.values()),
        "killed": dict(sorted(killed.items())),
        "drivers": num_drivers,
        "drivers_with_shards_left_out": num_left_out,
        "failed_attempts": sum(1 for _ in run.store.list("failures")),
        "seconds": round(time.monotonic() - start),
        "verify": verified.returncode,
        "says": (verified.stdout + verified.stderr).strip(),
    }


def main(
    kills: int = 100,
    shards: int = 256,
    store: Store = Store.local,
    seed: Annotated[int | None, typer.Option(help="Default: a new one, which is printed.")] = None,
) -> None:
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    print(f"seed {seed}, {shards} shards, {kills} kills, {store}", flush=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url, variables = str(folder / "run"), {}
        if store is Store.s3:
            url, variables = "s3://kills/run", stack.enter_context(running_s3(folder / "s3"))
        stack.enter_context(surroundings(variables))
        if store is Store.s3:
            import s3fs

            s3fs.S3FileSystem(skip_instance_cache=True).mkdir("kills")
        machines = Machines(variables)
        stack.callback(machines.end)
        outcome = random_kills(url, folder, machines, shards, kills, seed)
    print(json.dumps({"store": str(store), "shards": shards, **outcome}, indent=2))
    sys.exit(outcome["verify"])


if __name__ == "__main__":
    typer.run(main)
