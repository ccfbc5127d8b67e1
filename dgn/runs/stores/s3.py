"""A run on S3: a prefix of a bucket, and what S3's errors mean."""

from __future__ import annotations

import errno
import os
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from botocore import UNSIGNED, exceptions
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from dgn.errors import StoreError
from dgn.runs.stores.base import KeyExists
from dgn.runs.stores.buckets import PASSING_STATUSES, BucketStore, Page, media_type
from dgn.runs.stores.patience import patient

# A connection refused, reset, closed or silent; a body that ended early or does not match its checksum; truncated XML.
# botocore passes on urllib3's HTTPError when TLS breaks within a body.
PASSING_ERRORS = (
    exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError,
    exceptions.FlexibleChecksumError, ResponseParserError, HTTPError,
)  # fmt: skip
ERRORS = (BotoCoreError, ClientError, ResponseParserError, HTTPError)
# Passing errors with status 400 or 409: a body lost on its way to S3, and concurrent writers of one key. AWS asks for
# another try after ConditionalRequestConflict: it does not mean that the key exists, which PreconditionFailed does.
PASSING_CODES = {
    "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "OperationAborted", "RequestTimeout", "SlowDown",
    "Throttling", "ThrottlingException", "TooManyRequests",
}  # fmt: skip
# Servers that do not know the checksums of AWS's newer clients refuse every upload, each server with its own code. Its
# message has one of these words.
CHECKSUM_WORDS = ("checksum", "digest", "sha256", "trailer")
CHECKSUM_HINT = (
    "; if the server does not know AWS's newer checksums, set AWS_REQUEST_CHECKSUM_CALCULATION=when_required and "
    "AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"
)
# Settings of one's own, for what the usual AWS settings lack. Every machine must have them, as it must have those.
UNSIGNED_BUCKETS = "DGN_S3_UNSIGNED"  # names of public buckets, with commas
ENCRYPTION = {"ServerSideEncryption": "DGN_S3_ENCRYPTION", "SSEKMSKeyId": "DGN_S3_KMS_KEY"}  # by botocore's arguments
VERSIONING = {  # by S3's status of a bucket
    None: "the bucket is not versioned: what is deleted is gone",
    "Enabled": "the bucket keeps versions: what is deleted stays and costs, until a lifecycle rule expires it",
    "Suspended": "the bucket kept versions once: they stay and cost, until a lifecycle rule expires them",
}
NO_ACCESS = {"AccessDenied", "403"}  # the latter for HEAD


def _new_client(is_unsigned: bool) -> Any:
    """A client of S3 with credentials, region and endpoint from the usual AWS settings.

    It tries every request once, with short timeouts, because `patient` does the retries.

    Raises: BotoCoreError for bad settings, ValueError for an endpoint without http://.
    """
    import botocore.session  # a third of a second, which local runs do not need
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1}, connect_timeout=5, read_timeout=30, tcp_keepalive=True,
        signature_version=UNSIGNED if is_unsigned else None,
    )  # fmt: skip
    return botocore.session.Session().create_client("s3", config=config)


def _passes(error: BaseException) -> bool:
    """Whether another try can succeed."""
    if isinstance(error, ClientError):
        return _status(error) in PASSING_STATUSES or _code(error) in PASSING_CODES
    return isinstance(error, PASSING_ERRORS)


def _says_key_exists(error: ClientError) -> bool:
    return _code(error) == "PreconditionFailed" or _status(error) == 412


def _says_no_bucket(error: BaseException) -> bool:
    return isinstance(error, ClientError) and _code(error) == "NoSuchBucket"


