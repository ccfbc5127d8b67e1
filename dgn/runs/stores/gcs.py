"""A run on Google Cloud Storage, and what its errors mean."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import uuid
from datetime import datetime
from functools import cached_property
from types import MethodType
from typing import Any
from urllib.parse import urljoin, urlsplit

from dgn.errors import StoreError
from dgn.runs.stores.base import KeyExists
from dgn.runs.stores.buckets import PASSING_STATUSES, BucketStore, Page, media_type, needed
from dgn.runs.stores.patience import patient

EMULATOR = "STORAGE_EMULATOR_HOST"  # as Google's own libraries name it


class GCSStore(BucketStore):
    """A prefix of a bucket of Google Cloud Storage. Credentials are Google's application default ones.

    `client` sends each request once, with short timeouts, because `patient` does the retries. It is gcsfs' plain file
    system: the one that `gcsfs.GCSFileSystem` names asks a second service over gRPC first, and waits a minute for it
    where only HTTPS gets through. Buckets with a hierarchical namespace need nothing else; zonal ones do.
    """

    scheme = "gs"

    def __init__(self, url: str):
        super().__init__(url)
        needed("gcsfs", "gcs", self.url)
        import aiohttp
        from gcsfs.core import GCSFileSystem
        from gcsfs.retry import HttpError, NonRetryableError
        from google.auth.exceptions import GoogleAuthError, TransportError

        self._answers = HttpError
        self._passing = (
            aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TransportError, ConnectionError, TimeoutError
        )  # fmt: skip
        # gcsfs makes an OSError of "forbidden" and a ValueError of some bad requests.
        self.foreign = (HttpError, NonRetryableError, aiohttp.ClientError, GoogleAuthError, OSError, ValueError)
        if "@" in urlsplit(os.environ.get(EMULATOR, "")).netloc:  # errors would show it
            raise StoreError(f"cannot use {self.url}: {EMULATOR} contains a user or password; leave it out")
        try:
            self.client = self._file_system(
                requests_timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=30)
            )
        except self.foreign as error:
            raise self.in_one_line(error) from error
        self.client._request = MethodType(GCSFileSystem._request.__wrapped__, self.client)  # without its six tries

    @cached_property
    def fs(self) -> Any:
        return self._file_system()

    @staticmethod
    def _file_system(**settings: Any) -> Any:
        from gcsfs.core import GCSFileSystem

        # By default gcsfs would also unpickle a file in the home folder, and without credentials use none.
        token = "anon" if os.environ.get(EMULATOR) else "google_default"
        return GCSFileSystem(token=token, use_listings_cache=False, skip_instance_cache=True, **settings)

    def passes(self, error: BaseException) -> bool:
        if isinstance(error, self._answers):  # also a token that could not be renewed, with why as its cause
            return error.code in PASSING_STATUSES or getattr(error.__cause__, "retryable", False)
        return isinstance(error, self._passing)

    def hint(self, error: BaseException | None) -> str:
        if os.environ.get(EMULATOR):
            return f"; check {EMULATOR}"
        return "; check the credentials (GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login)"

    @patient("create")
    def create(self, key: str, data: bytes) -> None:
        try:
            self._put(key, data, ifGenerationMatch="0")
        except FileExistsError as error:
            raise KeyExists(key) from error

    @patient("write")
    def write(self, key: str, data: bytes) -> None:
        self._put(key, data)

    def _put(self, key: str, data: bytes, **conditions: str) -> None:
        """In one request of any size, with a digest, so that what was damaged on its way is refused.

        Not by gcsfs' `pipe_file`: it ends the data where they hold its fixed boundary, and sends no digest.
        """
        boundary = uuid.uuid4().hex
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        about = json.dumps({"name": self.name(key), "md5Hash": digest}).encode()
        body = []
        for kind, part in (("application/json", about), (media_type(key), data)):
            body += [f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode(), part, b"\r\n"]
        try:
            self.client.call(
                "POST", urljoin(self.client.base, "/upload/storage/v1/b/{}/o"), self.bucket, uploadType="multipart",
                headers={"Content-Type": f"multipart/related; boundary={boundary}"},
                data=b"".join([*body, f"--{boundary}--".encode()]), **conditions,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise self.no_bucket() from error

    @patient("read")
    def read(self, key: str) -> bytes:
        return self._answer(key)[1]

    def _span(self, key: str, start: int, stop: int) -> bytes:
        return self._answer(key, f"bytes={start}-{stop - 1}")[1]

    def is_past_end(self, error: BaseException) -> bool:
        return isinstance(error, self._answers) and error.code == 416

    @patient("read")
    def read_end(self, key: str, num_bytes: int) -> tuple[bytes, int]:
        try:
            headers, data = self._answer(key, f"bytes=-{num_bytes}")
        except self._answers as error:
            if not self.is_past_end(error):  # an empty object has no last byte
                raise
            return b"", 0
        whole = headers.get("Content-Range", "").rpartition("/")[2]
        return data, int(whole) if whole else len(data)

    def _answer(self, key: str, span: str | None = None) -> tuple[Any, bytes]:
        """Its headers and body; aiohttp checks the body's length."""
        try:
            address = self.client.url(f"{self.bucket}/{self.name(key)}")
            return self.client.call("GET", address, headers={"Range": span} if span else {})
        except FileNotFoundError as error:
            self._find_bucket("")  # gcsfs reports both in the same way
            raise FileNotFoundError(errno.ENOENT, "no such key", f"{self.url}/{key}") from error

    @patient("exists")
    def exists(self, key: str) -> bool:
        try:
            self.client.call("GET", "b/{}/o/{}", self.bucket, self.name(key), fields="name")
        except FileNotFoundError:
            return False
        return True

    @patient("list")
    def _page(self, prefix: str, token: str | None) -> Page:
        try:
            page = self.client.call(
                "GET", "b/{}/o", self.bucket, prefix=self.name(prefix), pageToken=token, json_out=True,
                fields="items(name,timeCreated),nextPageToken",
            )  # fmt: skip
        except FileNotFoundError as error:
            raise self.no_bucket() from error
        items = page.get("items", ())
        written = [(item["name"], datetime.fromisoformat(item["timeCreated"]).timestamp()) for item in items]
        return written, page.get("nextPageToken")

    @patient("delete")
    def delete(self, key: str) -> None:
        try:
            self.client.call("DELETE", "b/{}/o/{}", self.bucket, self.name(key))
        except FileNotFoundError:
            self._find_bucket("")
