"""Two runs, target by target: which pictures changed most, and what each network says of the other's pictures."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

import dgn
from dgn.errors import DgnError, RunDamaged
from dgn.networks.frozen import FrozenNetwork
from dgn.pictures.likeness import features
from dgn.pictures.scoring import score
from dgn.runs.picture_batches import read_picture
from dgn.runs.plan import Plan
from dgn.runs.query import Rows
from dgn.runs.run import VERIFY, Run
from dgn.runs.schema import Column
from dgn.targets import Target

VERSION = 1
NEEDED = (
    "target_id", "shard", "layer", "unit", "label", "mode", "seed", "activation", "rank", "file_name", "sha256",
)  # fmt: skip
AT_A_TIME = 16
_EACH = (
    Column("target_id", pa.string(), "Target", "of the row in run {}"),
    Column("activation", pa.float32(), "Activation", "in run {}, by its own network"),
    Column("rank", pa.int32(), "Rank", "in run {}, by its own network"),
    Column("rank_by_other", pa.int32(), "Rank by the other", "of run {}'s picture, by the other run's network"),
    Column("file_name", pa.string(), "File", "path of run {}'s PNG, relative to that run"),
)
COLUMNS = (
    Column("distance", pa.float32(), "Distance",
           "between the two pictures: 1 minus the cosine of their features in a second network; 0 for the same, about "
           "1 for unrelated ones", is_required=True),
    Column("layer", pa.string(), "Layer", "in run a", is_required=True),
    Column("unit", pa.int32(), "Unit", "in run a; null for groups and directions"),
    Column("label", pa.string(), "Label", "of a class; otherwise null"),
    Column("mode", pa.string(), "Mode", "the same in both", is_required=True),
    Column("seed", pa.int64(), "Seed", "the same in both", is_required=True),
    *(
        Column(f"{column.name}_{run}", column.type, f"{column.title} in {run}", column.meaning.format(run))
        for run in ("a", "b") for column in _EACH
    ),
)  # fmt: skip
SCHEMA = pa.schema([(column.name, column.type) for column in COLUMNS])


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two runs, with what made it."""

    run: Run
    plan: Plan
    network: FrozenNetwork
    rows: dict[tuple[Any, ...], dict[str, Any]]  # with a picture, by what they are joined by

    @classmethod
    def of(cls, run: Run, plan: Plan, network: FrozenNetwork) -> Side:
        rows = [row for row in Rows(run).select(columns=NEEDED).to_pylist() if row["file_name"] is not None]
        class_layer, labels = network.layers.class_layer, Counter(network.layers.labels)
        return cls(run, plan, network, {_key(row, class_layer, labels): row for row in rows})

    def target(self, row: dict[str, Any]) -> Target:
        """Raises: RunDamaged if the row does not belong to its shard."""
        for target in self.plan.shard(row["shard"]).targets:
            if target.target_id == row["target_id"]:
                return target
        raise RunDamaged(f"{row['target_id']} does not belong to shard {row['shard']:06d}", VERIFY)


def _key(row: dict[str, Any], class_layer: str | None, labels: Counter[str]) -> tuple[Any, ...]:
    """A class is joined by its label, if no other class has the same: networks may number their classes otherwise.
    Everything else is joined by layer and unit, or by the units of a group."""
    subject = row["target_id"].rsplit("-", 2)[0]
    is_named = row["layer"] == class_layer and row["unit"] is not None and labels[row["label"]] == 1
    return ("class", row["label"]) if is_named else ("units", subject), row["mode"], row["seed"]


def compare(
    a: Side, b: Side, judge: FrozenNetwork, observe: Callable[[int], None] = lambda count: None
) -> Iterator[dict[str, Any]]:
    """Rows of SCHEMA, in no order.

    Args:
        observe: called with the number of pairs after each batch.

    Raises: DgnError if the runs have nothing in common; RunDamaged for a picture that cannot be read.
    """
    common = [key for key in a.rows if key in b.rows]
    if not common:
        raise DgnError(
            f"{a.run.store.url} and {b.run.store.url} have no target in common: expected the same layers and units, or "
            "classes of the same labels, in the same mode with the same seed"
        )
    for at in range(0, len(common), AT_A_TIME):
        some = common[at : at + AT_A_TIME]
        rows = {side: [side.rows[key] for key in some] for side in (a, b)}
        pictures = {
            side: torch.cat([read_picture(side.run, row, side.network.size_px) for row in rows[side]])
            for side in (a, b)
        }
        distances = _distances(features(pictures[a], judge), features(pictures[b], judge))
        ranks = {side: _ranks(pictures[side], rows[other], other) for side, other in ((a, b), (b, a))}
        for n, distance in enumerate(distances):
            first = rows[a][n]
            pair = {name: first[name] for name in ("layer", "unit", "label", "mode", "seed")} | {"distance": distance}
            for name, side in (("a", a), ("b", b)):
                row = rows[side][n]
                pair |= {f"{column}_{name}": row[column] for column in ("target_id", "activation", "rank", "file_name")}
                pair[f"rank_by_other_{name}"] = ranks[side][n]
            yield pair
        observe(len(some))


def _distances(one_NC: NDArray[np.float64], other_NC: NDArray[np.float64]) -> list[float]:
    lengths = np.linalg.norm(one_NC, axis=1) * np.linalg.norm(other_NC, axis=1)
    return (1 - (one_NC * other_NC).sum(1) / np.maximum(lengths, 1e-12)).clip(0, 2).tolist()


def _ranks(pictures_N3HW: Tensor, rows: Sequence[dict[str, Any]], by: Side) -> list[int | None]:
    """Ranks of pictures by a network, each for the target of its row there."""
    return [scores.rank for scores in score(pictures_N3HW, [by.target(row) for row in rows], by.network)]


def as_table(pairs: Sequence[dict[str, Any]]) -> pa.Table:
    """Sorted: the most changed first."""
    ordered = sorted(pairs, key=lambda pair: (-pair["distance"], pair["target_id_a"]))
    return pa.Table.from_pylist(ordered, SCHEMA)


def serialise(table: pa.Table, about: dict[str, Any]) -> bytes:
    """The bytes of a Parquet file; `about` becomes its metadata, as JSON."""
    described = {"schema_version": VERSION, "dgn_version": dgn.__version__, **about}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"dgn": json.dumps(described)}), buffer, compression="snappy")
    return buffer.getvalue()
