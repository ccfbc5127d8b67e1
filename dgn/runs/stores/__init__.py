"""Where a run lives: a folder or a bucket, behind one interface (`base.Store`)."""

from __future__ import annotations

import os
from pathlib import Path

from dgn.errors import StoreError
from dgn.runs.stores.azure import AzureStore
from dgn.runs.stores.base import HIDDEN, EndFile, KeyExists, RangeFile, Store, check_create_once
from dgn.runs.stores.buckets import BucketStore
from dgn.runs.stores.gcs import GCSStore
from dgn.runs.stores.local import LocalStore
from dgn.runs.stores.patience import retry_observers
from dgn.runs.stores.s3 import S3Store
from dgn.text import A_BUCKET

__all__ = [
    "HIDDEN", "EndFile", "KeyExists", "LocalStore", "RangeFile", "S3Store", "Store", "check_create_once", "in_bucket",
    "open_store", "read_url", "retry_observers",
]  # fmt: skip

BUCKETS: dict[str, type[BucketStore]] = {store.scheme: store for store in (S3Store, GCSStore, AzureStore)}


def in_bucket(url: str) -> bool:
    """Whether an address is one in a bucket that dgn reads and writes, not a file, a folder or another address."""
    return "://" in url and url.partition("://")[0] in BUCKETS


def open_store(url: str) -> Store:
    """The store for a run's address, a folder or a bucket's (`dgn.text.A_BUCKET`). Raises: StoreError."""
    if not url.strip():
        raise StoreError(f"the address of the run is empty: expected a folder, or {A_BUCKET}")
    if in_bucket(url):
        return BUCKETS[url.partition("://")[0]](url)
    if "://" in url:
        raise StoreError(f"unknown kind of run '{url}': expected a folder, or {A_BUCKET}")
    return LocalStore(url)


def read_url(url: str) -> bytes:
    """A file or object that a command starts with; a file may be a link. Raises: FileNotFoundError, StoreError."""
    folder, _, name = (url if "://" in url else os.path.realpath(Path(url).expanduser())).rpartition("/")
    return open_store(folder or "/").impatient().read(name)
