"""`dgn query`: rows of a run, filtered, highest activation first."""

from __future__ import annotations

import csv
import heapq
import math
import sys
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc

from cluster.run import Run
from dgn.errors import DgnError, printable
from dgn.targets import MODES
from jobs.cli import print_json
from jobs.status import open_run

COLUMNS = ["target_id", "layer", "unit", "label", "mode", "status", "activation", "rank", "probability", "file_name"]
STATUSES = ("ok", "not_converged", "dead", "nonfinite")


def query_command(
    url: str,
    mode: str | None,
    layer: str | None,
    min_activation: float | None,
    status: str | None,
    top: int | None,
    form: str,
) -> None:
    for name, value, known in (("mode", mode, MODES), ("status", status, STATUSES)):
        if value is not None and value not in known:
            raise DgnError(f"unknown {name} '{value}': expected one of {', '.join(known)}")
    matching = _rows(open_run(url), mode, layer, min_activation, status)
    by_activation = (
        heapq.nlargest(top, matching, key=_activation) if top else sorted(matching, key=_activation, reverse=True)
    )
    if form == "json":
        print_json(by_activation)
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, COLUMNS)
        writer.writeheader()
        for row in by_activation:
            writer.writerow(
                {name: printable(value) if isinstance(value, str) else value for name, value in row.items()}
            )
    else:
        _print_table(by_activation)


def _rows(
    run: Run, mode: str | None, layer: str | None, min_activation: float | None, status: str | None
) -> Iterator[dict[str, Any]]:
    info = run.info()
    committed = run.committed(info.num_shards)
    wanted = {"mode": mode, "layer": layer, "status": status}
    for table in run.tables((shard for shard in range(info.num_shards) if shard in committed), COLUMNS):
        for name, value in wanted.items():
            if value is not None:
                table = table.filter(pc.field(name) == value)
        if min_activation is not None:
            table = table.filter(pc.field("activation") >= min_activation)
        yield from table.to_pylist()


def _activation(row: dict[str, Any]) -> float:
    return -math.inf if row["activation"] is None else row["activation"]


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in COLUMNS[:-1]:
        is_number = name in ("unit", "activation", "rank", "probability")
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row[name])) for name in COLUMNS[:-1]))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print(f"{len(rows)} pictures")


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else printable(value)
