"""Which photographs excite units most: lists of the best, kept while photographs go by.

Shapes: N photographs of a batch, S subjects (what a target seeks, whatever its mode and seed), U units of a layer,
B = NUM_BEST places of a list, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgn.method.objectives import UnitValues, unit_values
from dgn.networks.frozen import FrozenNetwork
from dgn.pictures.accuracy import CROPPED
from dgn.pictures.example_sheets import NUM_BEST
from dgn.pictures.scoring import probabilities
from dgn.targets import Target

NOBODY, NOWHERE = -1, -1  # no photograph yet; no place in a map
LEAST_BOX = 1 / 6  # of a picture's side


@dataclass(frozen=True)
class Look:
    """What a batch of photographs does to the subjects.

    values_NS: as the run scores pictures, but a class's before the ReLU. cells_NS: where in its map a unit responds
    most, counted row by row; NOWHERE for subjects without a map of their own. probabilities_NC: None without classes.
    """

    values_NS: NDArray[np.float32]
    cells_NS: NDArray[np.int32]
    probabilities_NC: NDArray[np.float64] | None


class Watcher:
    """A network whose subjects are watched."""

    def __init__(self, network: FrozenNetwork, subjects: Sequence[Target]):
        self.network = network
        self.layers = tuple(dict.fromkeys(layer for subject in subjects for layer in subject.layers))
        self.map_shapes: dict[str, tuple[int, int]] = {}  # rows and columns of the layers that have maps
        self._single: dict[str, tuple[NDArray[np.intp], list[int]]] = {}
        self._several = [(s, subject) for s, subject in enumerate(subjects) if subject.unit is None]
        for layer in self.layers:
            alone = [(s, one.unit) for s, one in enumerate(subjects) if one.layer == layer and one.unit is not None]
            self._single[layer] = np.array([s for s, _ in alone], dtype=np.intp), [unit for _, unit in alone]
        self.num_subjects = len(subjects)

    @property
    def square_px(self) -> int:
        """Side of the photographs that `look` takes: networks see the middle of them, as most were evaluated."""
        return square_px(self.network.size_px)

    def seen(self, photograph_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The part of photographs (..., H, W, 3) with side `square_px` that the network sees."""
        return seen(photograph_HW3, self.network.size_px)

    @torch.no_grad()
    def look(self, photographs_NHW3: NDArray[np.uint8]) -> Look:
        """Photographs with side `square_px`."""
        seen_NHW3 = np.ascontiguousarray(self.seen(photographs_NHW3))
        images = torch.from_numpy(seen_NHW3).to(self.network.engine.device).permute(0, 3, 1, 2) / 255
        responses, class_values = self.network.all_scores(images, self.layers)
        values = {layer: unit_values(response) for layer, response in responses.items()}
        values_NS = np.empty((len(images), self.num_subjects), np.float32)
        cells_NS = np.full((len(images), self.num_subjects), NOWHERE, np.int32)
        for layer, (subjects, units) in self._single.items():
            response = responses[layer]
            used = values[layer].before_relu if response.ndim == 2 else values[layer].activation
            values_NS[:, subjects] = used[:, units].cpu().numpy()
            if response.ndim == 4:
                self.map_shapes[layer] = response.shape[2], response.shape[3]
                cells_NS[:, subjects] = response.flatten(2).argmax(2)[:, units].cpu().numpy()
        for s, subject in self._several:
            values_NS[:, s] = _combined(subject, values).cpu().numpy()
        probabilities_NC = None
        if class_values is not None:
            probabilities_NC = probabilities(class_values.cpu().double().numpy(), self.network.layers)
        return Look(values_NS, cells_NS, probabilities_NC)

    def box(self, layer: str, cell: int) -> tuple[float, float, float, float] | None:
        """As `box_around`; None without a place."""
        return None if cell == NOWHERE else box_around(cell, *self.map_shapes[layer])


def square_px(size_px: int) -> int:
    """Side of photographs' squares for a network that sees `size_px` of them."""
    return round(size_px / CROPPED)


