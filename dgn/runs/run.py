"""A run in a store, and its commit protocol.

A shard is whole where `metadata/<shard>.parquet` exists. That file is created once, in one step, after the shard's
pictures. Whoever dies before that has rendered in vain; whoever comes second loses and deletes its pictures. So nothing
is lost and nothing is there twice, whatever dies. `layout.py` lists all files.
"""

from __future__ import annotations

import itertools
import json
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from dgn.errors import DgnError, PlanMismatch, RunDamaged, StoreError, Truncated
from dgn.networks.layers import Layers
from dgn.runs import packed, schema
from dgn.runs.config import RunConfig
from dgn.runs.info import EXAMPLES_VERSION, Extension, RunInfo, differences
from dgn.runs.layout import RUN_FILE, extension_key, failure_key, metadata_key, new_run_id, sha256
from dgn.runs.shards import MAX_SHARDS, Committed
from dgn.runs.stores import EndFile, KeyExists, Store, open_store
from dgn.runs.validation import first_problem
from dgn.text import A_BUCKET, NOT_JSON

VERIFY = "dgn verify lists everything that is wrong"  # advice that ends a message
# Differences between fingerprints that say nothing as hashes.
_DIFFERING = {
    "decoder_sha256": "its decoder or generator is not the one that it was started with",
    "labels_sha256": "its labels are not those that it was started with",
    "targets_sha256": "its targets, seeds or shard size differ",
}
# Of a shard's file. 32 rows with their thumbnails take less, so one request reads them, and few packed pictures.
END_BYTES = 1 << 18
NUM_READERS = 10  # files that are read at a time: as many connections as the clients of S3 and Azure keep
Result = TypeVar("Result")


