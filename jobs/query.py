"""`dgn query`: rows of a run, filtered, best first, as text, JSON, CSV or Parquet, with their pictures if asked for."""

from __future__ import annotations

import csv
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.index import judged_dataset, unreadable
from cluster.query import COLUMNS, Condition, Rows, check_columns, condition, parse_condition
from cluster.run import NUM_READERS, Damaged, Run
from dgn.errors import DgnError, RunDamaged, printable
from dgn.targets import MODES
from jobs.cli import print_json
from jobs.files import check_empty, whole_or_not_at_all
from jobs.status import open_run
from jobs.table import print_table

SHOWN = ("target_id", "layer", "unit", "label", "mode", "status", "activation", "rank", "probability")
STATUSES = ("ok", "not_converged", "dead", "nonfinite")
OF_A_FILE, TRACEBACK = "reading the stream registered as", " Detail: Python exception"  # in what DuckDB says


def query_command(
    url: str, flags: dict[str, Any], where: list[str], by: str | None, top: int | None, columns: str | None,
    sql: str | None, form: str, copy_to: Path | None,
) -> None:  # fmt: skip
    """`flags`: mode, layer, status and min_activation, None where not given."""
    for name, known in (("mode", MODES), ("status", STATUSES)):
        if flags[name] is not None and flags[name] not in known:
            raise DgnError(f"unknown {name} '{flags[name]}': expected one of {', '.join(known)}")
    conditions = [parse_condition(text) for text in where]
    conditions += [condition(name, "=", flags[name]) for name in ("mode", "layer", "status") if flags[name] is not None]
    if flags["min_activation"] is not None:
        conditions.append(condition("activation", ">=", flags["min_activation"]))
    if sql is not None and (conditions or (by, top, columns) != (None, None, None)):
        raise DgnError("--sql says by itself which rows and columns, in which order: leave the other conditions out")
    if form == "parquet" and sys.stdout.isatty():
        raise DgnError("--format parquet is no text for a terminal: send it into a file, > FILE.parquet")
    if copy_to is not None:
        check_empty(copy_to)
    names = _columns(columns, form)
    run = open_run(url)
    rows = Rows(run)
    if sql is not None:
        table = _by_sql(rows, sql)
    else:
        needed = names if copy_to is None else list(dict.fromkeys([*names, "file_name", "sha256"]))
        table = rows.select(conditions, needed, by or "activation", top)
        if table.num_rows == 0:
            _check_layers(rows, conditions)
            if not run.committed(rows.info.num_shards).count:
                print(printable(f"{url} has no pictures yet"), file=sys.stderr)
    if copy_to is not None:
        _copy_pictures(run, table, copy_to)
    _print(table if sql is not None else table.select(names), form)


def _columns(text: str | None, form: str) -> list[str]:
    if text is None:
        return [*SHOWN, *(["file_name"] if form != "table" else [])]  # which alone would fill half a line
    names = list(COLUMNS) if text == "all" else [name.strip() for name in text.split(",")]
    check_columns(names)
    _check_once(names, "--columns", "name it once")
    return names


def _check_once(names: list[str], option: str, advice: str) -> None:
    """Raises: DgnError for two columns of one name, which a row cannot hold."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise DgnError(f"{option}: {len(twice)} columns are called '{twice[0]}': {advice}")


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
        try:
            connection.register("rows", rows.dataset())
            if "judged" in sql.lower() and rows.index and (judged := judged_dataset(rows.run, rows.index)):
                connection.register("judged", judged)
            statements = connection.extract_statements(sql)
            answer = connection.sql(statements[0]) if len(statements) == 1 else None
            if answer is None:
                raise DgnError(f"--sql: expected one SELECT, got {len(statements)} statements")
            table = answer.to_arrow_table()
        except duckdb.Error as error:
            raise _problem(" ".join(str(error).split())) from error
        except (pa.ArrowException, OSError) as error:
            raise unreadable(str(error)) from error
    _check_once(table.column_names, "--sql", "tell them apart with AS")
    return table


def _problem(text: str) -> DgnError:
    """What DuckDB says, and what to do where the question is not to blame."""
    if "name judged does not exist" in text.lower():
        text = "there is no table judged, for there are no judgements yet: dgn judge RUN --by NETWORK makes them"
    return unreadable(text.partition(TRACEBACK)[0]) if OF_A_FILE in text else DgnError(f"--sql: {text}")


def _copy_pictures(run: Run, table: pa.Table, folder: Path) -> None:
    """Under their own names, which are unique in a run. Raises: DgnError."""
    pictures = _pictures(table)
    is_checked = "sha256" in table.column_names

    def read(file_name: str, digest: str) -> bytes:
        return whole_picture(run, file_name, digest) if is_checked else run.picture(file_name)

    if not pictures:
        print("no picture to copy", file=sys.stderr)
        return
    with whole_or_not_at_all(folder) as temporary, ThreadPoolExecutor(NUM_READERS) as readers:
        pngs = readers.map(lambda one: read(*one), pictures.values())
        for name, png in zip(pictures, pngs, strict=True):
            (temporary / name).write_bytes(png)
    print(printable(f"{len(pictures):,} pictures copied to {folder}"), file=sys.stderr)


def _pictures(table: pa.Table) -> dict[str, tuple[str, Any]]:
    """file_name and sha256 of the rows' pictures, by the name that the copy gets. Raises: DgnError."""
    if "file_name" not in table.column_names:
        raise DgnError("--copy-to needs the column file_name: SELECT it too")
    digests = table["sha256"].to_pylist() if "sha256" in table.column_names else [None] * table.num_rows
    pictures: dict[str, tuple[str, Any]] = {}
    for key, digest in zip(table["file_name"].to_pylist(), digests, strict=True):
        if key is None:  # no picture was made
            continue
        if not (isinstance(key, str) and key.startswith("images/") and key.endswith(".png")):
            raise DgnError(f"--copy-to: file_name {key} is no picture of a run: expected images/....png")
        name = key.rpartition("/")[2]
        if pictures.setdefault(name, (key, digest)) != (key, digest):
            raise DgnError(f"--copy-to: {pictures[name][0]} and {key} would be one file {name}: ask for one of them")
    return pictures


def whole_picture(run: Run, file_name: str, digest: str) -> bytes:
    """A row's PNG, the very bytes that were committed. Raises: RunDamaged, StoreError."""
    try:
        return run.whole_picture(file_name, digest)
    except Damaged as error:
        raise RunDamaged(f"{run.store.url}/{error}: dgn verify tells what else is wrong") from error


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
    is_number = [pa.types.is_integer(field.type) or pa.types.is_floating(field.type) for field in schema]
    print_table(schema.names, is_number, [[_cell(row[name]) for name in schema.names] for row in rows])
    print("1 row" if len(rows) == 1 else f"{len(rows):,} rows")


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else printable(value)
