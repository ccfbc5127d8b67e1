"""S3 as a store: a client that tries once, what its errors mean, and a prefix of a bucket."""

from __future__ import annotations

import errno
import mimetypes
from collections.abc import Iterator
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from cluster.store import HIDDEN, KeyExists, PatientStore, check_create_once, patient
from dgn.errors import RunDamaged, StoreError

# Connection refused, reset, closed or silent; a body that ended early or is not what its checksum says; half an XML.
# HTTPError is what botocore lets through where TLS breaks within a body.
PASSING_ERRORS = (
    exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError,
    exceptions.FlexibleChecksumError, ResponseParserError, HTTPError,
)  # fmt: skip
ERRORS = (BotoCoreError, ClientError, ResponseParserError, HTTPError)
PASSING_STATUSES = {408, 429, 500, 502, 503, 504}  # SlowDown and InternalError come as these; HEAD has no other code
# Of those that come as 400 and 409: a body lost on its way to S3, and writers of one key at the same moment. AWS asks
# that a ConditionalRequestConflict be tried again: it does not say that the key exists, PreconditionFailed then does.
PASSING_CODES = {
    "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "OperationAborted", "RequestTimeout", "SlowDown",
    "Throttling", "ThrottlingException", "TooManyRequests", "XAmzContentSHA256Mismatch",
}  # fmt: skip


def _new_client() -> Any:
    """A client of S3 whose credentials, region and endpoint come from the usual AWS settings.

    It tries everything once: `patient` tries again. Its timeouts are short because of that.

    Raises: BotoCoreError for settings that do not fit, ValueError for an endpoint without http://.
    """
    import botocore.session  # a third of a second, which local runs do not need
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1}, connect_timeout=5, read_timeout=30, tcp_keepalive=True
    )
    return botocore.session.Session().create_client("s3", config=config)


def _passes(error: BaseException) -> bool:
    """Whether a fault passes by itself."""
    if isinstance(error, ClientError):
        return _status(error) in PASSING_STATUSES or _code(error) in PASSING_CODES
    return isinstance(error, PASSING_ERRORS)


def _says_key_exists(error: ClientError) -> bool:
    return _code(error) == "PreconditionFailed" or _status(error) == 412


def _says_no_bucket(error: BaseException) -> bool:
    return isinstance(error, ClientError) and _code(error) == "NoSuchBucket"


def _says_not_found(error: ClientError) -> bool:
    """A missing key; to HEAD, whose answers have no body, also a missing bucket."""
    return not _says_no_bucket(error) and _status(error) == 404


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def _status(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _kind(key: str) -> str:
    """The media type that a browser is told, which opens a page or a picture only by this."""
    return mimetypes.guess_type(key)[0] or "application/octet-stream"


class S3Store(PatientStore):
    """A prefix of an S3 bucket. Credentials, region and endpoint come from the usual AWS settings."""

    foreign = ERRORS
    hint = "; check endpoint and credentials (AWS_*)"

    def __init__(self, url: str):
        self.bucket, _, self.prefix = url.removeprefix("s3://").rstrip("/").partition("/")
        self.url = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        if not self.bucket:
            raise StoreError(f"no bucket in '{url}': expected s3://bucket/prefix")
        try:
            self.client = _new_client()
        except BotoCoreError as error:
            raise self.in_one_line(error) from error
        except ValueError:
            raise StoreError(
                f"cannot use {self.url}: the endpoint is no address; set AWS_ENDPOINT_URL to http(s)://host:port"
            ) from None  # which would show what the address holds, perhaps a password
        if "@" in urlsplit(self.client.meta.endpoint_url).netloc:  # in every error, and of no use: S3 signs instead
            raise StoreError(
                f"cannot use {self.url}: the endpoint's address holds a user or password; leave it out, set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )

    @cached_property
    def fs(self) -> Any:
        """The same S3 for libraries that want a file system. They have no patience of ours, so this one retries."""
        import s3fs

        retries = {"mode": "adaptive", "max_attempts": 8}
        return s3fs.S3FileSystem(config_kwargs={"retries": retries}, use_listings_cache=False, skip_instance_cache=True)

    def _place(self, key: str) -> dict[str, str]:
        if ".." in key.split("/"):
            raise RunDamaged(f"key '{key}' leaves the run {self.url}")
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}".lstrip("/")}

    def passes(self, error: BaseException) -> bool:
        return _passes(error)

    def in_one_line(self, error: BaseException) -> StoreError:
        return self._no_bucket() if _says_no_bucket(error) else super().in_one_line(error)

    @patient("create")
    def create(self, key: str, data: bytes) -> None:
        try:
            self.client.put_object(**self._place(key), Body=data, ContentType=_kind(key), IfNoneMatch="*")
        except ClientError as error:
            if _says_key_exists(error):
                raise KeyExists(key) from error
            raise

    @patient("write")
    def write(self, key: str, data: bytes) -> None:
        self.client.put_object(**self._place(key), Body=data, ContentType=_kind(key))

    @patient("read")
    def read(self, key: str) -> bytes:
        return self._get(key)

    @patient("read")
    def read_range(self, key: str, start: int, stop: int) -> bytes:
        try:
            data = self._get(key, Range=f"bytes={start}-{stop - 1}")
        except ClientError as error:
            if _code(error) != "InvalidRange":
                raise
            data = b""
        return self.check_length(key, data, start, stop)

    def _get(self, key: str, **more: str) -> bytes:
        try:
            return self.client.get_object(**self._place(key), **more)["Body"].read()  # whose length botocore checks
        except ClientError as error:
            if _says_not_found(error):
                raise FileNotFoundError(errno.ENOENT, "no such key", f"{self.url}/{key}") from error
            raise

    @patient("exists")
    def exists(self, key: str) -> bool:
        try:
            self.client.head_object(**self._place(key))
        except ClientError as error:
            if _says_not_found(error):
                return False
            raise
        return True

    def list(self, prefix: str, is_hidden: bool = False) -> Iterator[str]:
        root = f"{self.prefix}/".lstrip("/")
        token = None
        while True:
            page = self._page(prefix, token)
            for key in (item["Key"].removeprefix(root) for item in page.get("Contents", ())):
                if key.rpartition("/")[2].startswith(HIDDEN) == is_hidden:
                    yield key
            if not page.get("IsTruncated"):
                return
            token = page["NextContinuationToken"]

    @patient("list")
    def _page(self, prefix: str, token: str | None) -> dict[str, Any]:
        """A thousand keys, all folders below included."""
        place = self._place(f"{prefix.rstrip('/')}/" if prefix else "")
        following = {"ContinuationToken": token} if token else {}
        return self.client.list_objects_v2(Bucket=place["Bucket"], Prefix=place["Key"], **following)

    @patient("delete")
    def delete(self, key: str) -> None:
        self.client.delete_object(**self._place(key))

    def delete_folder(self, prefix: str) -> None:
        for is_hidden in (False, True):
            for key in self.list(prefix, is_hidden):  # one by one: a bulk delete tells of single failures in its answer
                self.delete(key)

    def arrow(self) -> tuple[Any, str]:
        return self.fs, f"{self.bucket}/{self.prefix}".rstrip("/")

    def check(self, must_write: bool) -> None:
        hurried = self.impatient()
        hurried._find_bucket("")
        if must_write:
            check_create_once(hurried)

    @patient("check")
    def _find_bucket(self, _: str) -> None:
        try:
            self.client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            if _says_not_found(error):
                raise self._no_bucket() from error
            raise

    def _no_bucket(self) -> StoreError:
        return StoreError(f"no bucket '{self.bucket}' for {self.url}: create it, or mend the name")
