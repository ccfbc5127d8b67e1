"""Pictures inside the committed file of their shard, for runs of a million on a bucket, where each file is a request.

The column `png` comes first and is stored as it is, so that every picture is a range of the file's bytes. The row's
file_name says which: `metadata/000017.parquet#bytes=43-100042`, both included, as in an HTTP request. Whoever follows
file_name reads a picture with one request, and any reader of Parquet finds them as a column.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from dgn.runs import schema
from dgn.runs.layout import metadata_key
from dgn.runs.schema import PNG

SCHEMA = pa.schema([(PNG, pa.binary()), *zip(schema.SCHEMA.names, schema.SCHEMA.types, strict=True)])
MOST_BYTES = 1 << 26  # of a picture; more than 4096 x 4096 pixels take, so that an edited row cannot ask for a disk
_NAME = re.compile(r"(metadata/\d{6,}\.parquet)#bytes=(\d{1,12})-(\d{1,12})", re.ASCII)


class Place(NamedTuple):
    """Bytes [start, stop) of a key."""

    key: str
    start: int
    stop: int


def place_of(file_name: str) -> Place | None:
    """Where a packed picture lies; None for a picture that is a file."""
    match = _NAME.fullmatch(file_name) if "#" in file_name else None  # few have one, and a verify asks for millions
    if match is None:
        return None
    place = Place(match[1], int(match[2]), int(match[3]) + 1)
    return place if 0 < place.stop - place.start <= MOST_BYTES else None


def serialise(shard: int, rows: Sequence[dict[str, Any]], metadata: dict[str, Any]) -> bytes:
    """The committed file of a shard. Each row has its PNG under `png`, or None, and gets its file_name here."""
    column = schema.serialise([{PNG: row[PNG]} for row in rows], {}, SCHEMA.empty_table().select([PNG]).schema, True)
    named, stop = [], 0
    for row in rows:
        file_name = None
        if row[PNG] is not None:
            start = column.index(row[PNG], stop)
            stop = start + len(row[PNG])
            file_name = f"{metadata_key(shard)}#bytes={start}-{stop - 1}"
        named.append({**row, "file_name": file_name})
    data = schema.serialise(named, metadata, SCHEMA, True)
    assert data[:stop] == column[:stop], "the pictures lie elsewhere than when they stood alone"
    return data
