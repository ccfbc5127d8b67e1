"""People's photographs: where they are, which files count, and how a job over them is cut into shards."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dgn.errors import DgnError, StoreError
from dgn.pictures.photographs import SUFFIXES
from dgn.runs.stores import LocalStore, Store, open_store
from dgn.text import A_BUCKET, in_one_line, plural

log = logging.getLogger("dgn")

COMPANION = "._"  # starts the names of files that macOS writes beside others on foreign disks
HIDDEN_FILE, NOT_A_FILE, NOT_UTF8 = ".*", "not a file", "with a name that is not UTF-8"
SHARD_PHOTOGRAPHS = 256
ROWS_AT_A_TIME = 64  # of a Parquet file


class PhotographFolder(LocalStore):
    """A folder that may hold links to others."""

    def _check_inside(self, key: str, path: str, has_link: bool) -> None:
        """Nothing: keys are of our own listing, so they cannot lead anywhere else than links do."""

    def list(self, prefix: str, is_hidden: bool = False) -> Iterator[str]:
        """Raises: StoreError for a folder that cannot be read."""
        seen = {os.path.realpath(self._path(prefix))}

        def fail(error: OSError) -> None:
            raise self.in_one_line(error) from error

        for folder, folders, names in os.walk(self._path(prefix), followlinks=True, onerror=fail):
            names_of_folders = sorted(folders)
            folders.clear()
            for name in names_of_folders:  # each folder once: links may lead to others, and round in circles
                if (real := os.path.realpath(Path(folder, name))) not in seen:
                    seen.add(real)
                    folders.append(name)
            yield from (Path(folder, name).relative_to(self.root).as_posix() for name in names)

    def is_file(self, key: str) -> bool:
        """Whether it is one, or a link to one: reading a pipe could wait for ever."""
        return self._path(key).is_file()


def photograph_store(url: str) -> Store:
    """The store at a folder or in a bucket. Raises: StoreError if the folder does not exist."""
    store = open_store(url)
    if isinstance(store, LocalStore):
        if not store.root.is_dir():
            what = "a file" if store.root.exists() else "not there"
            raise StoreError(f"{store.url} is {what}: expected a folder of photographs, or {A_BUCKET}")
        return PhotographFolder(url)
    return store


@dataclass(frozen=True)
class Listing:
    """What a folder holds, in order of names: photographs or Parquet files, and other files by their endings."""

    photographs: tuple[str, ...]
    tables: tuple[str, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def remark(self) -> str:
        """What is left out, in one line; empty if nothing is."""
        counts = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count:,} {ending}" for ending, count in counts)


def list_photographs(store: Store) -> Listing:
    """Raises: DgnError if there is nothing to read, or photographs beside Parquet files."""
    photographs, tables, left_out = list[str](), list[str](), Counter[str]()
    for key in sorted(store.list("")):
        path = PurePosixPath(key)
        if path.name.startswith(COMPANION):
            left_out[f"{COMPANION}*"] += 1
        elif any(part.startswith(".") for part in path.parts):
            left_out[HIDDEN_FILE] += 1
        elif not _is_utf8(key):
            left_out[NOT_UTF8] += 1
        elif isinstance(store, PhotographFolder) and not store.is_file(key):
            left_out[NOT_A_FILE] += 1
        elif path.suffix.lower() in SUFFIXES:
            photographs.append(key)
        elif path.suffix == ".parquet":
            tables.append(key)
        else:
            left_out[path.suffix.lower() or "without an ending"] += 1
    if not photographs and not tables:
        raise DgnError(
            f"no pictures in {store.url}: expected files {', '.join(SUFFIXES)}, or .parquet with an image column"
        )
    if photographs and tables and _is_only_metadata(tables):
        left_out[".parquet"] += len(tables)
        tables = []
    if photographs and tables:
        raise DgnError(
            f"{store.url} holds {len(photographs)} pictures and {len(tables)} .parquet files: give a folder of one kind"
        )
    return Listing(tuple(photographs), tuple(tables), dict(left_out))


def _is_utf8(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_only_metadata(tables: Sequence[str]) -> bool:
    """Hugging Face's folders of pictures have their captions in files of this name."""
    return all(PurePosixPath(table).name == "metadata.parquet" for table in tables)


