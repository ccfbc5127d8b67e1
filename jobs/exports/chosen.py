"""The rows to export and their pictures, sorted like the index, cut into packs of about equal size.

Every picture is checked against its row's sha256. Equal rows give equal bytes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dgn.errors import DgnError, RunDamaged
from dgn.runs.conditions import Condition, condition
from dgn.runs.info import RunInfo
from dgn.runs.query import Rows
from dgn.runs.run import NUM_READERS, VERIFY, Run
from dgn.runs.schema import QUERY_COLUMNS, SCHEMA
from dgn.text import plural, printable

PACK_BYTES = 256 * 2**20  # per tar or Parquet file, give or take a picture; a pack is made in memory
ROWS_AT_A_TIME = 100  # per row group, as `datasets` itself writes pictures
ROW_BYTES = 1024  # an estimate of a row's other columns, or of its tar header and padding
Piece = tuple[int, pa.Table, list[bytes | None]]  # a pack's number, some of its rows, their PNGs


@dataclass(frozen=True)
class Chosen:
    """The rows to export. `table` has layer, mode, status and bytes of all rows, in another order."""

    rows: Rows
    where: list[str]
    conditions: list[Condition]
    table: pa.Table

    @cached_property
    def num_bytes(self) -> int:
        return pc.sum(_sizes(self.table["bytes"])).as_py()

    @property
    def num_packs(self) -> int:
        return -(-self.num_bytes // PACK_BYTES)

    @property
    def description(self) -> str:
        num_rows, num_targets = self.table.num_rows, self.rows.info.num_targets
        missing = f" of the run's {num_targets:,}" if num_rows < num_targets else ""
        only = f" ({printable(' and '.join(self.where))})" if self.where else ""
        pictures = plural(num_rows - self.table["bytes"].null_count, "picture")
        return f"{pictures}, {plural(num_rows, 'row')}{missing}{only}"


def cut(chosen: Chosen, advance: Callable[[int], None]) -> Iterator[Piece]:
    """All rows with their pictures, by layer, mode and falling activation, cut into packs of about equal size.

    Raises: DgnError if the run grew meanwhile, RunDamaged for a picture that does not match its row.
    """
    run, by_group = chosen.rows.run, [("layer", "ascending"), ("mode", "ascending")]
    at = num_done = 0
    with ThreadPoolExecutor(NUM_READERS) as readers:
        for group in chosen.table.group_by(["layer", "mode"]).aggregate([]).sort_by(by_group).to_pylist():
            of_group = [condition(name, "=", value) for name, value in group.items()]
            table = chosen.rows.select([*chosen.conditions, *of_group], QUERY_COLUMNS)
            for start in range(0, table.num_rows, ROWS_AT_A_TIME):
                some = table.slice(start, ROWS_AT_A_TIME)
                pngs = list(readers.map(partial(_picture, run), some.select(_OF_PICTURE).to_pylist()))
                numbers = []
                for size in _sizes(some["bytes"]).to_pylist():
                    numbers.append(min(at * chosen.num_packs // chosen.num_bytes, chosen.num_packs - 1))
                    at += size
                for number, positions in itertools.groupby(range(len(numbers)), key=numbers.__getitem__):
                    which = list(positions)
                    yield number, some.slice(which[0], len(which)), pngs[which[0] : which[-1] + 1]
                num_done += some.num_rows
                advance(some.num_rows)
    if num_done != chosen.table.num_rows:
        raise DgnError(
            f"{run.store.url} grew from {chosen.table.num_rows:,} to {plural(num_done, 'row')} meanwhile: wait until "
            "nothing renders it, then repeat the command"
        )


_OF_PICTURE = ["file_name", "sha256", "bytes"]


def _sizes(num_bytes: pa.ChunkedArray) -> pa.ChunkedArray:
    """Roughly the bytes of rows in a pack."""
    return pc.add(pc.max_element_wise(num_bytes, 0), ROW_BYTES)


def _picture(run: Run, row: dict[str, Any]) -> bytes | None:
    """The PNG of a row, None if it has none. Raises: RunDamaged if the file is missing or differs."""
    if row["file_name"] is None:
        return None
    png = run.picture(row["file_name"], row["sha256"])
    if len(png) != row["bytes"]:  # the packs were planned by it
        raise RunDamaged(
            f"{run.store.url}/{row['file_name']} has {len(png)} bytes, but {row['bytes']} by its row", VERIFY
        )
    return png


def described_schema(more: Sequence[pa.Field], info: RunInfo, **metadata: str) -> pa.Schema:
    """`more` and the rows' columns, with the run's identity under the key `dgn`, as in the run's own files."""
    origin = {"run_id": info.run_id, "created_at": info.created_at, "fingerprint": info.fingerprint}
    described = {"dgn": json.dumps(origin | {"config": info.config}, sort_keys=True), **metadata}
    return pa.schema([*more, *(SCHEMA.field(name) for name in QUERY_COLUMNS)], metadata=described)


def joined(rows: pa.Table, more: Sequence[pa.Array], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_arrays([*more, *rows.select(list(QUERY_COLUMNS)).columns], schema=schema)
