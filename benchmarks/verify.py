"""How fast `dgn verify` reads 100,000 pictures: `python -m benchmarks.verify [--before CHECKOUT] [--out FILE.json]`.

Makes a run of 105,808 rows in a folder (plan, rows, files and their sizes are as in a real run, the pictures are drawn
at random), and verifies it in a process of its own, again and again. With `--before` another checkout of dgn takes
turns with this one. The run stays in FOLDER, so that repeating the command does not make it again.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Annotated, Any

import pyarrow.compute as pc
import typer

from benchmarks.commands import HERE, run_command
from benchmarks.machine import machine
from dgn.runs.run import Run
from tests.helpers.fake_runs import write_fake_run

SHARD_SIZE = 32
COUNTED = re.compile(r"([\d,]+) targets expected, ([\d,]+) found, 0 duplicate or stray, 0 scored again, 0 problems")


def main(
    folder: Annotated[Path, typer.Option(help="Of the run; 10 GB.")] = Path("build/verified"),
    seeds: Annotated[int, typer.Option(help="6,224 rows each.")] = 17,
    before: Annotated[Path | None, typer.Option(help="Another checkout, to compare with.")] = None,
    rounds: int = 3,
    out: Annotated[Path | None, typer.Option(help="Also write JSON.")] = None,
) -> None:
    if not (folder / "run.json").exists():
        write_fake_run(str(folder), seeds=seeds, shard_size=SHARD_SIZE, noise=3, has_own_files=True)
    checkouts = {"before": before.resolve()} if before else {}
    checkouts["now"] = HERE
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(rounds):
        for name, checkout in checkouts.items():
            command = run_command("verify", str(folder.resolve()), "--sample", "0", checkout=checkout)
            count = COUNTED.fullmatch(command.printed)
            assert count, command.printed
            assert count[1] == count[2]
            measured[name].append({"wall_s": command.wall_s, "cpu_s": command.cpu_s, "peak_mb": command.peak_mb})
            print(f"{name:<8}{command.wall_s:>8.1f} s {command.cpu_s:>8.1f} s of CPU {command.peak_mb:>8.0f} MB")
    run = Run.at(str(folder))
    info, [first] = run.info(), run.tables([0], ["bytes"])
    figures: dict[str, Any] = {
        "machine": machine(), "targets": info.num_targets, "shards": info.num_shards,
        "picture_bytes": round(pc.mean(first["bytes"]).as_py()), "rounds": measured,
        "median_wall_s": {name: statistics.median(one["wall_s"] for one in of) for name, of in measured.items()},
    }  # fmt: skip
    print(json.dumps(figures["median_wall_s"]))
    if out:
        out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
