"""verified.json: which shards an unfinished `dgn verify` has found intact, so that the next one continues.

It is written every few seconds and at an interruption, and deleted when all shards were checked. A shard that was
rendered again since is checked again, because the file names its committed file by its sha256.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from dgn.errors import StoreError
from dgn.runs.layout import VERIFIED_FILE
from dgn.runs.run import Run

log = logging.getLogger("dgn")

WRITE_EVERY_S = 10.0


@dataclass(frozen=True)
class Verified:
    """The content of verified.json.

    Args:
        shards: the sha256 of each intact shard's committed file.
    """

    run_id: str
    begun_at: str
    shards: dict[int, str] = field(default_factory=dict)
    version: Literal[1] = 1


class Notes:
    """Keeps verified.json while its block runs."""

    def __init__(self, run: Run, run_id: str):
        self.run = run
        self.store = run.store.impatient()
        self.verified, self._is_there = self._read(run_id)
        self._is_kept = True
        self._written_at = time.monotonic()

    def _read(self, run_id: str) -> tuple[Verified, bool]:
        """What an interrupted verify has left, and whether it left anything."""
        new = Verified(run_id, datetime.now(UTC).isoformat(timespec="seconds"))
        try:
            found = TypeAdapter(Verified).validate_json(self.run.store.read(VERIFIED_FILE))
        except FileNotFoundError:
            return new, False
        except ValidationError:
            log.warning("%s/%s is not what was written: all shards are checked", self.run.store.url, VERIFIED_FILE)
            return new, True
        return (found if found.run_id == run_id else new), True

    def add(self, shard: int, digest: str) -> None:
        """Notes an intact shard."""
        self.verified.shards[shard] = digest
        if time.monotonic() - self._written_at > WRITE_EVERY_S:
            self._write()

    def _write(self) -> None:
        if not self._is_kept or not self.verified.shards:
            return
        try:
            self.store.write(VERIFIED_FILE, json.dumps(asdict(self.verified)).encode())
            self._is_there = True
        except StoreError as error:  # whoever may only read can still verify
            self._is_kept = False
            log.warning("what was checked is not noted, so an interrupted dgn verify begins again: %s", error)
        self._written_at = time.monotonic()

    def __enter__(self) -> Notes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self._write()
        elif self._is_there:
            self._delete()

    def _delete(self) -> None:
        try:
            self.store.delete(VERIFIED_FILE)
        except StoreError as error:
            log.warning("delete %s, or the next dgn verify continues this one: %s", VERIFIED_FILE, error)
