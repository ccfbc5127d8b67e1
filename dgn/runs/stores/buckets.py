"""What S3, Google Cloud Storage and Azure Blob Storage have in common: a run is a prefix of a bucket."""

from __future__ import annotations

import importlib
import mimetypes
from collections.abc import Iterator
from typing import Any

from dgn.errors import RunDamaged, StoreError
from dgn.runs.stores.base import HIDDEN, Store, check_create_once
from dgn.runs.stores.patience import PatientStore, patient

PASSING_STATUSES = {408, 429, 500, 502, 503, 504}

Page = tuple[list[tuple[str, float]], str | None]  # names with when they were written; what the next page is asked with


def media_type(key: str) -> str:
    """By which browsers decide to show a page or picture."""
    return mimetypes.guess_type(key)[0] or "application/octet-stream"


class BucketStore(PatientStore, Store):
    """A prefix of a bucket."""

    scheme: str  # of its address
    noun = "bucket"  # what the service calls it
    fs: Any  # the same service as an fsspec file system. It retries by itself, because libraries bypass `patient`

    def __init__(self, url: str):
        self.bucket, _, self.prefix = url.removeprefix(f"{self.scheme}://").rstrip("/").partition("/")
        self.url = f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")
        if not self.bucket:
            raise StoreError(f"no {self.noun} in '{url}': expected {self.scheme}://{self.noun}/prefix")

    def name(self, key: str) -> str:
        """A key's name in the bucket. Raises: RunDamaged if it leads out of the run."""
        if ".." in key.split("/"):
            raise RunDamaged(f"key '{key}' leads out of the run {self.url}")
        return f"{self.prefix}/{key}".lstrip("/")

    @patient("read")
    def read_range(self, key: str, start: int, stop: int) -> bytes:
        try:
            data = self._span(key, start, stop)
        except self.foreign as error:
            if not self.is_past_end(error):
                raise
            data = b""
        return self.check_length(key, data, start, stop)

    def _span(self, key: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a key, or fewer if it ends before."""
        raise NotImplementedError

    def is_past_end(self, error: BaseException) -> bool:
        """Whether a range was refused because the key has no byte in it."""
        raise NotImplementedError

    def list(self, prefix: str, is_hidden: bool = False) -> Iterator[str]:
        return (key for key, _ in self.list_dated(prefix, is_hidden))

    def list_dated(self, prefix: str, is_hidden: bool = False) -> Iterator[tuple[str, float]]:
        root = f"{self.prefix}/".lstrip("/")
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        items, token = self._page(folder, None)
        while True:
            for name, written_s in items:
                if name.rpartition("/")[2].startswith(HIDDEN) == is_hidden:
                    yield name.removeprefix(root), written_s
            if token is None:
                return
            items, token = self._page(folder, token)

    def _page(self, prefix: str, token: str | None) -> Page:
        """Some of the names that start with a prefix of keys, from all folders below."""
        raise NotImplementedError

    def delete_folder(self, prefix: str) -> None:
        for is_hidden in (False, True):
            # One by one: a bulk delete reports failures inside a successful answer.
            for key in self.list(prefix, is_hidden):
                self.delete(key)

    def arrow(self) -> tuple[Any, str]:
        return self.fs, f"{self.bucket}/{self.prefix}".rstrip("/")

    def check(self, must_write: bool) -> None:
        hurried = self.impatient()
        hurried._find_bucket("")
        if must_write:
            check_create_once(hurried)

    def _find_bucket(self, _: str) -> None:
        """Raises: StoreError if there is none. A role that may only list, read and write objects can ask this."""
        self._page("", None)

    def no_bucket(self) -> StoreError:
        return StoreError(f"no {self.noun} '{self.bucket}' for {self.url}: create it, or correct the name")


def needed(module: str, extra: str, url: str) -> Any:
    """A module of an optional package. Raises: StoreError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise StoreError(f"{url} needs {error.name}: pip install 'dgn[{extra}]'") from error
