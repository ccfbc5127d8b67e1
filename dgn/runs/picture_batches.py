"""A run's pictures in batches, read while the previous batch is in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from torch import Tensor

from dgn.errors import DgnError, RunDamaged
from dgn.pictures.scoring import read_pictures
from dgn.runs.run import NUM_READERS, VERIFY, Run

COLUMNS = ("target_id", "attempt", "file_name", "sha256")


class PictureBatch(NamedTuple):
    """Some rows of a shard. `pictures`: those of the rows that have one."""

    shard: int
    rows: list[dict[str, Any]]
    is_last: bool
    pictures: list[Future[Tensor]]


def read_ahead(run: Run, shards: Sequence[int], size_px: int, batch_size: int) -> Iterator[PictureBatch]:
    """Every row of the shards, with COLUMNS."""
    ahead: deque[PictureBatch] = deque()
    with ThreadPoolExecutor(NUM_READERS) as readers:
        for shard, table in zip(shards, run.tables(shards, list(COLUMNS)), strict=True):
            rows = table.to_pylist()
            for at in range(0, len(rows), batch_size):
                batch = rows[at : at + batch_size]
                with_picture = [row for row in batch if row["file_name"] is not None]
                waiting = [readers.submit(read_picture, run, row, size_px) for row in with_picture]
                ahead.append(PictureBatch(shard, batch, at + batch_size >= len(rows), waiting))
                if len(ahead) > 1:
                    yield ahead.popleft()
        yield from ahead


def read_picture(run: Run, row: dict[str, Any], size_px: int) -> Tensor:
    """A row's picture, (1, 3, H, W) uint8. Raises: RunDamaged."""
    png = run.picture(row["file_name"], row["sha256"])
    try:
        return read_pictures([png], size_px)
    except DgnError as error:
        raise RunDamaged(f"{run.store.url}/{row['file_name']}: {error}", VERIFY) from error
