"""What a run of a million rows takes: `python -m benchmarks.million [--folder FOLDER] [--out FILE.json]`.

Makes a run of 1,002,064 rows in shards of 32 in a folder (plan, rows and thumbnails are as in a real run; the rows
share a few pictures), then asks for its status without an index, makes the index, and asks again. Each command is a
process of its own. The run stays in FOLDER, so that repeating the command does not make it again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.commands import Command, run_command
from benchmarks.machine import machine
from dgn.runs.run import Run
from tests.helpers.fake_runs import write_fake_run

SHARD_SIZE = 32


def main(
    folder: Annotated[Path, typer.Option(help="Of the run; 5 GB.")] = Path("build/million"),
    seeds: Annotated[int, typer.Option(help="6,224 rows each.")] = 161,
    out: Annotated[Path | None, typer.Option(help="Also write JSON.")] = None,
) -> None:
    if not (folder / "run.json").exists():
        write_fake_run(str(folder), seeds=seeds, shard_size=SHARD_SIZE)
    run, info = str(folder.resolve()), Run.at(str(folder)).info()
    shutil.rmtree(folder / "index", ignore_errors=True)
    figures: dict[str, Any] = {"machine": machine(), "rows": info.num_targets, "shards": info.num_shards}
    unindexed = _noted(figures, "status_without_index", run_command("status", run))
    _noted(figures, "index", run_command("index", run))
    indexed = _noted(figures, "status", run_command("status", run))
    assert indexed.printed == unindexed.printed
    if out:
        out.write_text(json.dumps(figures, indent=2) + "\n")


def _noted(figures: dict[str, Any], name: str, command: Command) -> Command:
    figures[name] = {"wall_s": command.wall_s, "cpu_s": command.cpu_s, "peak_mb": command.peak_mb}
    print(f"{name:<22}{command.wall_s:>8.1f} s {command.cpu_s:>8.1f} s of CPU {command.peak_mb:>8.0f} MB")
    return command


if __name__ == "__main__":
    typer.run(main)
