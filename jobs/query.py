"""`dgn query`: selects rows of a run, best first, and copies their pictures if asked to."""

from __future__ import annotations

import csv
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer

from dgn.errors import DgnError
from dgn.jobs.common.arguments import RunArgument
from dgn.jobs.common.files import check_empty, whole_or_not_at_all
from dgn.jobs.common.printing import print_json, print_table
from dgn.runs.alike import SIMILARITY
from dgn.runs.conditions import Condition, check_columns, condition, parse_condition
from dgn.runs.packed import place_of
from dgn.runs.query import Rows
from dgn.runs.run import NUM_READERS, Run
from dgn.runs.schema import QUERY_COLUMNS
from dgn.runs.sql import check_unique, select
from dgn.statuses import Status
from dgn.text import plural, printable

OF_COPIES = ("target_id", "file_name", "sha256")  # what --copy-to needs
SHOWN = ("target_id", "layer", "unit", "label", "mode", "status", "activation", "rank", "probability")


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"
    parquet = "parquet"


class By(StrEnum):
    activation = "activation"
    probability = "probability"
    rank = "rank"
    redundancy = "redundancy"
    spread = "spread"


def command(
    run: RunArgument,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN>=VALUE",
            help="A condition, with = != > >= < <=, or ~ for text that contains VALUE; repeatable.",
        ),
    ] = None,
    mode: Annotated[str | None, typer.Option(help="Only this mode: untrained or pretrained.")] = None,
    layer: Annotated[str | None, typer.Option(help="Only this layer, such as fc8 or conv5_1.")] = None,
    min_activation: Annotated[
        float | None, typer.Option(help="Only rows whose saved picture has at least this activation.")
    ] = None,
    status: Annotated[str | None, typer.Option(help=f"Only this status: {', '.join(Status)}.")] = None,
    by: Annotated[
        By | None,
        typer.Option(
            help="How to rank rows: highest activation (the default), highest probability or lowest rank; of "
            "the figures of dgn alike, the highest."
        ),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="At most this many rows, the best.")] = None,
    columns: Annotated[str | None, typer.Option(metavar="A,B,...", help="The columns to show, or all.")] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET", help="Rank rows by how much their pictures resemble this target's, as dgn alike found."
        ),
    ] = None,
    sql: Annotated[
        str | None,
        typer.Option(metavar="SELECT...", help=r"A query of the table rows, for DuckDB: pip install duckdb."),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="Output format.")] = Format.table,
    copy_to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also copy the rows' pictures into this new folder.")
    ] = None,
) -> None:
    conditions = [parse_condition(text) for text in where or []]
    equal = {"mode": mode, "layer": layer, "status": status}
    conditions += [condition(name, "=", value) for name, value in equal.items() if value is not None]
    if min_activation is not None:
        conditions.append(condition("activation", ">=", min_activation))
    if sql is not None and (conditions or (by, top, columns, like) != (None, None, None, None)):
        raise DgnError("--sql selects and orders rows and columns itself: leave out the other options")
    if like is not None and by is not None:
        raise DgnError("--like ranks rows itself: leave out --by")
    if form is Format.parquet and sys.stdout.isatty():
        raise DgnError("--format parquet cannot be shown in a terminal: redirect it with > FILE.parquet")
    if copy_to is not None:
        check_empty(copy_to)
    names = _columns(columns, form, is_like=like is not None)
    opened = Run.at(run)
    rows = Rows(opened)
    if sql is not None:
        table = select(rows, sql)
    else:
        needed = names if copy_to is None else list(dict.fromkeys([*names, *OF_COPIES]))
        if like is None:
            table = rows.select(conditions, needed, by or By.activation, top)
        else:
            table = rows.like(like, conditions, needed, top)
        if table.num_rows == 0:
            _check_layers(rows, conditions)
            if not opened.committed(rows.info.num_shards).count:
                print(printable(f"{run} has no pictures yet"), file=sys.stderr)
    if copy_to is not None:
        _copy_pictures(opened, table, copy_to)
    _print(table if sql is not None else table.select(names), form)


def _columns(text: str | None, form: Format, is_like: bool) -> list[str]:
    own = [SIMILARITY] if is_like else []
    if text is None:
        return [*SHOWN, *own, *(["file_name"] if form is not Format.table else [])]  # too wide for a table
    names = [*QUERY_COLUMNS, *own] if text == "all" else [name.strip() for name in text.split(",")]
    check_columns([name for name in names if name not in own])
    check_unique(names, "--columns", "name it once")
    return names


