"""The parts of an index: sorted Parquet files of rows and thumbnails, and how they are read.

A part holds the rows of some shards and is never changed. Its rows.parquet is sorted by layer, mode and falling
activation; its thumbs.parquet has the thumbnails in the same order, uncompressed, so that one can be fetched by its
bytes alone.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dgn.errors import RunDamaged, Truncated
from dgn.runs import schema
from dgn.runs.index_file import REBUILD, Group, Index, Part
from dgn.runs.judgements import JUDGED_SCHEMA, judged_key
from dgn.runs.layout import dated_id
from dgn.runs.run import NUM_READERS, VERIFY, Run
from dgn.runs.shards import as_ranges
from dgn.runs.stores import RangeFile

if TYPE_CHECKING:
    from pyarrow import dataset as ds

THUMBS = [("thumb_offset", pa.int64()), ("thumb_bytes", pa.int32())]  # within the part's thumbs.parquet
_GRID = [(c.name, c.type) for c in schema.COLUMNS if c.grid]
_OTHERS = [(name, schema.SCHEMA.field(name).type) for name in schema.QUERY_COLUMNS if not schema.BY_NAME[name].grid]
# What filters, sorts and the gallery's grid need comes first and side by side: a few kilobytes, one request.
INDEX_SCHEMA = pa.schema([*_GRID, *THUMBS, *_OTHERS])
_TYPES = dict(zip(INDEX_SCHEMA.names, INDEX_SCHEMA.types, strict=True))
SORTING = [("layer", "ascending"), ("mode", "ascending"), ("activation", "descending"), ("target_id", "ascending")]
GROUP_ROWS = 16_384  # rows of a row group
PAGE_ROWS = 128  # of a page, so that one row's details are a few kilobytes to fetch
TAIL_BYTES = 8  # of a Parquet file: the footer's length and a magic word


def build_part(run: Run, shards: Sequence[int]) -> Part:
    """Reads shards and writes their sorted rows and thumbnails."""
    rows = pa.concat_tables(run.tables(shards))
    rows = rows.take(pc.sort_indices(rows, [(*key, "at_end") for key in SORTING])).combine_chunks()
    thumbnails = [thumbnail.as_py() or b"" for thumbnail in rows["thumbnail"]]
    thumbs = _thumbs_file(rows["target_id"], thumbnails)
    located = {"thumb_offset": _places(thumbs, thumbnails), "thumb_bytes": [len(data) for data in thumbnails]}
    for name, type_ in THUMBS:
        rows = rows.append_column(name, pa.array(located[name], type_))
    data = _rows_file(rows.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA))
    part = Part(
        id=dated_id(),
        num_rows=rows.num_rows,
        rows_bytes=len(data),
        footer_bytes=int.from_bytes(data[-TAIL_BYTES:-4], "little") + TAIL_BYTES,
        thumbs_bytes=len(thumbs),
        shards=as_ranges(shards),
        groups=_groups(rows),
    )
    run.store.create(part.thumbs_key, thumbs)
    run.store.create(part.rows_key, data)
    return part


def _rows_file(rows: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(
        rows,
        buffer,
        compression="snappy",  # which every reader supports, the gallery's too
        row_group_size=GROUP_ROWS,
        max_rows_per_page=PAGE_ROWS,
        write_page_index=True,
        sorting_columns=pq.SortingColumn.from_ordering(rows.schema, SORTING),
    )
    return buffer.getvalue()


def _thumbs_file(target_ids: pa.ChunkedArray, thumbnails: list[bytes]) -> bytes:
    """Thumbnails, uncompressed, so that each can be fetched by its bytes alone."""
    buffer = io.BytesIO()
    table = pa.table({"target_id": target_ids, "thumbnail": pa.array(thumbnails, pa.binary())})
    pq.write_table(
        table, buffer, compression="none", use_dictionary=False, row_group_size=GROUP_ROWS, write_statistics=False
    )
    return buffer.getvalue()


def _places(file: bytes, thumbnails: list[bytes]) -> list[int]:
    """Where in the file each thumbnail starts. Parquet stores plain values one after another, each after its length."""
    places, at = [], 0
    for thumbnail in thumbnails:
        at = file.index(len(thumbnail).to_bytes(4, "little") + thumbnail, at) + 4
        places.append(at)
        at += len(thumbnail)
    return places


def _groups(rows: pa.Table) -> list[Group]:
    grouped = rows.group_by(["layer", "mode"], use_threads=False).aggregate([("target_id", "count"), ("shard", "min")])
    return [Group(row["layer"], row["mode"], row["target_id_count"], row["shard_min"]) for row in grouped.to_pylist()]


def open_part(run: Run, part: Part) -> pq.ParquetFile:
    """rows.parquet of a part. Takes one request for the footer; each run of columns that is read takes one more.

    Raises: RunDamaged if the part is gone or is not what was written.
    """
    if not 0 < part.footer_bytes < part.rows_bytes:
        raise _damaged(run, part, "its footer would be larger than the file")
    try:
        data = run.store.read_range(part.rows_key, part.rows_bytes - part.footer_bytes, part.rows_bytes)
        metadata = pq.read_metadata(io.BytesIO(data))
        file = pq.ParquetFile(RangeFile(run.store, part.rows_key, part.rows_bytes), metadata=metadata, pre_buffer=True)
        found = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
    except (pa.ArrowException, OSError, Truncated, UnicodeDecodeError) as error:  # the last by a damaged column name
        raise _damaged(run, part, error) from error
    if found != _TYPES:
        raise _damaged(run, part, "it has other columns")
    return file


def read_groups(run: Run, part: Part, file: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Some row groups of a part, in its order. Raises: RunDamaged as `open_part` does."""
    try:
        table = file.read_row_groups(list(groups), list(columns))
        table.validate(full=True)
    except (pa.ArrowException, OSError, Truncated) as error:
        raise _damaged(run, part, error) from error
    return table