@dataclass(frozen=True)
class PhotographShard:
    """Photographs that are looked at together: files, or row groups of a Parquet file.

    Args:
        first: the number of its first photograph among all.
    """

    first: int
    count: int
    files: tuple[str, ...] = ()
    table: str = ""
    row_groups: tuple[int, ...] = ()
    first_row: int = 0
    kind: tuple[str, str] = ("photographs", "")  # what takes about as long

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class PhotographPlan:
    """Photographs, cut into shards in order of their names."""

    url: str
    column: str
    shards: tuple[PhotographShard, ...]
    sha256: str  # of the names
    what = "photograph"

    @property
    def num_shards(self) -> int:
        return len(self.shards)

    @property
    def num_targets(self) -> int:
        return sum(map(len, self.shards))

    def shard(self, index: int) -> PhotographShard:
        return self.shards[index]


def make_photograph_plan(store: Store, listing: Listing, column: str) -> PhotographPlan:
    """Raises: DgnError for a Parquet file without pictures."""
    shards = []
    first = 0
    for at in range(0, len(listing.photographs), SHARD_PHOTOGRAPHS):
        files = listing.photographs[at : at + SHARD_PHOTOGRAPHS]
        shards.append(PhotographShard(at, len(files), files))
    names = list(listing.photographs)
    for table in listing.tables:
        with open_table(store, table) as file:
            check_column(f"{store.url}/{table}", file.schema_arrow, column)
            counts = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        names.append(f"{table} {counts}")
        row = start = 0
        for stop in range(1, len(counts) + 1):
            count = sum(counts[start:stop])
            if count and (count >= SHARD_PHOTOGRAPHS or stop == len(counts)):
                groups = tuple(range(start, stop))
                shards.append(PhotographShard(first, count, table=table, row_groups=groups, first_row=row))
                first, row, start = first + count, row + count, stop
    if not shards:
        raise DgnError(f"no rows in {plural(len(listing.tables), 'Parquet file')} of {store.url}")
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return PhotographPlan(store.url, column, tuple(shards), digest)


def read_shard(store: Store, plan: PhotographPlan, index: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Names of a shard's photographs, and what reads each: several threads may, at a time. Reading returns no bytes
    where a file is gone or cannot be opened.

    Raises: StoreError; DgnError for a Parquet file that is damaged on the way.
    """
    shard = plan.shard(index)
    for key in shard.files:
        yield key, partial(read_photograph, store, key)
    if shard.table:
        with open_table(store, shard.table) as file:
            for name, data in pictures_of(shard.table, file, plan.column, shard.row_groups, shard.first_row):
                yield name, partial(_given, data)


def _given(data: bytes) -> bytes:
    return data


def read_photograph(store: Store, key: str) -> bytes:
    """A file; no bytes where it is gone or cannot be opened. Raises: StoreError."""
    try:
        return store.read(key)
    except FileNotFoundError:
        return b""
    except StoreError as error:
        if isinstance(store, LocalStore) and os.access(store.root, os.R_OK):
            log.warning("%s", error)  # of this file alone
            return b""
        raise


def open_table(store: Store, key: str) -> pq.ParquetFile:
    """A Parquet file, of which only what is asked for is read. Raises: DgnError, StoreError."""
    files, root = store.arrow()
    faults: tuple[type[Exception], ...] = (OSError, *store.foreign)
    try:
        return pq.ParquetFile(f"{root}/{key}", filesystem=files)
    except pa.ArrowInvalid as error:
        raise DgnError(f"{store.url}/{key} is not a Parquet file: {in_one_line(error)}") from error
    except faults as error:
        raise StoreError(f"cannot read {store.url}/{key}: {in_one_line(error)}") from error


def pictures_of(
    key: str, file: pq.ParquetFile, column: str, row_groups: Sequence[int] | None = None, number: int = 0
) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of pictures. Image columns hold bytes or, as Hugging Face writes them, a struct with `bytes`.

    Nothing else in the file becomes a Python object, because Arrow's extension types may unpickle.

    Args:
        number: of the first row.

    Raises: DgnError for a file that is damaged on the way.
    """
    try:
        for batch in file.iter_batches(ROWS_AT_A_TIME, row_groups=row_groups, columns=[column]):
            values = batch.column(column)
            pictures = pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values
            for data in pictures.to_pylist():
                yield f"{key} row {number}", data or b""
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise DgnError(f"{key} cannot be read from row {number} on: {in_one_line(error)}") from error


def check_column(table: str, schema: Any, column: str) -> None:
    """Raises: DgnError if a Parquet file's column does not hold pictures."""
    if column not in schema.names:
        raise DgnError(f"{table} has no column '{column}': give --column, one of {', '.join(schema.names)}")
    kind = found = schema.field(column).type
    if pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DgnError(f"column '{column}' of {table} holds {found}: expected the bytes of picture files")