def _check_layers(rows: Rows, conditions: list[Condition]) -> None:
    """Raises: DgnError if no layer of the run fulfils one of the conditions, which is then a typing error."""
    of_layer = [one for one in conditions if one.column == "layer"]
    layers = pa.table({"layer": pa.array(rows.layers() if of_layer else [], pa.string())})
    for one in of_layer:
        if not pc.any(one.mask(layers)).as_py():
            what = f"layer '{one.value}'" if one.operator == "=" else f"a layer {one.operator} '{one.value}'"
            known = ", ".join(layers["layer"].to_pylist()) or "none yet"
            raise DgnError(f"the run has no pictures of {what}: it has {known}")


def _copy_pictures(run: Run, table: pa.Table, folder: Path) -> None:
    """Copies under the targets' names, which are unique in a run; checks them if the rows have sha256.

    Raises: DgnError, RunDamaged.
    """
    pictures = _pictures(table)
    is_checked = "sha256" in table.column_names
    if not pictures:
        print("no picture to copy", file=sys.stderr)
        return
    with whole_or_not_at_all(folder) as temporary, ThreadPoolExecutor(NUM_READERS) as readers:

        def read(key_and_digest: tuple[str, Any]) -> bytes:
            key, digest = key_and_digest
            return run.picture(key, digest) if is_checked else run.unchecked_picture(key)

        pngs = readers.map(read, pictures.values())
        for name, png in zip(pictures, pngs, strict=True):
            (temporary / name).write_bytes(png)
    print(printable(f"{plural(len(pictures), 'picture')} copied to {folder}"), file=sys.stderr)


def _pictures(table: pa.Table) -> dict[str, tuple[str, Any]]:
    """file_name and sha256 of the rows' pictures, by the copy's name. Raises: DgnError."""
    if "file_name" not in table.column_names:
        raise DgnError("--copy-to needs the column file_name: SELECT it too")
    pictures: dict[str, tuple[str, Any]] = {}
    for row in table.select([name for name in OF_COPIES if name in table.column_names]).to_pylist():
        key, digest = row["file_name"], row.get("sha256")
        if key is None:  # there is no picture
            continue
        name = _copy_name(key, row.get("target_id"))
        if pictures.setdefault(name, (key, digest)) != (key, digest):
            raise DgnError(f"--copy-to: {pictures[name][0]} and {key} would be one file {name}: ask for one of them")
    return pictures


def _copy_name(key: object, target_id: object) -> str:
    """Raises: DgnError."""
    if isinstance(key, str) and key.startswith("images/") and key.endswith(".png"):
        return key.rpartition("/")[2]
    if not (isinstance(key, str) and place_of(key)):
        raise DgnError(f"--copy-to: file_name {key} is not a picture of a run: expected images/....png")
    if target_id is None:
        raise DgnError("--copy-to needs the column target_id, which names copies of packed pictures: SELECT it too")
    if not (isinstance(target_id, str) and target_id == PurePosixPath(target_id).name and "\0" not in target_id):
        raise DgnError(
            f"--copy-to: target_id {target_id!r} cannot name a file: expected fc8-00668-untrained-s0 or the like"
        )
    return f"{target_id}.png"


def _print(table: pa.Table, form: Format) -> None:
    if form is Format.parquet:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        sys.stdout.buffer.write(buffer.getvalue())
        return
    rows = table.to_pylist()
    if form is Format.json:
        print_json(rows)
    elif form is Format.csv:
        writer = csv.DictWriter(sys.stdout, table.column_names)
        writer.writeheader()
        writer.writerows(
            {name: printable(value) if isinstance(value, str) else value for name, value in row.items()} for row in rows
        )
    else:
        _print_table(table.schema, rows)


def _print_table(schema: pa.Schema, rows: list[dict[str, Any]]) -> None:
    is_number = [pa.types.is_integer(field.type) or pa.types.is_floating(field.type) for field in schema]
    print_table(schema.names, is_number, [[_cell(row[name]) for name in schema.names] for row in rows])
    print(plural(len(rows), "row"))


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else printable(value)
