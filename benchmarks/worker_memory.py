"""Memory of a machine's workers that no other process shares: `python -m benchmarks.worker_memory [--against FOLDER]`.

The run: VGG-16 with random weights (a file of 553 MB), preset `draft`, one update, one target in each shard. Meanwhile
the private pages of each worker are counted every few milliseconds (/proc/PID/smaps_rollup). The smallest count after
the first picture is what a worker keeps between pictures, without activations. Another checkout takes turns with this.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from torchvision.models import vgg16

from benchmarks.commands import HERE
from benchmarks.machine import machine

TARGETS = {"filters": "filters:conv3_1:0-7", "classes": "classes:0-7"}
COMMAND = "import sys; from importlib import import_module; import_module(sys.argv.pop(1)).main()"  # as installed then


def parents() -> dict[int, tuple[int, str]]:
    """Parent and command line of every process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            found[int(folder.name)] = int(status[1]), (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
    return found


def private_mb(process: int) -> float:
    """Pages in memory that no other process has."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:"))]
    return sum(kilobytes) * 1024 / 1e6


def measure(checkout: Path, weights: Path, kind: str, num_workers: int, precision: str, run: Path) -> list[float]:
    """What each worker keeps, in megabytes."""
    module = "dgn.jobs.__main__" if (checkout / "dgn" / "interrupts.py").exists() else "jobs.cli"
    settings = {"weights": weights, "targets": TARGETS[kind], "precision": precision, "workers": num_workers}
    fixed = {"modes": "untrained", "preset": "draft", "updates": 1, "shard-size": 1, "batch-size": 1}
    flags = [part for name, value in {**settings, **fixed}.items() for part in (f"--{name}", str(value))]
    driver = subprocess.Popen(
        [sys.executable, "-c", COMMAND, module, "render", str(run), *flags], cwd=checkout, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(checkout)},
    )  # fmt: skip
    kept: dict[int, float] = {}
    for process, now in samples(driver):
        if any(run.glob("metadata/*.parquet")):
            kept[process] = min(kept.get(process, now), now)
    assert driver.returncode == 0, checkout
    return sorted(kept.values())


def samples(driver: subprocess.Popen[bytes]) -> Iterator[tuple[int, float]]:
    """The workers of a command with a Ray of its own, every few milliseconds: process and private memory."""
    while driver.poll() is None:
        known = parents()
        for process, (parent, command) in known.items():
            if command.startswith("ray::Render") and known.get(parent, (0, ""))[0] == driver.pid:
                with suppress(OSError):
                    if now := private_mb(process):
                        yield process, now
        time.sleep(0.005)


def main(
    against: Annotated[Path | None, typer.Option(help="Another checkout, to compare with.")] = None,
    workers: Annotated[list[int], typer.Option()] = [1, 2, 4],  # noqa: B006
    precision: Annotated[list[str], typer.Option()] = ["float32", "bfloat16"],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Also write JSON.")] = None,
) -> None:
    checkouts = {"before": against.resolve()} if against else {}
    checkouts["now"] = HERE
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "vgg16.safetensors"
        torch.manual_seed(0)
        save_file(vgg16(weights=None).state_dict(), weights)
        for of_precision in precision:
            for kind in TARGETS:
                for num_workers in workers:
                    for name, checkout in checkouts.items():
                        run = Path(folder) / f"{of_precision}-{kind}-{num_workers}-{name}"
                        kept = measure(checkout, weights, kind, num_workers, of_precision, run)
                        rows.append({
                            "precision": of_precision, "targets": kind, "workers": num_workers, "of": name,
                            "private_mb": [round(one) for one in kept],
                        })  # fmt: skip
                        print(json.dumps(rows[-1]), flush=True)
    if out:
        out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
