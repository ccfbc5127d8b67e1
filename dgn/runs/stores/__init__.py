"""Where a run lives: a folder or an S3 bucket, behind one interface (`base.Store`)."""

from __future__ import annotations

import os
from pathlib import Path

from dgn.errors import StoreError
from dgn.runs.stores.base import HIDDEN, EndFile, KeyExists, RangeFile, Store, check_create_once
from dgn.runs.stores.local import LocalStore
from dgn.runs.stores.patience import retry_observers
from dgn.runs.stores.s3 import S3Store

__all__ = [
    "HIDDEN", "EndFile", "KeyExists", "LocalStore", "RangeFile", "S3Store", "Store", "check_create_once", "open_store",
    "read_url", "retry_observers",
]  # fmt: skip


def open_store(url: str) -> Store:
    """The store for a run's address, a folder or `s3://bucket/prefix`. Raises: StoreError."""
    if not url.strip():
        raise StoreError("the address of the run is empty: expected a folder or s3://bucket/prefix")
    if url.startswith("s3://"):
        return S3Store(url)
    if "://" in url:
        raise StoreError(f"unknown kind of run '{url}': expected a folder or s3://bucket/prefix")
    return LocalStore(url)


def read_url(url: str) -> bytes:
    """One file or S3 object that a command starts with; a file may be a link. Raises: FileNotFoundError, StoreError."""
    folder, _, name = (url if "://" in url else os.path.realpath(Path(url).expanduser())).rpartition("/")
    return open_store(folder or "/").impatient().read(name)
