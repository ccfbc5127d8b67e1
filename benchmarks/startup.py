"""How soon a run starts and ends: `python -m benchmarks.startup --weights FILE [--against CHECKOUT] [--rounds 100]`.

One picture of SqueezeNet, preset `draft`, one update, one worker, as a process of its own on a Ray of its own: seconds
from its start until it says that the worker is ready, until its row is committed, and until it has ended. The first
update lies between the first two. Another checkout takes turns with this one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.commands import HERE
from benchmarks.machine import machine

COMMAND = "import sys; from importlib import import_module; import_module(sys.argv.pop(1)).main()"  # as installed then
PICTURE = "--targets classes:9 --preset draft --updates 1 --workers 1 --discriminator squeezenet1_0 --weights"


def measure(checkout: Path, weights: Path, run: Path) -> dict[str, float]:
    """Seconds from the start."""
    module = "dgn.jobs.__main__" if (checkout / "dgn" / "interrupts.py").exists() else "jobs.cli"
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": ""}
    started_at = time.monotonic()
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, module, "render", str(run), *PICTURE.split(), str(weights)], cwd=checkout,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip
    seconds: dict[str, float] = {}

    def watch() -> None:
        while command.poll() is None and "row" not in seconds:
            if any(run.glob("metadata/*.parquet")):
                seconds["row"] = time.monotonic() - started_at
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert command.stdout
    for line in command.stdout:
        if "worker ready" in line:
            seconds["ready"] = time.monotonic() - started_at
    assert command.wait() == 0, checkout
    seconds["end"] = time.monotonic() - started_at
    watcher.join()
    return {**seconds, "after_row": seconds["end"] - seconds["row"]}


def main(
    weights: Annotated[Path, typer.Option(help="SqueezeNet 1.0's.")],
    against: Annotated[Path | None, typer.Option(help="Another checkout, to compare with.")] = None,
    rounds: int = 5,
    out: Annotated[Path | None, typer.Option(help="Also write JSON.")] = None,
) -> None:
    checkouts = {"before": against.resolve()} if against else {}
    checkouts["now"] = HERE
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):  # the first compiles, and fills the page cache
            for name, checkout in checkouts.items():
                seconds = measure(checkout, weights.resolve(), Path(folder) / f"{name}-{number}")
                if number:
                    measured[name].append(seconds)
                    print(name, {what: round(value, 2) for what, value in seconds.items()}, flush=True)
    figures: dict[str, Any] = {"machine": machine(), "rounds": rounds}
    for name, of in measured.items():
        ends = [one["end"] for one in of]
        figures[name] = {
            **{f"median_{what}_s": round(statistics.median(one[what] for one in of), 2) for what in of[0]},
            "most_end_s": round(max(ends), 2),
            "deviation_end_s": round(statistics.stdev(ends), 2) if rounds > 1 else None,
        }
    print(json.dumps({name: figures[name] for name in checkouts}, indent=2))
    if out:
        out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