def seen(square_HW3: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """The part of squares (..., H, W, 3) with side `square_px` that the network sees."""
    margin = (square_px(size_px) - size_px) // 2
    return square_HW3[..., margin : margin + size_px, margin : margin + size_px, :]


def box_around(cell: int, rows: int, columns: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a map's cell, counted row by row, and its neighbours, in shares of the picture
    that the network saw."""
    row, column = divmod(cell, columns)
    (left, right), (top, bottom) = _span(column, columns), _span(row, rows)
    return left, top, right, bottom


def _span(cell: int, count: int) -> tuple[float, float]:
    """Of a cell and its two neighbours, at least LEAST_BOX, within [0, 1]."""
    middle, half = (cell + 0.5) / count, max(1.5 / count, LEAST_BOX / 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def _combined(subject: Target, values: Mapping[str, UnitValues]) -> Tensor:
    """A weighted group's or a direction's value for each photograph, (N,), see `scoring.Scores.activation`."""
    total = None
    for unit in subject.units:
        of_layer = values[unit.layer]
        is_raw = subject.is_negative or subject.measure != "sum"
        part = unit.weight * (of_layer.before_relu if is_raw else of_layer.activation)[:, unit.unit]
        total = part if total is None else total + part
    assert total is not None
    if subject.measure == "cosine":
        total = total / torch.linalg.vector_norm(values[subject.layer].before_relu, dim=1).clamp_min(1e-12)
    return total


@dataclass
class Best:
    """For each subject the photographs of the highest values so far. Among equals the earlier photograph stands first,
    so lists do not depend on how photographs are cut into batches or shards.

    values_SB: -infinity where there is none. photographs_SB: numbers, NOBODY where there is none. cells_SB: as in
    `Look`. probabilities_SB: of the subject's class, NaN if it is none.
    """

    num_subjects: int
    values_SB: NDArray[np.float32] = field(init=False)
    photographs_SB: NDArray[np.int64] = field(init=False)
    cells_SB: NDArray[np.int32] = field(init=False)
    probabilities_SB: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.num_subjects, 0)
        self.values_SB, self.probabilities_SB = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self.photographs_SB, self.cells_SB = np.empty(shape, np.int64), np.empty(shape, np.int32)

    def add(
        self,
        values_SN: NDArray[np.float32],
        photographs_N: NDArray[np.int64],
        cells_SN: NDArray[np.int32],
        probabilities_SN: NDArray[np.float32],
    ) -> None:
        """Photographs with higher numbers than those before. -infinity, and NaN, count as none."""
        finite_SN = np.where(np.isnan(values_SN), -np.inf, values_SN)
        values = np.concatenate([self.values_SB, finite_SN], 1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :NUM_BEST]

        def kept(old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
            return np.take_along_axis(np.concatenate([old, new], 1), order, 1)

        self.values_SB = np.take_along_axis(values, order, 1)
        self.photographs_SB = kept(self.photographs_SB, np.broadcast_to(photographs_N, values_SN.shape))
        self.cells_SB = kept(self.cells_SB, cells_SN)
        self.probabilities_SB = kept(self.probabilities_SB, probabilities_SN)
        self.photographs_SB[np.isneginf(self.values_SB)] = NOBODY


class Lists:
    """Both lists of every subject: the strongest photographs and, for classes, those that are surest and wrong.

    Args:
        subjects: as for the `Watcher`.
    """

    def __init__(self, subjects: Sequence[Target], class_layer: str | None):
        self.strongest, self.wrong = Best(len(subjects)), Best(len(subjects))
        self._is_rectified = np.array([
            one.measure == "sum" and not (one.layer == class_layer and one.unit is not None) for one in subjects
        ])  # fmt: skip
        classes = [(s, one.unit) for s, one in enumerate(subjects) if one.layer == class_layer and one.unit is not None]
        self._class_subjects = np.array([s for s, _ in classes], dtype=np.intp)
        self._class_units = np.array([unit for _, unit in classes], dtype=np.intp)

    def add(self, look: Look, numbers_N: NDArray[np.int64], true_classes: Sequence[int | None]) -> None:
        """The photographs of a look, by their numbers, and their true classes where they are known."""
        values_SN, cells_SN = look.values_NS.T.copy(), look.cells_NS.T
        values_SN[self._is_rectified[:, None] & (values_SN <= 0)] = -np.inf  # a silent unit has no examples
        probabilities_SN = np.full(values_SN.shape, np.nan, np.float32)
        if look.probabilities_NC is not None:
            probabilities_SN[self._class_subjects] = look.probabilities_NC[:, self._class_units].T
        self.strongest.add(values_SN, numbers_N, cells_SN, probabilities_SN)
        if look.probabilities_NC is None or all(known is None for known in true_classes):
            return
        first_N = look.probabilities_NC.argmax(1)
        is_wrong_N = np.array([known is not None and known != first_N[n] for n, known in enumerate(true_classes)])
        is_wrong_SN = np.zeros(values_SN.shape, bool)
        is_wrong_SN[self._class_subjects] = (self._class_units[:, None] == first_N) & is_wrong_N
        surest_SN = np.where(is_wrong_SN, probabilities_SN, np.float32(-np.inf))
        self.wrong.add(surest_SN, numbers_N, cells_SN, probabilities_SN)

    def numbers(self) -> set[int]:
        """Of the photographs that are in a list."""
        held = np.union1d(self.strongest.photographs_SB, self.wrong.photographs_SB)
        return set(held.tolist()) - {NOBODY}
