"""Judging a run: its pictures are shown to two networks, whose opinions become rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from dgn.errors import DgnError, RunDamaged
from dgn.networks.frozen import FrozenNetwork
from dgn.pictures.scoring import read_pictures
from dgn.pictures.second_opinion import Opinion, opinions
from dgn.runs.plan import Plan
from dgn.runs.run import NUM_READERS, VERIFY, Run
from dgn.targets import Target

COLUMNS = ["target_id", "attempt", "file_name", "sha256"]


def judge_shards(
    run: Run, shards: Sequence[int], plan: Plan, own: FrozenNetwork, judge: FrozenNetwork
) -> Iterator[tuple[int, list[dict[str, Any]] | RunDamaged]]:
    """Each shard with its judgements, one row for every row of it, or with what is wrong with it."""
    rows: list[dict[str, Any]] = []
    damage: RunDamaged | None = None
    for shard, batch, is_last, waiting in _read_ahead(run, shards, own):
        try:
            pictures = [future.result() for future in waiting]
            targets = _targets(plan, shard, batch)
        except RunDamaged as error:
            damage = damage or error
        else:
            has_picture = [row["file_name"] is not None for row in batch]
            wanted = [target for target, has in zip(targets, has_picture, strict=True) if has]
            found = iter(opinions(torch.cat(pictures), wanted, own, judge) if pictures else [])
            for row, has in zip(batch, has_picture, strict=True):
                values = _values(next(found)) if has else {}
                rows.append({"target_id": row["target_id"], "shard": shard, "attempt": row["attempt"], **values})
        if is_last:
            yield shard, damage or rows
            rows, damage = [], None


Batch = tuple[int, list[dict[str, Any]], bool, list[Future[Tensor]]]  # shard, rows, whether the last, their pictures


def _read_ahead(run: Run, shards: Sequence[int], own: FrozenNetwork) -> Iterator[Batch]:
    """Batches of rows with their pictures, which are read while the previous batch is judged."""
    ahead: deque[Batch] = deque()
    batch_size = own.engine.scoring_batch_size
    with ThreadPoolExecutor(NUM_READERS) as readers:
        for shard, table in zip(shards, run.tables(shards, COLUMNS), strict=True):
            rows = table.to_pylist()
            for at in range(0, len(rows), batch_size):
                batch = rows[at : at + batch_size]
                waiting = [
                    readers.submit(read_picture, run, row, own.size_px) for row in batch if row["file_name"] is not None
                ]
                ahead.append((shard, batch, at + batch_size >= len(rows), waiting))
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


def _targets(plan: Plan, shard: int, rows: list[dict[str, Any]]) -> list[Target]:
    planned = {target.target_id: target for target in plan.shard(shard).targets}
    if strays := [row["target_id"] for row in rows if row["target_id"] not in planned]:
        raise RunDamaged(f"{strays[0]} does not belong to shard {shard:06d}", VERIFY)
    return [planned[row["target_id"]] for row in rows]


def _values(opinion: Opinion) -> dict[str, Any]:
    """The columns of an opinion."""
    values: dict[str, Any] = {}
    if opinion.by_judge is not None:
        top = opinion.by_judge.top5[0]
        values |= {"judge_rank": opinion.by_judge.rank, "judge_probability": opinion.by_judge.probability}
        values |= {"judge_top_unit": top.unit, "judge_top_label": top.label}
    for name, scores in opinion.after.items():
        values |= {f"{name}_rank": scores.rank, f"{name}_activation": scores.activation}
    return values
