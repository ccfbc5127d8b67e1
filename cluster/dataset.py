"""Photographs for training, as a Ray Dataset: from a folder, a bucket, or Parquet files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import ray
from ray.data import DataContext, Dataset
from ray.exceptions import RayError

from dgn.errors import DgnError, StoreError
from dgn.pictures.photographs import UnreadablePhotograph, load_photograph
from dgn.runs.photographs import check_column, list_photographs, open_table, photograph_store, pictures_of
from dgn.runs.stores.base import Store
from dgn.text import in_one_line, printable

log = logging.getLogger("dgn")

LARGEST_BROKEN_SHARE = 0.1
HELD_OUT_SHARE = 0.05
MOST_HELD_OUT = 2000
TASK_CPUS = 0.5  # of a decoding task, so that even one core is enough for a worker and the tasks that feed it
Row = dict[str, Any]


@dataclass(frozen=True)
class Survey:
    """What a folder of photographs holds. A photograph is identified by the sha256 of its bytes."""

    num_photographs: int  # readable ones
    broken: tuple[str, ...]  # 'name: reason'
    held_out: frozenset[str]
    sha256: str  # of the sorted hashes of the readable ones


def open_photographs(url: str, column: str = "image") -> Dataset:
    """A lazy dataset of rows {name, bytes, error}, in an order that depends only on their names.

    Rows of Parquet files keep their order, and are shuffled among neighbours only.

    Raises: DgnError if there are none.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = True  # another training with the same seed sees the same order
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    store = photograph_store(url)
    found = list_photographs(store)
    if found.left_out:
        log.info("left out of %s: %s", store.url, printable(found.remark))
    if found.photographs:
        # Not by name, because neighbours in a folder are alike.
        photographs = sorted(found.photographs, key=lambda key: hashlib.sha256(key.encode()).digest())
        rows = ray.data.from_items(
            [{"key": key} for key in photographs], override_num_blocks=-(-len(photographs) // 64)
        )
        return rows.map(partial(_read_photograph, store.url), num_cpus=TASK_CPUS)
    with open_table(store, found.tables[0]) as file:
        check_column(f"{store.url}/{found.tables[0]}", file.schema_arrow, column)
    rows = ray.data.from_items([{"key": key} for key in found.tables], override_num_blocks=len(found.tables))
    return rows.flat_map(partial(_read_table, store.url, column), num_cpus=TASK_CPUS)


@lru_cache(maxsize=4)
def _store(url: str) -> Store:
    """Cached, so that a process opens one connection, not one per photograph."""
    return photograph_store(url)


def _read_photograph(url: str, row: Row) -> Row:
    try:
        return {"name": row["key"], "bytes": _store(url).read(row["key"]), "error": ""}
    except (FileNotFoundError, StoreError) as error:
        return {"name": row["key"], "bytes": b"", "error": in_one_line(error)}


def _read_table(url: str, column: str, row: Row) -> Iterator[Row]:
    table = f"{url}/{row['key']}"
    with open_table(_store(url), row["key"]) as file:
        check_column(table, file.schema_arrow, column)
        for name, data in pictures_of(row["key"], file, column):
            yield {"name": name, "bytes": data, "error": ""}


def survey(photographs: Dataset, url: str) -> Survey:
    """Decodes every photograph once.

    Raises: DgnError if more than a tenth is broken, or too few are left to hold one out.
    """
    good: set[str] = set()
    broken: list[str] = []
    num_good = 0
    try:
        for row in photographs.map(_inspect, num_cpus=TASK_CPUS).iter_rows():
            if row["error"]:
                broken.append(f"{row['name']}: {row['error']}")
            else:
                num_good += 1
                good.add(row["sha256"])
    except RayError as error:
        raise DgnError(f"cannot read the pictures in {url}: {in_one_line(error)}") from error
    broken.sort()
    if len(broken) > LARGEST_BROKEN_SHARE * (len(broken) + num_good):
        listed = "; ".join(broken[:10]) + ("; ..." if len(broken) > 10 else "")
        share = f"{len(broken)} of {len(broken) + num_good} pictures in {url}"
        raise DgnError(f"{share} cannot be read, more than a tenth: {listed}")
    if len(good) < 2:
        raise DgnError(f"{len(good)} different pictures in {url}: expected at least 2, one of them to hold out")
    by_hash = sorted(good)
    num_held_out = min(MOST_HELD_OUT, max(1, round(HELD_OUT_SHARE * len(good))))
    fingerprint = hashlib.sha256("\n".join(by_hash).encode()).hexdigest()
    return Survey(num_good, tuple(broken), frozenset(by_hash[:num_held_out]), fingerprint)


def decoded(photographs: Dataset, held_out: frozenset[str], is_held_out: bool) -> Dataset:
    """Rows {photograph: (256, 256, 3) uint8} of one side of the split, without broken ones."""
    return photographs.flat_map(partial(_decode, held_out, is_held_out), num_cpus=TASK_CPUS)


def _decode(held_out: frozenset[str], is_held_out: bool, row: Row) -> list[Row]:
    if (hashlib.sha256(row["bytes"]).hexdigest() in held_out) != is_held_out:
        return []
    try:
        return [{"photograph": load_photograph(row["bytes"])}]
    except UnreadablePhotograph:
        return []


def _inspect(row: Row) -> Row:
    error = row["error"]
    try:
        load_photograph(row["bytes"])
    except UnreadablePhotograph as unreadable:
        error = error or str(unreadable)
    return {"name": row["name"], "sha256": hashlib.sha256(row["bytes"]).hexdigest(), "error": error}
