"""An audit of a run's classes: what each picture contains beside its class.

A second network says which classes it sees in the picture. Photographs of the class say which units of earlier layers
fire on the picture and rarely on them, and how similar its path through the layers is to theirs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgn.errors import DgnError
from dgn.method.memory import in_batches
from dgn.networks.frozen import FrozenNetwork
from dgn.pictures.paths import Paths, Reference
from dgn.pictures.scoring import probabilities
from dgn.runs.conditions import condition
from dgn.runs.labelled import LabelledPhotographs, Looked
from dgn.runs.picture_batches import read_picture
from dgn.runs.query import Rows
from dgn.runs.run import Run
from dgn.runs.schema import Column

VERSION = 1
OF_ROWS = ("target_id", "unit", "label", "mode", "seed", "activation", "rank", "probability", "file_name")
NUM_SEEN = 5
_SEEN = pa.list_(pa.struct([("unit", pa.int32()), ("label", pa.string()), ("probability", pa.float32())]))
_PATH = pa.list_(pa.struct([
    ("layer", pa.string()), ("picture", pa.float32()), ("same", pa.float32()), ("other", pa.float32())
]))  # fmt: skip
_UNITS = pa.list_(pa.struct([
    ("layer", pa.string()), ("unit", pa.int32()), ("activation", pa.float32()), ("share", pa.float32()),
    ("share_of_others", pa.float32()), ("deviations", pa.float32()), ("photographs", pa.list_(pa.string())),
]))  # fmt: skip
COLUMNS = (
    Column("beside", pa.float32(), "Beside the class",
           "1 minus `judge_probability`: how surely the second network sees something else; the table's order, highest "
           "first", is_required=True),
    Column("target_id", pa.string(), "Target", "of the picture's row in the run", is_required=True),
    Column("unit", pa.int32(), "Unit", "number of the class", is_required=True),
    Column("label", pa.string(), "Label", "of the class; null if the network has no labels"),
    Column("mode", pa.string(), "Mode", "as in the rows", is_required=True),
    Column("seed", pa.int64(), "Seed", "as in the rows", is_required=True),
    Column("activation", pa.float32(), "Activation", "as in the rows"),
    Column("rank", pa.int32(), "Rank", "as in the rows, by the run's network"),
    Column("probability", pa.float32(), "Probability", "as in the rows, by the run's network"),
    Column("file_name", pa.string(), "File", "path of the PNG, relative to the run", is_required=True),
    Column("judge_rank", pa.int32(), "Judge's rank", "of the class, by the second network", is_required=True),
    Column("judge_probability", pa.float32(), "Judge's probability", "of the class, by the second network",
           is_required=True),
    Column("seen", _SEEN, "Seen", f"the {NUM_SEEN} classes beside its own to which the second network gives the "
           "highest probabilities: unit, label (null if the network has no labels), probability", is_required=True),
    Column("num_photographs", pa.int32(), "Photographs", "of the class, with which the picture was compared; 0 if "
           "there were too few, and then all columns below are null", is_required=True),
    Column("similarity", pa.float32(), "Similarity of paths",
           "1 if the picture's path through the network is as similar to that of photographs of the class as theirs "
           "are to each other; 0 if only as similar as that of photographs of other classes; null if photographs of "
           "the class are not more similar to each other"),
    Column("path", _PATH, "Path",
           "for each layer, in order of depth, the mean rank correlation of the units' activations: of the picture "
           "with photographs of the class, of these with each other (`same`), and of these with photographs of other "
           "classes (`other`)"),
    Column("unusual", pa.float32(), "Unusual units",
           "share of all units that at most 5 % of the class's photographs excite as much as the picture does"),
    Column("usual", pa.float32(), "Unusual units of photographs",
           "at most this share is to be expected of another photograph of the class: it follows from their number"),
    Column("units", _UNITS, "Units",
           "at most six of these units, those farthest above their mean on photographs of the class first: layer, "
           "unit, activation, share of the class's photographs, and of others, that excite it at least as much, how "
           "many standard deviations it is above, photographs of other classes that excite it most"),
)  # fmt: skip
SCHEMA = pa.schema([(column.name, column.type) for column in COLUMNS])


@dataclass(eq=False)
class Audit:
    """What an audit reads.

    Args:
        judge: the second network; its classes are those of `own`.
        photographs: None if there are none to compare with.
    """

    run: Run
    own: FrozenNetwork
    judge: FrozenNetwork
    photographs: LabelledPhotographs | None

    def __post_init__(self) -> None:
        """Raises: DgnError if no class of the run can be audited."""
        self.rows = _rows_of_classes(self.run, self.own)
        if self.judge.layers.output == "none":
            raise DgnError(f"{self.judge.network.name} gives no probabilities of classes: name another with --by")
        if self.photographs is None:
            return
        if not any(row["unit"] in self.photographs.by_class for row in self.rows):
            raise DgnError(
                f"{self.photographs.store.url} has no photographs of the run's classes: expected folders named as they "
                f"are, such as {self.rows[0]['label'] or self.rows[0]['unit']}"
            )

    @cached_property
    def every(self) -> Looked | None:
        """Photographs of all classes, which those of each class are set against."""
        return self.photographs.of_all() if self.photographs else None

    def pictures(self, observe: Callable[[int], None] = lambda count: None) -> Iterator[dict[str, Any]]:
        """Rows of SCHEMA, in order of classes.

        Args:
            observe: called with the number of pictures after each class.

        Raises: RunDamaged for a picture that cannot be read.
        """
        for class_, group in itertools.groupby(self.rows, key=lambda row: row["unit"]):
            rows = list(group)
            images = torch.cat([read_picture(self.run, row, self.own.size_px) for row in rows]) / 255
            found = self._second_opinions(images, class_)
            compared = self._compared(images, class_)
            for row, seen, comparison in zip(rows, found, compared, strict=True):
                yield {name: row[name] for name in OF_ROWS} | seen | comparison
            observe(len(rows))

    def _second_opinions(self, images_N3HW: Tensor, class_: int) -> list[dict[str, Any]]:
        """What the judge sees in pictures of a class."""
        _, values = self.judge.scores(images_N3HW, self.judge.layers.classes())
        assert values is not None
        found_NC = probabilities(values.cpu().double().numpy(), self.judge.layers)
        assert found_NC is not None
        return [self._opinion(found_C, class_) for found_C in found_NC]

    def _opinion(self, found_C: NDArray[np.float64], class_: int) -> dict[str, Any]:
        labels = self.own.layers.labels
        others = [unit for unit in np.argsort(-found_C, kind="stable").tolist() if unit != class_][:NUM_SEEN]
        return {
            "beside": 1 - found_C[class_], "judge_probability": found_C[class_],
            "judge_rank": 1 + int((found_C > found_C[class_]).sum()),
            "seen": [
                {"unit": unit, "label": labels[unit] if labels else None, "probability": found_C[unit]}
                for unit in others
            ],
        }  # fmt: skip

    def _compared(self, images_N3HW: Tensor, class_: int) -> list[dict[str, Any]]:
        """Pictures of a class beside photographs of it."""
        own = self.photographs.of_class(class_) if self.photographs else None
        others = self.every.outside(class_) if self.every else None
        if self.photographs is None or own is None or others is None:
            return [{"num_photographs": 0}] * len(images_N3HW)
        reference = Reference(own.paths, others.paths)
        layers, engine = self.photographs.layers, self.own.engine

        def paths(images: Sequence[Tensor]) -> Paths:
            return Paths.of(torch.stack(list(images)), self.own, layers)

        pictures = Paths.joined(list(in_batches(list(images_N3HW), engine.scoring_batch_size, paths, engine)))
        return [
            {"num_photographs": len(own.names), **_comparison(pictures.take([n]), reference, others.names)}
            for n in range(len(images_N3HW))
        ]


def _comparison(picture: Paths, reference: Reference, names: Sequence[str]) -> dict[str, Any]:
    similarity = reference.similarity(picture)
    along = zip(picture.ranks, similarity.picture, similarity.same, similarity.other, strict=True)
    return {
        "similarity": similarity.normalised,
        "path": [dict(zip(("layer", "picture", "same", "other"), one, strict=True)) for one in along],
        "unusual": reference.unusual(picture), "usual": reference.usual,
        "units": [
            vars(unit) | {"photographs": [names[n] for n in unit.photographs]} for unit in reference.units(picture)
        ],
    }  # fmt: skip


def _rows_of_classes(run: Run, own: FrozenNetwork) -> list[dict[str, Any]]:
    """Rows of single classes that have a picture, in order of classes. Raises: DgnError if there are none."""
    of_classes = condition("layer", "=", own.layers.classes())
    rows = Rows(run).select([of_classes], [*OF_ROWS, "sha256"]).to_pylist()
    found = [row for row in rows if row["unit"] is not None and row["file_name"] is not None]
    if not found:
        raise DgnError(f"{run.store.url} has no pictures of classes: expected a run of targets such as classes:0-9")
    return sorted(found, key=lambda row: (row["unit"], row["target_id"]))


def worst_first(pictures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """In order of `beside`, then of the target's name."""
    return sorted(pictures, key=lambda one: (-one["beside"], one["target_id"]))
