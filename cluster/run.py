"""The layout of a run and its commit protocol. A file under `metadata/` is the commit of its shard.

run.json                                  create-once: fingerprint, configuration, counts
images/<shard:06d>/<attempt>/<target>.png
metadata/<shard:06d>.parquet              THE COMMIT: its presence means that the shard is whole
failures/<shard:06d>/<attempt>.json       what went wrong, for people
lease.json                                the driver at work, for the warning about a second one
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Any

import pyarrow as pa
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from cluster import rows as row_files
from cluster.plan import SCHEMA_VERSION, RunConfig
from cluster.storage import KeyExists, Store
from dgn.errors import NOT_JSON, DgnError, PlanMismatch, RunDamaged, StoreError

RUN_FILE = "run.json"
MAX_SHARDS = 10**10  # a bit of memory each; what says more was edited
ID_TIME = "%Y%m%dT%H%M%SZ"
NUM_READERS = 10  # files that are read at a time: as many connections as the S3 client keeps


def dated_id() -> str:
    """Of a file in the index: when it is made, and eight hex digits that no other has."""
    return f"{datetime.now(UTC).strftime(ID_TIME)}-{uuid.uuid4().hex[:8]}"


def made_at(name: str) -> datetime:
    """When what ends in a dated id was made; never, where it does not."""
    try:
        return datetime.strptime(name.rsplit("-", 2)[-2], ID_TIME).replace(tzinfo=UTC)
    except (ValueError, IndexError):
        return datetime.max.replace(tzinfo=UTC)


def new_attempt() -> str:
    """Eight hex digits that no other attempt at a shard has."""
    return uuid.uuid4().hex[:8]


def metadata_key(shard: int) -> str:
    return f"metadata/{shard:06d}.parquet"


def image_key(shard: int, attempt: str, target_id: str) -> str:
    return f"images/{shard:06d}/{attempt}/{target_id}.png"


def _having(*names: str) -> AfterValidator:
    """Makes a dictionary that lacks one of the keys invalid."""

    def check(content: dict[str, Any]) -> dict[str, Any]:
        if missing := [name for name in names if name not in content]:
            raise ValueError(f"lacks {missing[0]}")
        return content

    return AfterValidator(check)


@dataclass(frozen=True)
class RunInfo:
    """run.json: what this run is. Written once, by the first driver."""

    run_id: str
    created_at: str
    fingerprint: Annotated[dict[str, Any], _having("discriminator", "weights_sha256", "targets_sha256")]
    config: Annotated[dict[str, Any], _having("preset")]
    num_targets: int
    num_shards: Annotated[int, Field(ge=0, le=MAX_SHARDS)]

    @property
    def run_config(self) -> RunConfig:
        """Raises: StoreError."""
        try:
            return RunConfig.model_validate(self.config)
        except ValidationError as error:
            raise StoreError(
                f"{RUN_FILE} of run {self.run_id} does not fit this dgn: {first_problem(error)}"
            ) from error


def _in_order(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    ends = [0, *itertools.chain.from_iterable(ranges), MAX_SHARDS]
    if ends != sorted(ends) or any(start == stop for start, stop in ranges):
        raise ValueError("expected ranges of shards in order")
    return ranges


Ranges = Annotated[list[tuple[int, int]], AfterValidator(_in_order)]  # half-open, of shards


def as_ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted numbers as half-open ranges."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))
    return ranges


def in_ranges(ranges: Iterable[tuple[int, int]]) -> Iterator[int]:
    return itertools.chain.from_iterable(range(start, stop) for start, stop in ranges)


class Committed:
    """Which shards are whole, one bit each."""

    def __init__(self, num_shards: int):
        self._bits = bytearray((num_shards + 7) // 8)
        self.num_shards = num_shards
        self.count = 0

    def add(self, shard: int) -> None:
        if shard not in self:
            self._bits[shard // 8] |= 1 << shard % 8
            self.count += 1

    def __contains__(self, shard: int) -> bool:
        return 0 <= shard < self.num_shards and bool(self._bits[shard // 8] >> shard % 8 & 1)

    def missing(self) -> Iterator[int]:
        return (shard for shard in range(self.num_shards) if shard not in self)


class Damaged(Exception):
    """A row or picture that is not as it was committed."""


class Run:
    """A run in a store."""

    def __init__(self, store: Store):
        self.store = store

    def info(self) -> RunInfo:
        """Raises: StoreError where there is no run, or one of another schema version."""
        try:
            content = json.loads(self.store.read(RUN_FILE))
        except FileNotFoundError as error:
            raise StoreError(f"no run at {self.store.url}: it has no {RUN_FILE}; dgn render makes one") from error
        except NOT_JSON as error:
            raise StoreError(f"{self.store.url}/{RUN_FILE} is no JSON: this is not a run of dgn") from error
        fingerprint = content.get("fingerprint") if isinstance(content, dict) else None
        version = fingerprint.get("schema_version") if isinstance(fingerprint, dict) else None
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{self.store.url} has schema version {version}, this dgn reads {SCHEMA_VERSION}: "
                "use the dgn that wrote it"
            )
        try:
            return TypeAdapter(RunInfo).validate_python(content)
        except ValidationError as error:
            raise StoreError(f"{self.store.url}/{RUN_FILE} is not as it was written: {first_problem(error)}") from error

    def start(self, fingerprint: dict[str, Any], config: RunConfig, num_targets: int, num_shards: int) -> RunInfo:
        """Creates run.json, or takes up the run that is there.

        Raises: PlanMismatch where the run has another fingerprint.
        """
        now = datetime.now(UTC)
        info = RunInfo(
            run_id=f"{now:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}",
            created_at=now.isoformat(timespec="seconds"),
            fingerprint=fingerprint,
            config=config.model_dump(mode="json"),
            num_targets=num_targets,
            num_shards=num_shards,
        )
        try:
            self.store.create(RUN_FILE, json.dumps(info.__dict__, indent=2, sort_keys=True).encode())
        except KeyExists:
            return self._take_up(fingerprint)
        return info

    def _take_up(self, fingerprint: dict[str, Any]) -> RunInfo:
        """The run that is there. Raises: PlanMismatch, naming a setting that differs."""
        info = self.info()
        differing = sorted(_differences(info.fingerprint, fingerprint))
        if differing:
            name, theirs, ours = differing[0]
            more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
            raise PlanMismatch(
                f"{self.store.url} holds a run of another configuration: {name} is {theirs} there, {ours} here{more}; "
                "give another folder, or the settings that it was begun with (dgn resume takes them from the run)"
            )
        return info

    def expect(self, run_id: str) -> None:
        """Raises: StoreError where this store holds another run than the driver's, or none: a machine's own folder."""
        try:
            found = json.loads(self.store.read(RUN_FILE))["run_id"]
        except FileNotFoundError:
            found = "no run"
        if found != run_id:
            raise StoreError(
                f"{self.store.url} on {platform.node()} holds {found}, not the run {run_id}: all machines have to "
                "share it; give s3://bucket/prefix, or a folder of a network file system that all machines mount"
            )

    def committed(self, num_shards: int) -> Committed:
        """One uncached listing of the commits."""
        committed = Committed(num_shards)
        for key in self.store.list("metadata"):
            name = PurePosixPath(key)
            shard = int(name.stem) if name.stem.isdecimal() else num_shards
            if shard < num_shards and key == metadata_key(shard):
                committed.add(shard)
        return committed

    def commit(self, shard: int, attempt: str, rows: list[dict[str, Any]], metadata: dict[str, Any]) -> bool:
        """Makes a shard whole, its pictures written before. Returns whether this attempt won.

        A writer whose answer was lost reads its own attempt back and knows that it won; a loser deletes its pictures.
        """
        key = metadata_key(shard)
        try:
            self.store.create(key, row_files.serialise(rows, metadata))
        except KeyExists:
            winner = row_files.parse(self.store.read(key), ["attempt"])["attempt"][0].as_py()
            if winner == attempt:
                return True
            for row in rows:
                if row["file_name"]:
                    self.store.delete(row["file_name"])
            return False
        return True

    def picture(self, file_name: str) -> bytes:
        """A row's PNG. Raises: StoreError where it is missing."""
        try:
            return self.store.read(file_name)
        except FileNotFoundError as error:
            raise RunDamaged(f"{self.store.url}/{file_name} is missing: dgn verify tells what else is") from error

    def whole_picture(self, file_name: str, digest: str) -> bytes:
        """A row's PNG, the very bytes that were committed. Raises: Damaged, StoreError."""
        try:
            data = self.store.read(file_name)
        except FileNotFoundError as error:
            raise Damaged(f"{file_name} is missing") from error
        if sha256(data) != digest:
            raise Damaged(f"{file_name} has {len(data)} bytes that are not those of its row (sha256 differs)")
        return data

    def note_failure(self, shard: int, attempt: str, error: str, details: dict[str, Any]) -> None:
        content = {"shard": shard, "attempt": attempt, "error": error, **details}
        content["failed_at"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.store.write(f"failures/{shard:06d}/{attempt}.json", json.dumps(content, indent=2).encode())

    def failures(self) -> Iterator[dict[str, Any]]:
        for key in sorted(self.store.list("failures")):
            try:
                failure = json.loads(self.store.read(key))
            except NOT_JSON as error:
                raise RunDamaged(f"{self.store.url}/{key} is no JSON: delete it") from error
            has_all = isinstance(failure, dict) and failure.keys() >= {"shard", "attempt", "error", "failed_at"}
            if not has_all or not isinstance(failure["shard"], int):
                raise RunDamaged(f"{self.store.url}/{key} is no note of a failed attempt: delete it")
            yield failure

    def tables(self, committed: Iterable[int], columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Rows of whole shards, one table each, in order; several are read at a time.

        Raises: StoreError for a file that is not as it was committed.
        """
        yield from read_many(partial(self._table, columns=columns), committed)

    def _table(self, shard: int, columns: list[str] | None) -> pa.Table:
        key = metadata_key(shard)
        try:
            data = self.store.read(key)
        except FileNotFoundError as error:
            raise RunDamaged(f"{self.store.url}/{key} was listed and is gone: dgn resume renders it again") from error
        try:
            table = row_files.parse(data, columns)
            row_files.check_filled(table)
        except DgnError as error:
            advice = "delete it, and dgn resume renders the shard again"
            raise RunDamaged(f"{self.store.url}/{key} is not as it was committed: {error}; {advice}") from error
        return table


def read_many(read: Callable[[int], pa.Table], shards: Iterable[int]) -> Iterator[pa.Table]:
    """What `read` gives for each shard, in order; several are read at a time."""
    left = iter(shards)
    with ThreadPoolExecutor(NUM_READERS) as readers:
        while some := list(itertools.islice(left, NUM_READERS)):
            yield from readers.map(read, some)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _differences(theirs: Any, ours: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """(setting, their value, our value) for all leaves in which two fingerprints differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in theirs.keys() | ours.keys():
            yield from _differences(theirs.get(key), ours.get(key), f"{name}.{key}" if name else key)
    elif theirs != ours:
        yield name, _short(theirs), _short(ours)


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) > 24 else text
