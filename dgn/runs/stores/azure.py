"""A run on Azure Blob Storage, and what its errors mean."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, TypeVar

from dgn.errors import StoreError
from dgn.runs.stores.base import KeyExists
from dgn.runs.stores.buckets import PASSING_STATUSES, BucketStore, Page, media_type, needed
from dgn.runs.stores.patience import patient

Result = TypeVar("Result")


class AzureStore(BucketStore):
    """A prefix of a container of Azure Blob Storage. Account and credentials are found by adlfs.

    `client` is of Azure's own library, on which adlfs builds. It sends each request once, with short timeouts, because
    `patient` does the retries, and says what is missing, the blob or its container.
    """

    scheme, noun = "az", "container"

    def __init__(self, url: str):
        super().__init__(url)
        adlfs = needed("adlfs", "azure", self.url)
        from azure.core.exceptions import AzureError
        from azure.storage.blob import BlobServiceClient

        self.foreign = (AzureError,)
        try:
            self.fs = adlfs.AzureBlobFileSystem(use_listings_cache=False, skip_instance_cache=True)
            found = self.fs.service_client
            service = BlobServiceClient(
                found.url, credential=self.fs.sync_credential or found.credential, retry_total=0, connection_timeout=5,
                read_timeout=30,
            )  # fmt: skip
        except ValueError as error:  # adlfs' and Azure's own for settings that are missing or malformed
            raise self.in_one_line(error) from error
        self.client: Any = service.get_container_client(self.bucket)

    def passes(self, error: BaseException) -> bool:
        from azure.core.exceptions import DecodeError, HttpResponseError, ServiceRequestError, ServiceResponseError

        if isinstance(error, HttpResponseError) and not isinstance(error, DecodeError):  # that is half an answer
            return error.status_code in PASSING_STATUSES
        return isinstance(error, (DecodeError, ServiceRequestError, ServiceResponseError))

    def text(self, error: BaseException | None) -> str:
        """Without its further lines: numbers of the request, or every kind of credentials that was looked for."""
        return str(error).partition("\n")[0]

    def in_one_line(self, error: BaseException) -> StoreError:
        return self.no_bucket() if _code(error) == "ContainerNotFound" else super().in_one_line(error)

    def hint(self, error: BaseException | None) -> str:
        return (
            "; check account and credentials (AZURE_STORAGE_CONNECTION_STRING; or AZURE_STORAGE_ACCOUNT_NAME, and "
            "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or az login)"
        )

    @patient("create")
    def create(self, key: str, data: bytes) -> None:
        from azure.core.exceptions import ResourceExistsError, ResourceModifiedError

        try:
            self._put(key, data, overwrite=False)
        except (ResourceExistsError, ResourceModifiedError) as error:
            raise KeyExists(key) from error

    @patient("write")
    def write(self, key: str, data: bytes) -> None:
        self._put(key, data, overwrite=True)

    def _put(self, key: str, data: bytes, overwrite: bool) -> None:
        from azure.storage.blob import ContentSettings

        self.client.upload_blob(
            self.name(key), data, overwrite=overwrite, validate_content=True,
            content_settings=ContentSettings(content_type=media_type(key)),
        )  # fmt: skip

    @patient("read")
    def read(self, key: str) -> bytes:
        return self._get(key)

    def _span(self, key: str, start: int, stop: int) -> bytes:
        return self._get(key, offset=start, length=stop - start)

    def is_past_end(self, error: BaseException) -> bool:
        return getattr(error, "status_code", None) == 416

    @patient("read")
    def read_end(self, key: str, num_bytes: int) -> tuple[bytes, int]:
        """In two requests, because Azure counts ranges from the start alone."""
        whole = self._reach(key, lambda blob: blob.get_blob_properties().size)
        start = max(whole - num_bytes, 0)
        return self._get(key, offset=start, length=whole - start) if whole else b"", whole

    def _get(self, key: str, **span: int) -> bytes:
        return self._reach(key, lambda blob: blob.download_blob(**span).readall())

    def _reach(self, key: str, act: Callable[[Any], Result]) -> Result:
        """What is done with a key's blob. Raises: FileNotFoundError."""
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return act(self.client.get_blob_client(self.name(key)))
        except ResourceNotFoundError as error:
            if _code(error) == "ContainerNotFound":
                raise
            raise FileNotFoundError(errno.ENOENT, "no such key", f"{self.url}/{key}") from error

    @patient("exists")
    def exists(self, key: str) -> bool:
        return self.client.get_blob_client(self.name(key)).exists()

    @patient("list")
    def _page(self, prefix: str, token: str | None) -> Page:
        pages = self.client.list_blobs(name_starts_with=self.name(prefix), include=["metadata"]).by_page(token)
        blobs = list(next(pages, ()))
        # An account with a hierarchical namespace lists folders, too.
        files = [blob for blob in blobs if (blob.metadata or {}).get("hdi_isfolder") != "true"]
        return [(blob.name, blob.last_modified.timestamp()) for blob in files], pages.continuation_token or None

    @patient("delete")
    def delete(self, key: str) -> None:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            self.client.delete_blob(self.name(key))
        except ResourceNotFoundError as error:
            if _code(error) == "ContainerNotFound":
                raise


def _code(error: BaseException) -> Any:
    """Azure's name for what went wrong."""
    return getattr(error, "error_code", None)