class Run:
    """A run in a store."""

    holds_examples = False  # or another job's results, see `examples.py`

    def __init__(self, store: Store):
        self.store = store

    @classmethod
    def at(cls, url: str) -> Run:
        """The run at a folder or in a bucket. Raises: StoreError if the folder or bucket does not exist."""
        store = open_store(url)
        store.check(must_write=False)
        return cls(store)

    def info(self) -> RunInfo:
        """Raises: StoreError if there is no run, or one of another schema version."""
        try:
            content = json.loads(self.store.read(RUN_FILE))
        except FileNotFoundError as error:
            raise StoreError(f"no run at {self.store.url}: there is no {RUN_FILE}; dgn render starts a run") from error
        except NOT_JSON as error:
            raise StoreError(f"{self.store.url}/{RUN_FILE} is not JSON: this is not a run of dgn") from error
        identity = content.get("fingerprint") if isinstance(content, dict) else None
        if isinstance(identity, dict) and EXAMPLES_VERSION in identity and not self.holds_examples:
            raise StoreError(f"{self.store.url} holds the examples of a run: give the run, the folder above")
        version = identity.get("schema_version") if isinstance(identity, dict) else None
        if version != schema.VERSION:
            raise StoreError(
                f"{self.store.url} has schema version {version}, this dgn reads {schema.VERSION}: "
                "use the dgn that wrote it"
            )
        try:
            info = TypeAdapter(RunInfo).validate_python(content)
        except ValidationError as error:
            raise StoreError(f"{self.store.url}/{RUN_FILE} is not what was written: {first_problem(error)}") from error
        for extension in self._extensions():
            info = info.extended(extension)
        if info.num_shards > MAX_SHARDS:
            raise StoreError(f"{self.store.url}/extensions is not what was written: {info.num_shards:,} shards")
        return info

    def begun(self) -> RunInfo | None:
        """Like `info`, but None if there is no run."""
        return self.info() if self.store.exists(RUN_FILE) else None

    def _extensions(self) -> Iterator[Extension]:
        """In order, up to the first number that is free. Raises: StoreError if one is not what was written."""
        for number in itertools.count(1):
            key = extension_key(number)
            try:
                yield TypeAdapter(Extension).validate_json(self.store.read(key))
            except FileNotFoundError:
                return
            except ValidationError as error:
                where = f"{self.store.url}/{key}"
                raise StoreError(f"{where} is not what was written: {first_problem(error)}") from error

    def extend(self, info: RunInfo, extension: Extension) -> RunInfo:
        """Adds targets to the run. Raises: DgnError if somebody else has added some since `info` was read."""
        key = extension_key(len(info.extensions) + 1)
        content = json.dumps(asdict(extension), indent=2, sort_keys=True).encode()
        try:
            self.store.create(key, content)
        except KeyExists as error:
            if self.store.read(key) != content:  # otherwise it was created and the answer was lost
                raise DgnError(f"{self.store.url} got other targets at the same time: repeat the command") from error
        return info.extended(extension)

    def start(
        self,
        fingerprint: dict[str, Any],
        config: RunConfig,
        num_targets: int,
        num_shards: int,
        layers: Layers | None = None,
    ) -> RunInfo:
        """Creates run.json, or continues the run that is there.

        Raises: PlanMismatch if that run has another fingerprint.
        """
        now = datetime.now(UTC)
        info = RunInfo(
            run_id=new_run_id(now),
            created_at=now.isoformat(timespec="seconds"),
            fingerprint=fingerprint,
            config=config.model_dump(mode="json"),
            num_targets=num_targets,
            num_shards=num_shards,
            layers=layers,
        )
        try:
            self.store.create(RUN_FILE, info.as_json().encode())
        except KeyExists:
            there = self.info()
            self.compare(there, fingerprint)
            return there
        return info

    def compare(self, info: RunInfo, fingerprint: dict[str, Any]) -> None:
        """Raises: PlanMismatch if the run that is there has another fingerprint, naming a setting that differs."""
        differing = sorted(differences(info.identity, fingerprint))
        if differing:
            if version := [one for one in differing if one[0] == "method_version"]:
                raise PlanMismatch(
                    f"{self.store.url} was begun by dgn {info.fingerprint['dgn_version']}, which draws other pictures "
                    f"(method {version[0][1]} there, {version[0][2]} here): continue it with that dgn, or give another "
                    "folder"
                )
            name, theirs, ours = differing[0]
            more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
            what = _DIFFERING.get(name, f"{name} is {theirs} there, {ours} here")
            raise PlanMismatch(
                f"{self.store.url} holds a run with other settings: {what}{more}; "
                "give another folder, or the settings that the run was started with (dgn resume reads them from it)"
            )

    def expect(self, run_id: str) -> None:
        """Raises: StoreError if this store does not hold the driver's run: it is a folder of this machine alone."""
        try:
            found = json.loads(self.store.read(RUN_FILE))["run_id"]
        except FileNotFoundError:
            found = "no run"
        if found != run_id:
            raise StoreError(
                f"{self.store.url} on {platform.node()} holds {found} instead of the run {run_id}: all machines must "
                f"share it; give {A_BUCKET}, or a folder of a network file system that all machines mount"
            )

    def committed(self, num_shards: int) -> Committed:
        """The shards that are whole, by one uncached listing."""
        committed = Committed(num_shards)
        for key in self.store.list("metadata"):
            name = PurePosixPath(key)
            shard = int(name.stem) if name.stem.isdecimal() else num_shards
            if shard < num_shards and key == metadata_key(shard):
                committed.add(shard)
        return committed

    def commit(self, shard: int, attempt: str, rows: list[dict[str, Any]], metadata: dict[str, Any]) -> None:
        """Makes a shard whole. Its pictures were written before, or are packed into it if the rows have them.

        If another attempt was first, deletes this one's pictures. A writer whose answer was lost reads its own attempt
        back, and so knows that it was first.
        """
        key = metadata_key(shard)
        is_packed = schema.PNG in rows[0]
        data = packed.serialise(shard, rows, metadata) if is_packed else schema.serialise(rows, metadata)
        try:
            self.store.create(key, data)
        except KeyExists:
            first = schema.parse(self.store.read(key), ["attempt"])["attempt"][0].as_py()
            if first != attempt:
                for row in rows:
                    if row["file_name"]:
                        self.store.delete(row["file_name"])

    def picture(self, file_name: str, digest: str | None) -> bytes:
        """A row's PNG: the very bytes that were committed. `digest`: the row's sha256.

        Raises: RunDamaged if it is missing or has changed, and where the row has no sha256.
        """
        data = self.unchecked_picture(file_name)
        self.check_picture(file_name, data, digest)
        return data

    def check_picture(self, file_name: str, data: bytes, digest: str | None) -> None:
        """Raises: RunDamaged if these are not the bytes that were committed."""
        if sha256(data) != digest:
            where = f"{self.store.url}/{file_name}"
            raise RunDamaged(f"{where} is not its row's picture: its {len(data)} bytes have another sha256", VERIFY)

    def unchecked_picture(self, file_name: str) -> bytes:
        """The bytes of a picture's file or place, whatever they are. Raises: RunDamaged if it is missing."""
        place = packed.place_of(file_name)
        try:
            return self.store.read_range(*place) if place else self.store.read(file_name)
        except FileNotFoundError as error:
            raise RunDamaged(f"{self.store.url}/{file_name} is missing", VERIFY) from error
        except Truncated as error:
            raise RunDamaged(str(error), VERIFY) from error

    def note_failure(self, shard: int, attempt: str, error: str, details: dict[str, Any]) -> None:
        """Writes down a failed attempt, for people."""
        content = {"shard": shard, "attempt": attempt, "error": error, **details}
        content["failed_at"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.store.write(failure_key(shard, attempt), json.dumps(content, indent=2).encode())

    def failures(self) -> Iterator[dict[str, Any]]:
        """The failed attempts. Raises: RunDamaged for a file that is something else."""
        for key in sorted(self.store.list("failures")):
            try:
                failure = json.loads(self.store.read(key))
            except NOT_JSON as error:
                raise RunDamaged(f"{self.store.url}/{key} is not JSON", "delete it") from error
            has_all = isinstance(failure, dict) and failure.keys() >= {"shard", "attempt", "error", "failed_at"}
            if not has_all or not isinstance(failure["shard"], int):
                raise RunDamaged(f"{self.store.url}/{key} does not describe a failed attempt", "delete it")
            yield failure

    def tables(self, shards: Iterable[int], columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Rows of whole shards, one table each, in order; several are read at a time.

        Raises: RunDamaged for a file that is not what was committed.
        """
        yield from read_many(partial(self._table, columns=columns), shards)

    def _table(self, shard: int, columns: list[str] | None) -> pa.Table:
        key = metadata_key(shard)
        with self._expected(key):
            end, num_bytes = self.store.read_end(key, END_BYTES)
        data = end if len(end) == num_bytes else EndFile(self.store, key, end, num_bytes)
        return self.shard_rows(shard, data, columns)

    def shard_file(self, shard: int) -> bytes:
        """The committed file of a shard. Raises: RunDamaged if it is gone."""
        key = metadata_key(shard)
        with self._expected(key):
            return self.store.read(key)

    @contextmanager
    def _expected(self, key: str) -> Iterator[None]:
        """Raises: RunDamaged if a file that was listed is gone."""
        try:
            yield
        except FileNotFoundError as error:
            advice = "dgn resume renders the shard again"
            raise RunDamaged(f"{self.store.url}/{key} disappeared after it was listed", advice) from error

    def shard_rows(self, shard: int, data: bytes | EndFile, columns: list[str] | None = None) -> pa.Table:
        """The rows in the committed file of a shard. Raises: RunDamaged if it is not what was committed."""
        try:
            table = schema.parse(data, columns, may_lack=schema.MAY_LACK)
            schema.check_required(table)
        except StoreError:
            raise  # it could not be read, which says nothing about what it is
        except DgnError as error:
            where = f"{self.store.url}/{metadata_key(shard)}"
            advice = "delete it, and dgn resume renders the shard again"
            raise RunDamaged(f"{where} is not what was committed: {error}", advice) from error
        return table


def read_many(read: Callable[[int], Result], shards: Iterable[int]) -> Iterator[Result]:
    """What `read` returns for each shard, in order; several are read at a time."""
    left = iter(shards)
    with ThreadPoolExecutor(NUM_READERS) as readers:
        under_way = deque(readers.submit(read, shard) for shard in itertools.islice(left, NUM_READERS))
        while under_way:
            found = under_way.popleft().result()
            under_way.extend(readers.submit(read, shard) for shard in itertools.islice(left, 1))
            yield found
