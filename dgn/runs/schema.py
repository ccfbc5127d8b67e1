"""One row per picture: the only definition of its columns.

The writer (`rows.py`), the index, queries, the gallery, exports and documentation take the columns from here. The
Parquet schema is a contract with other readers of a run: a change of a column's type or meaning raises VERSION.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dgn.errors import DgnError
from dgn.runs.stores.base import EndFile
from dgn.statuses import Status
from dgn.text import in_one_line

VERSION = 1  # of run.json and of the rows


@dataclass(frozen=True)
class Column:
    """One column of the rows.

    Args:
        title: its name in the gallery.
        meaning: one line for the documentation.
        is_required: never null, which readers check, because the Parquet schema allows nulls. Any other column is null
            in runs written before the column existed.
        grid: how the gallery's page holds it in memory for every row: few different texts, numbers, or plain values.
        section: where the gallery shows it for one picture, if it does.
    """

    name: str
    type: pa.DataType
    title: str
    meaning: str
    is_required: bool = False
    grid: Literal["coded", "number", "plain"] | None = None
    section: Literal["scores", "origin"] | None = None


_UNITS = pa.list_(pa.struct([("layer", pa.string()), ("unit", pa.int32()), ("weight", pa.float32())]))
_TOP5 = pa.list_(pa.struct([("unit", pa.int32()), ("label", pa.string()), ("activation", pa.float32())]))
COLUMNS = (
    Column("run_id", pa.string(), "Run", "the run that the row belongs to"),
    Column("target_id", pa.string(), "Target", "unique in the run; also the picture's file name",
           is_required=True, grid="plain", section="origin"),
    Column("shard", pa.int32(), "Shard", "number of the shard", is_required=True, section="origin"),
    Column("attempt", pa.string(), "Attempt", "which try at the shard, 8 hex digits", section="origin"),
    Column("layer", pa.string(), "Layer", "layer of the target's first unit",
           is_required=True, grid="coded", section="origin"),
    Column("unit", pa.int32(), "Unit", "0-based in its layer; null for a weighted group or a direction", grid="number",
           section="origin"),
    Column("units", _UNITS, "Units", "all units of the target: layer, unit, weight"),
    Column("label", pa.string(), "Label",
           "the label of a class, those of a mix of classes, or a direction's name; otherwise null", grid="coded"),
    Column("mode", pa.string(), "Mode", "the generator's mode, `untrained` or `pretrained`",
           is_required=True, grid="coded", section="origin"),
    Column("seed", pa.int64(), "Seed", "the seed of the picture's random stream; of several tries, the best one's",
           grid="number", section="origin"),
    Column("discriminator", pa.string(), "Network", "name of the classifier", section="origin"),
    Column("status", pa.string(), "Status", f"one of {', '.join(f'`{status}`' for status in Status)}",
           is_required=True, grid="coded"),
    Column("reason", pa.string(), "Reason", "why the status is not `ok`; otherwise null", grid="coded"),
    Column("activation", pa.float32(), "Activation, of the saved picture",
           "the target's activation on the saved 8-bit PNG, averaged over space: after the ReLU, before it if all "
           "weights are negative; for a direction, the cosine with it or the projection on it; all scores are null "
           "without a picture", grid="number", section="scores"),
    Column("unrounded_activation", pa.float32(), "Before rounding to 8 bits",
           "the activation on the same picture before rounding", section="scores"),
    Column("optimised_activation", pa.float32(), "At the last update, over moved views",
           "the activation at the last update, averaged over its moved views", section="scores"),
    Column("rank", pa.int32(), "Rank in its layer",
           "the target's rank in its layer, on the saved picture; 1 is first; null for directions",
           grid="number", section="scores"),
    Column("probability", pa.float32(), "Probability of its class",
           "of the target's class: softmax, summed over several; sigmoid, the lowest of several; otherwise null",
           grid="number", section="scores"),
    Column("top5", _TOP5, "Highest units",
           "the five highest units of the layer: unit, label, activation (before any ReLU if the layer has no map)"),
    Column("others_sum", pa.float32(), "Sum of all other units", "sum of the layer's other activations (Eq. 2)",
           section="scores"),
    Column("activation_curve", pa.list_(pa.float32()), "Activation over the updates",
           "the activation at up to 64 updates, evenly spread; a class's first ones are at half size"),
    Column("updates", pa.int32(), "Updates", "updates that were made", section="origin"),
    Column("file_name", pa.string(), "File",
           "path of the PNG, relative to the run; `metadata/SHARD.parquet#bytes=FIRST-LAST` if it is packed into its "
           "shard's file; null if there is no picture"),
    Column("sha256", pa.string(), "SHA-256", "SHA-256 of the PNG file", section="origin"),
    Column("bytes", pa.int64(), "Bytes", "size of the PNG file", section="origin"),
    Column("width", pa.int32(), "Width", "width of the picture, in pixels"),
    Column("height", pa.int32(), "Height", "height of the picture, in pixels"),
    Column("thumbnail", pa.binary(), "Thumbnail", "WebP, 96 x 96 px"),
    Column("seconds", pa.float32(), "Seconds", "the picture's share of its batch's time", section="origin"),
    Column("device", pa.string(), "Device", "`cpu`, or the GPU's name", section="origin"),
    Column("host", pa.string(), "Host", "name of the machine", section="origin"),
    Column("rendered_at", pa.timestamp("us", tz="UTC"), "Rendered", "when the row was written, UTC", section="origin"),
)  # fmt: skip
BY_NAME: Mapping[str, Column] = {column.name: column for column in COLUMNS}
SCHEMA = pa.schema([(column.name, column.type) for column in COLUMNS])
PNG = "png"  # a further column, of packed pictures, see `packed.py`
THUMBNAIL = "thumbnail"  # the one column that indexes keep in a file of its own
QUERY_COLUMNS = tuple(column.name for column in COLUMNS if column.name != THUMBNAIL)
MAY_LACK = frozenset(column.name for column in COLUMNS if not column.is_required)  # if an earlier dgn wrote the file


def serialise(
    rows: Sequence[Mapping[str, Any]], metadata: dict[str, Any], schema: pa.Schema = SCHEMA, is_plain: bool = False
) -> bytes:
    """A whole Parquet file in memory. `metadata` (settings, hashes, versions) is stored under the key `dgn` as JSON.

    A row need not have every column; missing ones are null. Columns that the schema lacks are a mistake in dgn.

    Args:
        is_plain: stores values as they are, neither compressed nor in dictionaries.
    """
    assert all(row.keys() <= set(schema.names) for row in rows), "a row has columns that the schema lacks"
    described = schema.with_metadata({"dgn": json.dumps({"schema_version": VERSION, **metadata}, sort_keys=True)})
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(list(rows), schema=described)
    pq.write_table(
        table, buffer, compression="none" if is_plain else "snappy", use_dictionary=not is_plain,
        write_page_checksum=True,
    )  # fmt: skip
    return buffer.getvalue()


def parse(
    data: bytes | EndFile,
    columns: Sequence[str] | None = None,
    schema: pa.Schema = SCHEMA,
    may_lack: Collection[str] = (),
) -> pa.Table:
    """The rows that were serialised, with the given columns or all, in the schema's types.

    Args:
        may_lack: columns that are null if the file lacks them.

    Raises: DgnError if the bytes are not a whole Parquet file of this schema; StoreError if they cannot be read.
    """
    names = list(columns or schema.names)
    try:
        source = pa.BufferReader(data) if isinstance(data, bytes) else data
        file = pq.ParquetFile(source, page_checksum_verification=True)
        found, expected = _types(file.schema_arrow), _types(schema)
        missing = [name for name in names if name not in found and name in may_lack]
        if missing and (unknown := sorted(found.keys() - expected.keys() - {PNG})):  # no version renames a column
            raise DgnError(f"it has a column {unknown[0]}, and no {missing[0]}")
        for name in names:
            if name not in missing and found.get(name) != expected[name]:
                raise DgnError(f"it has no column {name} of type {expected[name]}")
        # All in this thread. One of Arrow's may still hold the bytes when Python ends, which then aborts the process.
        table = file.read([name for name in names if name not in missing], use_threads=False)
        table.validate(full=True)  # Parquet does not guarantee that strings are UTF-8
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last by a damaged column name
        raise DgnError(f"it is not a whole Parquet file, {in_one_line(error)}") from error
    for name in missing:
        table = table.append_column(schema.field(name), pa.nulls(len(table), schema.field(name).type))
    return table.select(names)


def _types(schema: pa.Schema) -> dict[str, pa.DataType]:
    return dict(zip(schema.names, schema.types, strict=True))


def check_required(table: pa.Table) -> None:
    """Raises: DgnError if a row lacks what every row has."""
    for name in table.column_names:
        if BY_NAME[name].is_required and table[name].null_count:
            raise DgnError(f"it has rows without a {name}")