def _damaged(run: Run, part: Part, what: Any) -> RunDamaged:
    text = " ".join(str(what).split())
    return RunDamaged(f"{run.store.url}/{part.rows_key} is not what was written: {text}", REBUILD)


def judged_dataset(run: Run, index: Index) -> ds.Dataset | None:
    """All judgements as an Arrow dataset, None if there are none. Raises: as `arrow_dataset`."""
    keys = [judged_key(part.id, judged.name) for part in index.parts for judged in part.judged]
    if not keys:
        return None
    return arrow_dataset(run, keys, JUDGED_SCHEMA).filter(pc.field("by").is_valid())


def unreadable(problem: str) -> RunDamaged:
    """Arrow's complaint about a file of an `arrow_dataset`, which names the file, as an error for people."""
    advice = VERIFY if "/metadata/" in problem else REBUILD
    return RunDamaged(f"a file of the run is missing or damaged: {' '.join(problem.split())}", advice)


def arrow_dataset(run: Run, keys: Sequence[str], schema: pa.Schema) -> ds.Dataset:
    """Files of the run as an Arrow dataset.

    Every footer is read first, because Arrow's scan of a dataset may hang on a file that is missing or damaged.

    Raises: RunDamaged if a file or its footer is missing or damaged.
    """
    files, root = run.store.arrow()

    def open_footer(key: str) -> None:
        try:
            pq.read_metadata(f"{root}/{key}", filesystem=files)
        except (pa.ArrowException, OSError, *run.store.foreign) as error:
            raise unreadable(f"{run.store.url}/{key}: {error}") from error

    with ThreadPoolExecutor(NUM_READERS) as readers:
        list(readers.map(open_footer, keys))
    from pyarrow import dataset as ds  # imports pandas, where that is installed

    return ds.dataset([f"{root}/{key}" for key in keys], schema=schema, filesystem=files, format="parquet")