def _says_not_found(error: ClientError) -> bool:
    """Whether the key is missing; or the bucket, for HEAD, whose answers have no body."""
    return not _says_no_bucket(error) and _status(error) == 404


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def _status(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


class S3Store(BucketStore):
    """A prefix of an S3 bucket. Credentials, region and endpoint come from the usual AWS settings."""

    scheme = "s3"
    foreign: tuple[type[Exception], ...] = ERRORS

    def __init__(self, url: str):
        super().__init__(url)
        self.is_unsigned = self.bucket in os.environ.get(UNSIGNED_BUCKETS, "").split(",")
        self.encryption = {argument: os.environ[name] for argument, name in ENCRYPTION.items() if os.environ.get(name)}
        try:
            self.client = _new_client(self.is_unsigned)
        except BotoCoreError as error:
            raise self.in_one_line(error) from error
        except ValueError:
            raise StoreError(
                f"cannot use {self.url}: its endpoint is not an address; set AWS_ENDPOINT_URL to http(s)://host:port"
            ) from None  # the cause would show the address, perhaps with a password
        if "@" in urlsplit(self.client.meta.endpoint_url).netloc:  # errors would show it, and S3 signs requests instead
            raise StoreError(
                f"cannot use {self.url}: its endpoint contains a user or password; set AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY instead"
            )

    @cached_property
    def fs(self) -> Any:
        """The same S3 as a file system for libraries. It retries by itself, because they bypass `patient`."""
        import s3fs

        retries = {"mode": "adaptive", "max_attempts": 8}
        return s3fs.S3FileSystem(
            anon=self.is_unsigned, s3_additional_kwargs=self.encryption, config_kwargs={"retries": retries},
            use_listings_cache=False, skip_instance_cache=True,
        )  # fmt: skip

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.name(key)}

    def passes(self, error: BaseException) -> bool:
        return _passes(error)

    def in_one_line(self, error: BaseException) -> StoreError:
        return self.no_bucket() if _says_no_bucket(error) else super().in_one_line(error)

    def hint(self, error: BaseException | None) -> str:
        is_answer = isinstance(error, (ClientError, exceptions.FlexibleChecksumError))  # others may name the key
        if is_answer and any(word in str(error).lower() for word in CHECKSUM_WORDS):
            return CHECKSUM_HINT
        hint = "; check endpoint and credentials (AWS_*)"
        if isinstance(error, exceptions.NoCredentialsError):
            return f"{hint}, or set {UNSIGNED_BUCKETS}={self.bucket} to read a public bucket without credentials"
        if not isinstance(error, ClientError) or _code(error) not in NO_ACCESS:
            return hint
        if self.is_unsigned:
            return f"; the request was not signed, because {UNSIGNED_BUCKETS} names the bucket"
        if error.operation_name == "PutObject" and not self.encryption:
            return f"{hint}; a bucket that demands encryption needs DGN_S3_ENCRYPTION"
        if error.operation_name.startswith(("Get", "Head", "List")):
            return f"{hint}; a public bucket of others may need {UNSIGNED_BUCKETS}={self.bucket}"
        return hint

    @patient("create")
    def create(self, key: str, data: bytes) -> None:
        try:
            self._put(key, data, IfNoneMatch="*")
        except ClientError as error:
            if _says_key_exists(error):
                raise KeyExists(key) from error
            raise

    @patient("write")
    def write(self, key: str, data: bytes) -> None:
        self._put(key, data)

    def _put(self, key: str, data: bytes, **more: str) -> None:
        self.client.put_object(**self._place(key), Body=data, ContentType=media_type(key), **self.encryption, **more)

    @patient("read")
    def read(self, key: str) -> bytes:
        return self._get(key)

    def _span(self, key: str, start: int, stop: int) -> bytes:
        return self._get(key, Range=f"bytes={start}-{stop - 1}")

    def is_past_end(self, error: BaseException) -> bool:
        return isinstance(error, ClientError) and _code(error) == "InvalidRange"

    @patient("read")
    def read_end(self, key: str, num_bytes: int) -> tuple[bytes, int]:
        try:
            answer = self._answer(key, Range=f"bytes=-{num_bytes}")
        except ClientError as error:
            if not self.is_past_end(error):  # an empty object has no last byte
                raise
            return b"", 0
        data = answer["Body"].read()
        whole = answer.get("ContentRange", "").rpartition("/")[2]
        return data, int(whole) if whole else len(data)

    def _get(self, key: str, **more: str) -> bytes:
        return self._answer(key, **more)["Body"].read()  # botocore checks its length

    def _answer(self, key: str, **more: str) -> dict[str, Any]:
        try:
            return self.client.get_object(**self._place(key), **more)
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

    @patient("list")
    def _page(self, prefix: str, token: str | None) -> Page:
        following = {"ContinuationToken": token} if token else {}
        page = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.name(prefix), **following)
        items = [(item["Key"], item["LastModified"].timestamp()) for item in page.get("Contents", ())]
        return items, page["NextContinuationToken"] if page.get("IsTruncated") else None

    @patient("delete")
    def delete(self, key: str) -> None:
        self.client.delete_object(**self._place(key))

    @patient("check")
    def _find_bucket(self, _: str) -> None:
        try:
            self.client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            if _says_not_found(error):
                raise self.no_bucket() from error
            raise

    def remark(self) -> str:
        """Whether what is deleted from the bucket is gone."""
        try:
            status = self.impatient()._versioning("")
        except StoreError:
            return "whether the bucket keeps versions is unknown: no right to see it (s3:GetBucketVersioning)"
        return VERSIONING[status]

    @patient("check")
    def _versioning(self, _: str) -> str | None:
        return self.client.get_bucket_versioning(Bucket=self.bucket).get("Status")
