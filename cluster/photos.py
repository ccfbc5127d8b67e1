"""Photographs in a folder, a bucket or a Parquet dataset as a Ray Dataset, for training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext, Dataset

from cluster.storage import open_store
from dgn.errors import DgnError
from dgn.photo import SUFFIXES, UnreadablePhoto, load_photo

LARGEST_BROKEN_SHARE = 0.1
HELD_OUT_SHARE = 0.05
MOST_HELD_OUT = 2000
Row = dict[str, Any]


@dataclass(frozen=True)
class Survey:
    """What a look at every photograph found. Photographs are known by the sha256 of their bytes."""

    num_photos: int  # that can be read
    broken: tuple[str, ...]  # 'name: reason'
    held_out: frozenset[str]
    sha256: str  # of the sorted hashes of all that can be read


def open_photos(url: str, column: str = "image") -> Dataset:
    """A lazy dataset of rows {name, bytes}, in an order that depends on the names alone.

    Raises: DgnError where there are none.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True  # training again from the same seed sees the same order
    context.execution_options.verbose_progress = False
    store = open_store(url)
    keys = sorted(store.list(""))
    photos = [key for key in keys if PurePosixPath(key).suffix.lower() in SUFFIXES]
    tables = [key for key in keys if key.endswith(".parquet")]
    if photos:
        photos.sort(key=lambda key: hashlib.sha256(key.encode()).digest())  # neighbours in a folder are alike
        rows = ray.data.from_items([{"key": key} for key in photos], override_num_blocks=-(-len(photos) // 64))
        return rows.map(lambda row: {"name": row["key"], "bytes": open_store(url).read(row["key"])})
    if tables:
        return _open_tables(url, tables, column)
    raise DgnError(f"no pictures in {url}: expected files {', '.join(SUFFIXES)}, or .parquet with an image column")


def _open_tables(url: str, tables: list[str], column: str) -> Dataset:
    """Image columns hold bytes, or a struct with `bytes` as Hugging Face writes them."""
    import pyarrow.parquet as pq

    with pa.BufferReader(open_store(url).read(tables[0])) as first:
        schema = pq.read_schema(first)
    if column not in schema.names:
        raise DgnError(f"{url}/{tables[0]} has no column '{column}': give --column, one of {', '.join(schema.names)}")
    kind = schema.field(column).type
    is_struct = pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]
    if not is_struct and not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DgnError(f"column '{column}' of {url}/{tables[0]} holds {kind}: expected the bytes of picture files")

    def read(row: Row) -> Iterator[Row]:
        with pq.ParquetFile(pa.BufferReader(open_store(url).read(row["key"]))) as file:
            number = 0
            for batch in file.iter_batches(64, columns=[column]):
                for value in batch.column(0).to_pylist():
                    data = value["bytes"] if isinstance(value, dict) else value
                    yield {"name": f"{row['key']} row {number}", "bytes": data or b""}
                    number += 1

    return ray.data.from_items([{"key": key} for key in tables], override_num_blocks=len(tables)).flat_map(read)


def survey(photos: Dataset, url: str) -> Survey:
    """Decodes every photograph once.

    Raises: DgnError where more than a tenth is broken or too few are left to hold some out.
    """
    good: set[str] = set()
    broken: list[str] = []
    for row in photos.map(_inspect).iter_rows():
        if row["error"]:
            broken.append(f"{row['name']}: {row['error']}")
        else:
            good.add(row["sha256"])
    broken.sort()
    if len(broken) > LARGEST_BROKEN_SHARE * (len(broken) + len(good)):
        listed = "; ".join(broken[:10]) + ("; ..." if len(broken) > 10 else "")
        share = f"{len(broken)} of {len(broken) + len(good)} pictures in {url}"
        raise DgnError(f"{share} cannot be read, at most a tenth may: {listed}")
    if len(good) < 2:
        raise DgnError(f"{len(good)} different pictures in {url}: expected at least 2, one of them to hold out")
    by_hash = sorted(good)
    num_held_out = min(MOST_HELD_OUT, max(1, round(HELD_OUT_SHARE * len(good))))
    fingerprint = hashlib.sha256("\n".join(by_hash).encode()).hexdigest()
    return Survey(len(good), tuple(broken), frozenset(by_hash[:num_held_out]), fingerprint)


def decoded(photos: Dataset, held_out: frozenset[str], is_held_out: bool) -> Dataset:
    """Rows {photo: (256, 256, 3) uint8} of one side of the split; broken ones are left out."""

    def decode(row: Row) -> list[Row]:
        if (hashlib.sha256(row["bytes"]).hexdigest() in held_out) != is_held_out:
            return []
        try:
            return [{"photo": load_photo(row["bytes"])}]
        except UnreadablePhoto:
            return []

    return photos.flat_map(decode)


def _inspect(row: Row) -> Row:
    error = ""
    try:
        load_photo(row["bytes"])
    except UnreadablePhoto as unreadable:
        error = str(unreadable)
    return {"name": row["name"], "sha256": hashlib.sha256(row["bytes"]).hexdigest(), "error": error}
