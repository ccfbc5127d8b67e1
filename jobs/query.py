"""`dgn query`: rows of a run, filtered, best first, as text, JSON, CSV or Parquet, with their pictures if asked for."""

from __future__ import annotations

import csv
import io
import shutil
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.index import judged_dataset
from cluster.query import COLUMNS, Condition, Rows, check_columns, condition, parse_condition
from cluster.run import Run
from cluster.storage import HIDDEN
from dgn.errors import DgnError, printable
from dgn.targets import MODES
from jobs.cli import print_json
from jobs.status import open_run

SHOWN = ("target_id", "layer", "unit", "label", "mode", "status", "activation", "rank", "probability", "file_name")
STATUSES = ("ok", "not_converged", "dead", "nonfinite")
TABLE_CHARS = 160  # a line of the table where no terminal says


def query_command(
    url: str, flags: dict[str, Any], where: list[str], by: str, top: int | None, columns: str | None, sql: str | None,
    form: str, copy_to: Path | None,
) -> None:  # fmt: skip
    """`flags`: mode, layer, status and min_activation, None where not given."""
    for name, known in (("mode", MODES), ("status", STATUSES)):
        if flags[name] is not None and flags[name] not in known:
            raise DgnError(f"unknown {name} '{flags[name]}': expected one of {', '.join(known)}")
    conditions = [parse_condition(text) for text in where]
    conditions += [condition(name, "=", flags[name]) for name in ("mode", "layer", "status") if flags[name] is not None]
    if flags["min_activation"] is not None:
        conditions.append(condition("activation", ">=", flags["min_activation"]))
    if sql and (conditions or top or columns):
        raise DgnError("--sql says by itself which rows and columns: leave the other conditions out")
    if form == "parquet" and sys.stdout.isatty():
        raise DgnError("--format parquet is no text for a terminal: send it into a file, > FILE.parquet")
    if copy_to is not None and copy_to.exists() and (not copy_to.is_dir() or any(copy_to.iterdir())):
        raise DgnError(f"--copy-to {copy_to} exists: give a folder that does not, or an empty one")
    names = _columns(columns)
    run = open_run(url)
    rows = Rows(run)
    if sql:
        table = _by_sql(rows, sql)
    else:
        needed = names if copy_to is None else list(dict.fromkeys([*names, "file_name", "sha256"]))
        table = rows.select(conditions, needed, by, top)
        if table.num_rows == 0:
            _check_layers(rows, conditions)
    if copy_to is not None:
        _copy_pictures(run, table, copy_to)
    _print(table if sql else table.select(names), form)


def _columns(text: str | None) -> list[str]:
    if text is None:
        return list(SHOWN)
    names = list(COLUMNS) if text == "all" else [name.strip() for name in text.split(",")]
    check_columns(names)
    return names


def _check_layers(rows: Rows, conditions: list[Condition]) -> None:
    """An empty answer about a layer that the run does not have is a mistyped question. Raises: DgnError."""
    asked = [one.value for one in conditions if (one.column, one.operator) == ("layer", "=")]
    if asked and asked[0] not in (layers := rows.layers()):
        raise DgnError(f"the run has no pictures of layer '{asked[0]}': it has {', '.join(layers) or 'none yet'}")


def _by_sql(rows: Rows, sql: str) -> pa.Table:
    """Answers a SELECT about the table `rows` and, where there are any, `judged`. It sees nothing else of this machine:
    no files, no network."""
    try:
        import duckdb
    except ImportError as error:
        raise DgnError("--sql needs DuckDB: pip install 'dgn[sql]'") from error
    with duckdb.connect(config={"enable_external_access": False}) as connection:
        connection.register("rows", rows.dataset())
        if rows.index and (judged := judged_dataset(rows.run, rows.index)):
            connection.register("judged", judged)
        try:
            answer = connection.sql(sql)
            if answer is None:
                raise DgnError("--sql: expected a SELECT")
            return answer.to_arrow_table()
        except duckdb.Error as error:
            raise DgnError(f"--sql: {' '.join(str(error).split())}") from error


def _copy_pictures(run: Run, table: pa.Table, folder: Path) -> None:
    """Under their own names, which are unique in a run. Raises: DgnError."""
    if "file_name" not in table.column_names:
        raise DgnError("--copy-to needs the column file_name: SELECT it too")
    names = [name for name in table["file_name"].to_pylist() if name is not None]  # None: no picture was made
    temporary = folder.with_name(f"{HIDDEN}{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        with ThreadPoolExecutor() as readers:
            for name, png in zip(names, readers.map(run.picture, names), strict=True):
                (temporary / name.rpartition("/")[2]).write_bytes(png)
        temporary.rename(folder)  # over an empty one, too
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{len(names)} pictures copied to {folder}", file=sys.stderr)


def _print(table: pa.Table, form: str) -> None:
    if form == "parquet":
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        sys.stdout.buffer.write(buffer.getvalue())
        return
    rows = table.to_pylist()
    if form == "json":
        print_json(rows)
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, table.column_names)
        writer.writeheader()
        writer.writerows(
            {name: printable(value) if isinstance(value, str) else value for name, value in row.items()} for row in rows
        )
    else:
        _print_table(table.schema, rows)


def _print_table(schema: pa.Schema, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = [name for name in schema.names if name != "file_name" or "target_id" not in schema.names]
    table = Table(box=box.SIMPLE_HEAD)
    for name in names:
        is_number = pa.types.is_integer(schema.field(name).type) or pa.types.is_floating(schema.field(name).type)
        table.add_column(printable(name), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row[name])) for name in names))
    Console(width=None if sys.stdout.isatty() else TABLE_CHARS).print(table)
    print(f"{len(rows):,} rows")


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else printable(value)
