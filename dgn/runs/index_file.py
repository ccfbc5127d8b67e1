"""index/current.json: which parts the index of a run consists of.

Written last and in one step, so that nobody sees half an index.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from dgn.errors import RunDamaged, StoreError
from dgn.runs.judgements import Judged
from dgn.runs.layout import INDEX_FILE
from dgn.runs.run import Run
from dgn.runs.shards import Ranges, in_ranges
from dgn.runs.validation import first_problem
from dgn.text import NOT_JSON

VERSION = 1
REBUILD = "dgn index --rebuild makes it again"  # advice that ends a message


@dataclass(frozen=True)
class Group:
    """The rows of one layer and mode in a part."""

    layer: str
    mode: str
    num_rows: int
    first_shard: int  # shards are numbered in order of depth, so this gives the layer's depth


@dataclass(frozen=True)
class Part:
    """Rows of some shards."""

    id: Annotated[str, Field(pattern=r"^[0-9TZ]+-[0-9a-f]{8}$")]
    num_rows: int
    rows_bytes: int
    footer_bytes: int  # the end of rows.parquet, which a reader fetches first
    thumbs_bytes: int
    shards: Ranges
    groups: list[Group]
    judged: list[Judged] = field(default_factory=list)

    @property
    def rows_key(self) -> str:
        return f"index/{self.id}/rows.parquet"

    @property
    def thumbs_key(self) -> str:
        return f"index/{self.id}/thumbs.parquet"

    @property
    def num_shards(self) -> int:
        return sum(stop - start for start, stop in self.shards)

    def shard_numbers(self) -> Iterable[int]:
        return in_ranges(self.shards)


@dataclass(frozen=True)
class Index:
    """The content of current.json."""

    version: int
    run_id: str
    created_at: str
    settings: dict[str, Any]  # the run's preset and fingerprint
    num_shards: int  # of the run, indexed or not
    num_targets: int
    num_rows: int
    files: list[str]  # the parts' rows.parquet, for programs that only read those
    parts: list[Part] = field(default_factory=list)
    # Parts and judgements (`<part>/<name>`) that were replaced within the last day, and when, in seconds since 1970.
    former: dict[str, float] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """The parts and judgements that the index consists of, named as in `former`."""
        return {part.id for part in self.parts} | {
            f"{part.id}/{one.name}" for part in self.parts for one in part.judged
        }

    @property
    def is_whole(self) -> bool:
        return sum(part.num_shards for part in self.parts) == self.num_shards


def read_index(run: Run) -> Index | None:
    """The index as it is now, or None before the first. Raises: StoreError if it cannot be used."""
    data = read_current(run)
    return None if data is None else parse_index(run, data)


def read_current(run: Run) -> bytes | None:
    """The bytes of current.json, or None if it does not exist."""
    try:
        return run.store.read(INDEX_FILE)
    except FileNotFoundError:
        return None


def parse_index(run: Run, data: bytes) -> Index:
    """Raises: StoreError for another version, RunDamaged for anything else than an index."""
    where = f"{run.store.url}/{INDEX_FILE}"
    try:
        content = json.loads(data)
        version = content.get("version") if isinstance(content, dict) else None
        if version != VERSION:
            raise StoreError(f"{where} has version {version}, expected {VERSION}: {REBUILD}")
        return TypeAdapter(Index).validate_python(content)
    except ValidationError as error:
        raise RunDamaged(f"{where} is not what was written: {first_problem(error)}", REBUILD) from error
    except NOT_JSON as error:
        raise RunDamaged(f"{where} is not JSON", REBUILD) from error
