"""What a store is: bytes under keys, create-once, and patience with faults that pass by themselves.

The only thing asked of a store beyond reading and writing is create-once: of several writers of one key, one wins and
the others are told. Everything else (the commit protocol in `run.py`) stands on that.

No layer below `patient` tries again: layers that each do so multiply, and nobody sees how often or for how long. Here
every retry waits at random (so that a thousand workers do not come back at once), is logged, is told to
`retry_observers`, and ends in time.
"""

from __future__ import annotations

import copy
import io
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception, stop_before_delay
from tenacity.wait import wait_random_exponential

from dgn.errors import Shortened, StoreError

log = logging.getLogger(__name__)

HIDDEN = ".dgn-"  # names of temporary and probing keys start so; listings leave them out
PATIENCE_S = 300.0  # from the first try of an operation until its last
CHECK_PATIENCE_S = 5.0  # the same at the start of a command, where a person waits and a setting may be wrong
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 20.0  # at most: each wait is drawn between 0 and a limit that doubles up to this

retry_observers: list[Callable[[str, BaseException], None]] = []  # told of each retry: the operation and its error


class KeyExists(Exception):
    """Create-once: somebody else's bytes are under this key."""


class Store(Protocol):
    """Keys are relative, with slashes. `url` is what a person typed, made absolute."""

    url: str

    def create(self, key: str, data: bytes) -> None:
        """Writes a whole key that does not exist yet, in one step. Raises: KeyExists."""

    def write(self, key: str, data: bytes) -> None:
        """Writes a key, new or not."""

    def read(self, key: str) -> bytes:
        """Raises: FileNotFoundError."""

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a key that has them. Raises: FileNotFoundError, StoreError where it is shorter."""

    def exists(self, key: str) -> bool:
        """Whether a key is there now, uncached."""

    def list(self, prefix: str, is_hidden: bool = False) -> Iterator[str]:
        """Keys below a folder, uncached: the hidden ones (temporaries of killed writers), or all others."""

    def delete(self, key: str) -> None:
        """No error where the key does not exist."""

    def delete_folder(self, prefix: str) -> None:
        """Deletes all keys below a folder that exists."""

    def check(self, must_write: bool) -> None:
        """Leaves nothing behind, answers soon. Raises: StoreError where the folder or bucket cannot be used."""

    def arrow(self) -> tuple[Any, str]:
        """The same for Arrow, which reads by itself: (a file system of fsspec's, the store's root in it)."""

    def impatient(self) -> Store:
        """The same store for the start of a command: waits seconds for what may pass, not minutes."""


class RangeFile(io.RawIOBase):
    """A key as a file to read, a range at a time: each read is one request."""

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


def check_create_once(store: Store) -> None:
    """Raises: StoreError where the store lets a second writer overwrite the first. Leaves nothing behind."""
    key = f"{HIDDEN}probe-{uuid.uuid4().hex}"
    try:
        with suppress(KeyExists):  # of our own making, where an answer was lost and the write tried again
            store.create(key, b"first")
        with suppress(KeyExists):
            store.create(key, b"second")
            raise StoreError(
                f"{store.url} ignores create-once (If-None-Match): two workers could overwrite each other's results; "
                "use a store that honours it (AWS S3, MinIO, Ceph) or a local folder"
            )
        if store.read(key) != b"first":
            raise StoreError(f"{store.url} answered that a key exists and overwrote it all the same")
    finally:
        store.delete(key)


Args = ParamSpec("Args")
Result = TypeVar("Result")
AnyStore = TypeVar("AnyStore", bound="PatientStore")
Method = Callable[Concatenate[AnyStore, str, Args], Result]  # of a store, its key first


class PatientStore:
    """What the stores share: patience with faults that pass by themselves, one line for all others."""

    url: str
    foreign: tuple[type[Exception], ...]  # errors of the disk, of S3 and of its client
    hint = ""  # ends the line about a fault
    patience_s: float | None = None  # None: PATIENCE_S

    def impatient(self) -> Self:
        """The same store for the start of a command."""
        hurried = copy.copy(self)
        hurried.patience_s = CHECK_PATIENCE_S
        return hurried

    def passes(self, error: BaseException) -> bool:
        """Whether a fault passes by itself."""
        raise NotImplementedError

    def check_length(self, key: str, data: bytes, start: int, stop: int) -> bytes:
        """The data of a range. Raises: StoreError where it is not the whole of it."""
        if len(data) != stop - start:
            raise Shortened(f"{self.url}/{key} ends before byte {stop}: it is not as it was written")
        return data

    def in_one_line(self, error: BaseException) -> StoreError:
        """A fault that does not."""
        return StoreError(f"cannot use {self.url}: {_text(error)}{self.hint}")


def patient(operation: str) -> Callable[[Method[AnyStore, Args, Result]], Method[AnyStore, Args, Result]]:
    """Makes a method try again what passes by itself. Other faults, and those that last, leave it as a StoreError in
    one line, a missing key as a FileNotFoundError.
    """

    def decorate(method: Method[AnyStore, Args, Result]) -> Method[AnyStore, Args, Result]:
        @wraps(method)
        def persist(self: AnyStore, key: str, /, *args: Args.args, **kwargs: Args.kwargs) -> Result:
            retrying = Retrying(
                retry=retry_if_exception(self.passes),
                wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
                stop=stop_before_delay(PATIENCE_S if self.patience_s is None else self.patience_s),
                before_sleep=partial(_tell, f"{self.url}/{key}", operation),
            )
            try:
                return retrying(method, self, key, *args, **kwargs)
            except FileNotFoundError:
                raise
            except RetryError as error:
                last, seconds = error.last_attempt, retrying.statistics["delay_since_first_attempt"]
                tried = f"{operation} {key}".rstrip() + f" failed {last.attempt_number} times in {seconds:.0f} s"
                cause = last.exception()
                raise StoreError(f"cannot use {self.url}: {tried}, at last: {_text(cause)}{self.hint}") from cause
            except self.foreign as error:
                raise self.in_one_line(error) from error

        return persist

    return decorate


def _tell(where: str, operation: str, state: RetryCallState) -> None:
    error = state.outcome and state.outcome.exception()
    assert error
    log.warning("%s %s: %s; next try in %.1f s", operation, where, _text(error), state.upcoming_sleep)
    for observer in retry_observers:
        observer(operation, error)


def _text(error: BaseException | None) -> str:
    """In one line."""
    return " ".join(str(error).split())
