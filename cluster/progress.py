"""How far a run is, for those who watch it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dgn.runs.info import RunInfo


@dataclass
class Progress:
    """How far a run is; passed to the observer after every change."""

    run_id: str
    num_targets: int
    num_shards: int
    pictures_done: int = 0
    shards_done: int = 0
    pictures_before: int = 0  # made by earlier drivers
    statuses: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    workers_ready: int = 0
    quarantined: list[int] = field(default_factory=list)
    started_at: float = field(default_factory=time.monotonic)

    @classmethod
    def of_whole(cls, run: RunInfo) -> Progress:
        """Of a run with nothing left to render."""
        return cls(run.run_id, run.num_targets, run.num_shards, run.num_targets, run.num_shards, run.num_targets)

    @property
    def pictures_per_minute(self) -> float:
        return 60 * (self.pictures_done - self.pictures_before) / max(time.monotonic() - self.started_at, 1e-9)
