"""Judging a run: its pictures go past two networks, their opinions into files; and what the files say in all."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from cluster.index import Part, open_part, read_groups
from cluster.judgements import DISTORTED, Judged, read_judged
from cluster.plan import Plan
from cluster.query import Rows
from cluster.run import NUM_READERS, Damaged, Run
from dgn import picture
from dgn.discriminator import Discriminator
from dgn.errors import DgnError
from dgn.opinion import Opinion, opinions
from dgn.targets import MODES, Target

BATCH = {"cpu": 16, "cuda": 64}  # pictures per pass, by the device's type
COLUMNS = ["target_id", "attempt", "file_name", "sha256"]
SHARES = {  # of a summary, and of how many each is one
    "judge_first": "num_classes", "judge_top5": "num_classes",
    **{f"{name}_first": "num_pictures" for name in ("saved", *DISTORTED)},
}  # fmt: skip


def judge_shards(
    run: Run, shards: Sequence[int], plan: Plan, own: Discriminator, judge: Discriminator
) -> Iterator[tuple[int, list[dict[str, Any]] | Damaged]]:
    """Each shard's judgements, a row for every row of it, or what is wrong with it."""
    rows: list[dict[str, Any]] = []
    damage: Damaged | None = None
    for shard, batch, is_last, waiting in _read_ahead(run, shards, BATCH[own.device.type]):
        try:
            pictures = [future.result() for future in waiting]
            targets = _targets(plan, shard, batch)
        except Damaged as error:
            damage = damage or error
        else:
            has_picture = [row["file_name"] is not None for row in batch]
            wanted = [target for target, has in zip(targets, has_picture, strict=True) if has]
            found = iter(opinions(torch.cat(pictures), wanted, own, judge) if pictures else [])
            for row, has in zip(batch, has_picture, strict=True):
                figures = _figures(next(found)) if has else {}
                rows.append({"target_id": row["target_id"], "shard": shard, "attempt": row["attempt"], **figures})
        if is_last:
            yield shard, damage or rows
            rows, damage = [], None


Batch = tuple[int, list[dict[str, Any]], bool, list[Future[Tensor]]]  # shard, rows, the shard's last, their pictures


def _read_ahead(run: Run, shards: Sequence[int], batch_size: int) -> Iterator[Batch]:
    """Batches of rows with their pictures, which are read while the batch before is judged."""
    ahead: deque[Batch] = deque()
    with ThreadPoolExecutor(NUM_READERS) as readers:
        for shard, table in zip(shards, run.tables(shards, COLUMNS), strict=True):
            rows = table.to_pylist()
            for at in range(0, len(rows), batch_size):
                batch = rows[at : at + batch_size]
                waiting = [readers.submit(_picture, run, row) for row in batch if row["file_name"] is not None]
                ahead.append((shard, batch, at + batch_size >= len(rows), waiting))
                if len(ahead) > 1:
                    yield ahead.popleft()
        yield from ahead


def _picture(run: Run, row: dict[str, Any]) -> Tensor:
    """(1, 3, 224, 224) uint8."""
    png = run.whole_picture(row["file_name"], row["sha256"])
    try:
        return picture.stacked([png])
    except DgnError as error:
        raise Damaged(f"{row['file_name']}: {error}") from error


def _targets(plan: Plan, shard: int, rows: list[dict[str, Any]]) -> list[Target]:
    planned = {target.target_id: target for target in plan.shard(shard).targets}
    if strays := [row["target_id"] for row in rows if row["target_id"] not in planned]:
        raise Damaged(f"{strays[0]} does not belong to shard {shard:06d}")
    return [planned[row["target_id"]] for row in rows]


def _figures(opinion: Opinion) -> dict[str, Any]:
    """An opinion's columns."""
    figures: dict[str, Any] = {}
    if opinion.by_judge is not None:
        top = opinion.by_judge.top5[0]
        figures |= {"judge_rank": opinion.by_judge.rank, "judge_probability": opinion.by_judge.probability}
        figures |= {"judge_top_unit": top.unit, "judge_top_label": top.label}
    for name, scores in opinion.after.items():
        figures |= {f"{name}_rank": scores.rank, f"{name}_activation": scores.activation}
    return figures


def summaries(run: Run, rows: Rows) -> list[dict[str, Any]]:
    """Of each judge, layer and mode: how many pictures it judged, and the shares of them that it and D put first.

    Shares are in [0, 1]. Of `judge_first` and `judge_top5` they are of targets of classes, None where there are none.
    `saved_first`: by D on the picture as it was saved. Only judgements that are in the index count.
    """
    counts: dict[tuple[str, str, str, str], Counter[str]] = {}
    for part in rows.index.parts if rows.index else ():
        if part.judged:
            file = open_part(run, part)
            own = read_groups(run, part, file, range(file.num_row_groups), ["layer", "mode", "rank"])
        for judged in part.judged:
            for counted in _counted(run, part, judged, own):
                key = (judged.by, judged.weights_sha256, counted.pop("mode"), counted.pop("layer"))
                counts.setdefault(key, Counter()).update({name.removesuffix("_sum"): n for name, n in counted.items()})
    if not counts:
        return []
    depth = {layer: n for n, layer in enumerate(rows.layers())}
    keys = sorted(counts, key=lambda key: (*key[:2], key[2] != MODES[0], depth[key[3]]))
    return [
        {
            "by": by, "by_weights_sha256": digest, "layer": layer, "mode": mode,
            "num_pictures": counts[by, digest, mode, layer]["num_pictures"],
            **_shares(counts[by, digest, mode, layer]),
        }
        for by, digest, mode, layer in keys
    ]  # fmt: skip


def _shares(counts: Counter[str]) -> dict[str, float | None]:
    return {name: counts[name] / counts[of] if counts[of] else None for name, of in SHARES.items()}


def _counted(run: Run, part: Part, judged: Judged, own: pa.Table) -> list[dict[str, Any]]:
    """Sums of a part by layer and mode. `own`: its rows' layer, mode and rank."""
    names = ["judge_rank", *(f"{name}_rank" for name in DISTORTED)]
    found = read_judged(run, part.id, part.num_rows, judged, names)
    is_first = {f"{name.removesuffix('_rank')}_first": pc.equal(found[name], 1) for name in names}
    columns = {
        "num_pictures": pc.is_valid(found[names[1]]), "num_classes": pc.is_valid(found["judge_rank"]),
        "judge_top5": pc.less_equal(found["judge_rank"], 5), "saved_first": pc.equal(own["rank"], 1), **is_first,
    }  # fmt: skip
    sums = {name: pc.fill_null(column, False).cast(pa.int32()) for name, column in columns.items()}
    table = pa.table({"layer": own["layer"], "mode": own["mode"], **sums}).filter(columns["num_pictures"])
    return table.group_by(["layer", "mode"]).aggregate([(name, "sum") for name in sums]).to_pylist()
