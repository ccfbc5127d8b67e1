"""Where a run lives: a folder or a bucket, behind one interface (`base.Store`)."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dgn.errors import StoreError
from dgn.runs.stores.base import HIDDEN, EndFile, KeyExists, RangeFile, Store, check_create_once
from dgn.runs.stores.local import LocalStore
from dgn.runs.stores.patience import retry_observers
from dgn.text import A_BUCKET

if TYPE_CHECKING:
    from dgn.runs.stores.buckets import BucketStore

__all__ = [
    "HIDDEN", "EndFile", "KeyExists", "LocalStore", "RangeFile", "Store", "check_create_once", "in_bucket",
    "open_store", "read_url", "retry_observers",
]  # fmt: skip

# By scheme, the module and the class. Only the one needed is imported: whoever reads a folder waits for none.
BUCKETS = {"s3": ("s3", "S3Store"), "gs": ("gcs", "GCSStore"), "az": ("azure", "AzureStore")}


def in_bucket(url: str) -> bool:
    """Whether an address is one in a bucket that dgn reads and writes, not a file, a folder or another address."""
    return "://" in url and url.partition("://")[0] in BUCKETS


def open_store(url: str) -> Store:
    """The store for a run's address, a folder or a bucket's (`dgn.text.A_BUCKET`). Raises: StoreError."""
    if not url.strip():
        raise StoreError(f"the address of the run is empty: expected a folder, or {A_BUCKET}")
    if in_bucket(url):
        module, name = BUCKETS[url.partition("://")[0]]
        store = cast("type[BucketStore]", getattr(import_module(f"{__name__}.{module}"), name))
        return store(url)
    if "://" in url:
        raise StoreError(f"unknown kind of run '{url}': expected a folder, or {A_BUCKET}")
    return LocalStore(url)


def read_url(url: str) -> bytes:
    """A file or object that a command starts with; a file may be a link. Raises: FileNotFoundError, StoreError."""
    folder, _, name = (url if "://" in url else os.path.realpath(Path(url).expanduser())).rpartition("/")
    return open_store(folder or "/").impatient().read(name)
