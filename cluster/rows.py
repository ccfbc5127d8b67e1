"""One row per picture: the Parquet schema, a contract with everybody who queries a run (documented in the README)."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.plan import SCHEMA_VERSION
from dgn.errors import DgnError, in_one_line

SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("target_id", pa.string()),
        ("shard", pa.int32()),
        ("attempt", pa.string()),
        ("layer", pa.string()),
        ("unit", pa.int32()),  # null for a weighted group
        (
            "units",
            pa.list_(pa.struct([("layer", pa.string()), ("unit", pa.int32()), ("weight", pa.float32())])),
        ),
        ("label", pa.string()),  # null outside the class layer
        ("mode", pa.string()),
        ("seed", pa.int64()),
        ("discriminator", pa.string()),
        ("status", pa.string()),  # ok, not_converged, dead, nonfinite
        ("reason", pa.string()),  # null where ok
        ("activation", pa.float32()),  # from the saved PNG; this and all scores are null where nonfinite
        ("unrounded_activation", pa.float32()),  # the same picture before it was rounded to 8 bits
        ("optimised_activation", pa.float32()),  # at the last update, over its moved views
        ("rank", pa.int32()),  # from the saved PNG, 1 is first
        ("probability", pa.float32()),  # null outside the class layer
        ("top5", pa.list_(pa.struct([("unit", pa.int32()), ("label", pa.string()), ("activation", pa.float32())]))),
        ("others_sum", pa.float32()),
        ("activation_curve", pa.list_(pa.float32())),  # at most 64 points
        ("updates", pa.int32()),
        ("file_name", pa.string()),  # relative to the run; null where nonfinite
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("thumbnail", pa.binary()),  # WebP, 96 px
        ("seconds", pa.float32()),
        ("device", pa.string()),
        ("host", pa.string()),
        ("rendered_at", pa.timestamp("us", tz="UTC")),
    ]
)
NEVER_NULL = {"target_id", "shard", "layer", "mode", "status"}  # not in the schema, which older files share


def serialise(rows: Sequence[dict[str, Any]], metadata: dict[str, Any], of: pa.Schema = SCHEMA) -> bytes:
    """A whole Parquet file in memory; `metadata` (configuration, hashes, versions) under the key `dgn`, as JSON."""
    described = {"schema_version": SCHEMA_VERSION, **metadata}
    schema = of.with_metadata({"dgn": json.dumps(described, sort_keys=True)})
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer, compression="snappy")
    return buffer.getvalue()


def parse(data: bytes, columns: Sequence[str] | None = None, of: pa.Schema = SCHEMA) -> pa.Table:
    """Rows as they were serialised. Only columns of the schema's own types leave here, whoever wrote the file.

    Raises: DgnError where the bytes are no whole Parquet file of this schema.
    """
    names = list(columns or of.names)
    try:
        schema = pq.read_schema(io.BytesIO(data))
        for name in names:
            if name not in schema.names or schema.field(name).type != of.field(name).type:
                raise DgnError(f"it has no column {name} of type {of.field(name).type}")
        table = pq.read_table(io.BytesIO(data), columns=names)
        table.validate(full=True)  # Parquet's strings need not be UTF-8
    except (pa.ArrowException, OSError) as error:
        raise DgnError(f"it is no whole Parquet file, {in_one_line(error)}") from error
    return table


def check_filled(table: pa.Table) -> None:
    """Raises: DgnError where a row lacks what every picture has."""
    for name in NEVER_NULL.intersection(table.column_names):
        if table[name].null_count:
            raise DgnError(f"it has rows without a {name}")
