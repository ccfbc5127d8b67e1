"""Where a run lives: bytes under keys, on a local disk or in an S3 bucket, through one interface.

The only thing asked of a store beyond reading and writing is create-once: of several writers of one key, one wins and
the others are told. Everything else (the commit protocol in `run.py`) stands on that. Faults of the disk or of S3
leave here as a StoreError in one line, a missing key as a FileNotFoundError.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from dgn.errors import DgnError, StoreError

HIDDEN = ".dgn-"  # names of temporary and probing keys start so; listings leave them out


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

    def exists(self, key: str) -> bool:
        """Whether a key is there now, uncached."""

    def list(self, prefix: str, is_hidden: bool = False) -> Iterator[str]:
        """Keys below a folder, uncached: the hidden ones (temporaries of killed writers), or all others."""

    def delete(self, key: str) -> None:
        """No error where the key does not exist."""

    def delete_folder(self, prefix: str) -> None:
        """Deletes all keys below a folder that exists."""

    def check(self, must_write: bool) -> None:
        """Leaves nothing behind. Raises: StoreError where the folder or bucket cannot be used."""


def open_store(url: str) -> Store:
    """The store of a RUN as people write it: a folder, or `s3://bucket/prefix`."""
    if url.startswith("s3://"):
        return S3Store(url)
    if "://" in url:
        raise StoreError(f"unknown kind of run '{url}': expected a folder or s3://bucket/prefix")
    return LocalStore(url)


def read_url(url: str) -> bytes:
    """One file or S3 object. Raises: FileNotFoundError, StoreError."""
    folder, _, name = url.rpartition("/")
    return open_store(folder or ("/" if url.startswith("/") else ".")).read(name)


def check_create_once(store: Store) -> None:
    """Raises: StoreError where the store lets a second writer overwrite the first. Leaves nothing behind."""
    key = f"{HIDDEN}probe-{uuid.uuid4().hex}"
    try:
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


class LocalStore:
    """A folder on a disk, or one that all workers share."""

    def __init__(self, folder: str):
        self.root = Path(os.path.abspath(Path(folder).expanduser()))  # without '..', links as they are
        self.url = str(self.root)

    def _path(self, key: str) -> Path:
        if key.startswith("/") or ".." in key.split("/"):
            raise StoreError(f"key '{key}' leaves the run {self.url}")
        return self.root / key

    def create(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with _one_line_errors(self.url):
            temporary = self._write_temporary(path, data)
            try:
                os.link(temporary, path)  # unlike a rename, fails where the name is taken
            except FileExistsError as error:
                raise KeyExists(key) from error
            finally:
                temporary.unlink()
            self._sync_folder(path.parent)

    def write(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with _one_line_errors(self.url):
            os.replace(self._write_temporary(path, data), path)

    def _write_temporary(self, path: Path, data: bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{HIDDEN}{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    @staticmethod
    def _sync_folder(folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, key: str) -> bytes:
        with _one_line_errors(self.url):
            return self._path(key).read_bytes()

    def exists(self, key: str) -> bool:
        return self._path(key).exists()

    def list(self, prefix: str, is_hidden: bool = False) -> Iterator[str]:
        with _one_line_errors(self.url):
            for folder, _, names in os.walk(self._path(prefix), onerror=_raise_unless_missing):
                relative = Path(folder).relative_to(self.root)
                yield from ((relative / name).as_posix() for name in names if name.startswith(HIDDEN) == is_hidden)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _one_line_errors(self.url):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # a folder that still holds something stays
            if path.parent != self.root:
                path.parent.rmdir()

    def delete_folder(self, prefix: str) -> None:
        with _one_line_errors(self.url):
            shutil.rmtree(self._path(prefix))

    def check(self, must_write: bool) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"{self.url} is a file: expected a folder for the run")
        if not must_write:
            if not self.root.is_dir():
                raise StoreError(f"no run at {self.url}: expected the folder of an earlier dgn render")
            return
        existing = next(parent for parent in (self.root, *self.root.parents) if parent.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            raise StoreError(f"cannot write to {existing}: no permission; give a folder that you may write to")
        try:
            check_create_once(LocalStore(str(existing)))  # the same disk, and nothing is left where no run begins
        except FileNotFoundError as error:  # what /proc answers
            raise StoreError(f"cannot write to {existing}: {error.strerror}; give another folder") from error


class S3Store:
    """A prefix of an S3 bucket. Credentials, region and endpoint come from the usual AWS settings."""

    def __init__(self, url: str):
        import s3fs

        self.bucket, _, self.prefix = url.removeprefix("s3://").rstrip("/").partition("/")
        self.url = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        if not self.bucket:
            raise StoreError(f"no bucket in '{url}': expected s3://bucket/prefix")
        retries = {"mode": "adaptive", "max_attempts": 8}
        self.fs = s3fs.S3FileSystem(
            config_kwargs={"retries": retries}, use_listings_cache=False, skip_instance_cache=True
        )

    def _path(self, key: str) -> str:
        if ".." in key.split("/"):
            raise StoreError(f"key '{key}' leaves the run {self.url}")
        return "/".join(part for part in (self.bucket, self.prefix, key) if part)

    def create(self, key: str, data: bytes) -> None:
        with _one_line_errors(self.url):
            try:
                self.fs.pipe_file(self._path(key), data, mode="create")
            except OSError as error:
                if isinstance(error, FileExistsError) or _s3_code(error) in (
                    "PreconditionFailed",
                    "ConditionalRequestConflict",
                ):
                    raise KeyExists(key) from error
                raise

    def write(self, key: str, data: bytes) -> None:
        with _one_line_errors(self.url):
            self.fs.pipe_file(self._path(key), data)

    def read(self, key: str) -> bytes:
        with _one_line_errors(self.url):
            return self.fs.cat_file(self._path(key))

    def exists(self, key: str) -> bool:
        with _one_line_errors(self.url):
            return self.fs.exists(self._path(key))

    def list(self, prefix: str, is_hidden: bool = False) -> Iterator[str]:
        root = self._path("")
        with _one_line_errors(self.url):
            for path in self.fs.find(self._path(prefix)):  # one flat listing; unlike walk it reports every fault
                if path.rpartition("/")[2].startswith(HIDDEN) == is_hidden:
                    yield path.removeprefix(root).lstrip("/")

    def delete(self, key: str) -> None:
        with _one_line_errors(self.url), suppress(FileNotFoundError):
            self.fs.rm_file(self._path(key))

    def delete_folder(self, prefix: str) -> None:
        with _one_line_errors(self.url):
            self.fs.rm(self._path(prefix), recursive=True)

    def check(self, must_write: bool) -> None:
        with _one_line_errors(self.url):
            try:
                self.fs.call_s3("head_bucket", Bucket=self.bucket)
            except FileNotFoundError as error:
                raise StoreError(f"no bucket '{self.bucket}' for {self.url}: create it, or mend the name") from error
            if must_write:
                check_create_once(self)


@contextmanager
def _one_line_errors(url: str) -> Iterator[None]:
    """Faults of the disk, of S3 and of its client as a StoreError; a missing key stays a FileNotFoundError."""
    foreign: tuple[type[Exception], ...] = (OSError,)
    hint = ""
    if url.startswith("s3://"):
        from botocore.exceptions import BotoCoreError

        foreign = (OSError, BotoCoreError, ValueError)  # a ValueError for an endpoint without http://
        hint = "; check endpoint and credentials (AWS_*)"
    try:
        yield
    except (FileNotFoundError, DgnError):
        raise
    except PermissionError as error:
        raise StoreError(f"no permission for {url}: {error}; it must be readable and writable") from error
    except foreign as error:
        raise StoreError(f"cannot use {url}: {' '.join(str(error).split())}{hint}") from error


def _raise_unless_missing(error: OSError) -> None:
    """A folder that is not there is empty; any other fault must not pass for an empty listing."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _s3_code(error: BaseException) -> str | None:
    response = getattr(error.__cause__, "response", None)
    return response["Error"].get("Code") if response else None
