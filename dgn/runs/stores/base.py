"""What a store is: bytes under keys, and create-once.

Create-once is the only thing asked of a store beyond reading and writing: of several writers of one key, one wins and
the others learn that they lost. The commit protocol in `run.py` depends on nothing else.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier
from typing import Any, Protocol

from dgn.errors import StoreError

HIDDEN = ".dgn-"  # starts the names of temporary and probing keys, which listings leave out
NUM_WRITERS = 8  # that try to create one key at a time, where create-once is checked


class KeyExists(Exception):
    """Create-once: another writer's bytes are already under this key."""


class Store(Protocol):
    """Keys are relative and use slashes."""

    url: str  # what a person typed, made absolute
    foreign: tuple[type[Exception], ...]  # errors of the disk, or of the service and its client

    def create(self, key: str, data: bytes) -> None:
        """Writes a whole key that does not exist yet, in one step. Raises: KeyExists."""

    def write(self, key: str, data: bytes) -> None:
        """Writes a key, new or not."""

    def read(self, key: str) -> bytes:
        """Raises: FileNotFoundError."""

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a key. Raises: FileNotFoundError; Truncated if the key is shorter."""

    def read_end(self, key: str, num_bytes: int) -> tuple[bytes, int]:
        """The last bytes of a key, at most so many, and how many the key has. Raises: FileNotFoundError."""

    def exists(self, key: str) -> bool:
        """Whether a key exists now, uncached."""

    def list(self, prefix: str, is_hidden: bool = False) -> Iterator[str]:
        """Keys below a folder, uncached: either the hidden ones (temporary files of killed writers) or all others."""

    def list_dated(self, prefix: str, is_hidden: bool = False) -> Iterator[tuple[str, float]]:
        """As `list`, each key with when it was last written: seconds since 1970, by the store's clock."""

    def delete(self, key: str) -> None:
        """Deletes a key; does nothing if it does not exist."""

    def delete_folder(self, prefix: str) -> None:
        """Deletes all keys below a folder that exists."""

    def check(self, must_write: bool) -> None:
        """Answers within seconds and leaves nothing behind. Raises: StoreError if the store cannot be used."""

    def remark(self) -> str:
        """What a person should know about the store, in one line; empty if there is nothing."""

    def arrow(self) -> tuple[Any, str]:
        """For Arrow, which reads by itself: an fsspec file system, and the store's root in it."""

    def impatient(self) -> Store:
        """The same store for the start of a command: waits for seconds, not minutes, for faults that may pass."""


class RangeFile(io.RawIOBase):
    """A key as a readable file. Each read is one request for a range."""

    def __init__(self, store: Store, key: str, num_bytes: int):
        self.store, self.key, self.num_bytes, self.at = store, key, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.num_bytes}[whence]
        return self.at

    def read(self, size: int = -1) -> bytes:
        stop = self.num_bytes if size < 0 else min(self.at + size, self.num_bytes)
        data = self.store.read_range(self.key, self.at, stop) if stop > self.at else b""
        self.at += len(data)
        return data


class EndFile(RangeFile):
    """A key whose end is here, as a readable file. What lies before is read when it is first needed, in one request."""

    def __init__(self, store: Store, key: str, end: bytes, num_bytes: int):
        super().__init__(store, key, num_bytes)
        self.end, self.first = end, num_bytes - len(end)  # the end begins at this byte

    def read(self, size: int = -1) -> bytes:
        stop = self.num_bytes if size < 0 else min(self.at + size, self.num_bytes)
        if self.at < self.first and self.at < stop:
            self.end = self.store.read_range(self.key, self.at, self.first) + self.end
            self.first = self.at
        data = self.end[self.at - self.first : stop - self.first]
        self.at += len(data)
        return data


def check_create_once(store: Store) -> None:
    """Several writers create a key at once. Leaves nothing behind. Raises: StoreError if more than one of them wins."""
    key = f"{HIDDEN}probe-{uuid.uuid4().hex}"
    try:
        _race_to_create(store, key)
    except BaseException:
        with suppress(StoreError):  # must not hide what went wrong before
            store.delete(key)
        raise
    store.delete(key)


def _race_to_create(store: Store, key: str) -> None:
    """None may win: a writer whose answer was lost tries again, and finds its own bytes."""
    names = [b"%d" % number for number in range(NUM_WRITERS)]
    start = Barrier(NUM_WRITERS)

    def is_created(name: bytes) -> bool:
        start.wait()
        try:
            store.create(key, name)
        except KeyExists:
            return False
        return True

    with ThreadPoolExecutor(NUM_WRITERS) as writers:
        winners = [name for name, is_winner in zip(names, writers.map(is_created, names), strict=True) if is_winner]
    if len(winners) > 1:
        raise StoreError(
            f"{store.url} ignores create-once: {len(winners)} of {NUM_WRITERS} writers at once created one key, so "
            "workers could overwrite each other's results; use a store that honours it (If-None-Match on AWS S3, "
            "MinIO, Ceph and Azure, ifGenerationMatch on Google Cloud Storage) or a local folder"
        )
    if store.read(key) not in (winners or names):
        raise StoreError(f"{store.url} reported that a key exists and overwrote it nevertheless")
