"""How the network sees a saved picture.

What counts is what a person and a second program can open. So scores come from the 8-bit picture, through the whole
plain network with a hook (`FrozenNetwork.scores`), never from the tensors of the optimisation loop.

Shapes: N pictures, U units of a layer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgn.errors import DgnError
from dgn.method.loop import RenderResult
from dgn.method.memory import in_batches
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.layers import Layers
from dgn.pictures.codec import as_tensor, decode_png, quantised
from dgn.statuses import Status
from dgn.targets import Target

NUM_TOP = 5
NONFINITE = (
    Status.NONFINITE,
    "the picture has values that are not finite: try another seed or a lower learning rate",
)


@dataclass(frozen=True)
class TopUnit:
    """One of the units with the highest activations in a layer."""

    unit: int
    label: str | None  # of a class
    activation: float


@dataclass(frozen=True)
class Scores:
    """One picture's scores."""

    # Of the target, averaged over space for a map: after the ReLU, but before it if all weights are negative. For a
    # direction, the cosine with it or the projection on it.
    activation: float
    # 1 if no unit outside the target is higher than the target's weakest wanted unit in its layer; if all weights are
    # negative, 1 if none is lower than the highest of the target's. None for a direction.
    rank: int | None
    # Of the target's classes: their sum (softmax), or the lowest of theirs (sigmoid); None for other layers, and if the
    # network's output is not one of probabilities.
    probability: float | None
    top5: tuple[TopUnit, ...]  # of the target's first layer
    others_sum: float  # of Eq. 2, without lambda


def read_pictures(pngs: Sequence[bytes], size_px: int) -> Tensor:
    """N saved pictures as (N, 3, H, W) uint8 RGB. Raises: DgnError if one has another side than `size_px`."""
    pictures = [decode_png(png) for png in pngs]
    for picture in pictures:
        if picture.shape[:2] != (size_px, size_px):
            raise DgnError(
                f"a picture of the run is {picture.shape[1]} x {picture.shape[0]} px: expected {size_px} x {size_px}"
            )
    return as_tensor(pictures)


def score(images_N3HW: Tensor, targets: Sequence[Target], network: FrozenNetwork) -> list[Scores]:
    """Scores of N pictures, each by its own target; `network` should be a float32 one.

    Args:
        images_N3HW: RGB; uint8, or floats in [0, 1]. Any number: they go through the network in batches that fit.
    """
    order = range(len(targets))

    def score_some(some: Sequence[int]) -> list[Scores]:
        images = images_N3HW[some[0] : some[-1] + 1]
        return _score_batch(images if images.is_floating_point() else images / 255, [targets[n] for n in some], network)

    batches = in_batches(order, network.engine.scoring_batch_size, score_some, network.engine)
    return [scores for batch in batches for scores in batch]


def _score_batch(images_N3HW: Tensor, targets: Sequence[Target], network: FrozenNetwork) -> list[Scores]:
    layers = network.layers
    units: dict[str, LayerValues] = {}
    probabilities_NU: NDArray[np.float64] | None = None
    for layer in dict.fromkeys(layer for target in targets for layer in target.layers):
        response, class_values_NU = network.scores(images_N3HW, layer)
        units[layer] = _layer_values(response.cpu().numpy())
        if class_values_NU is not None:
            probabilities_NU = probabilities(class_values_NU.cpu().double().numpy(), layers)
    return [
        _score_one(
            target,
            {layer: (units[layer][0][n], units[layer][1][n]) for layer in target.layers},
            None if probabilities_NU is None else probabilities_NU[n],
            layers,
        )
        for n, target in enumerate(targets)
    ]


LayerValues = tuple[NDArray[np.float32], NDArray[np.float32]]  # of units: as they rank, and before the ReLU


def _layer_values(response: NDArray[np.float32]) -> LayerValues:
    """(N, U) both. A layer without a map ranks by signed values, so that silent units have different ranks; one with a
    map by its mean after the ReLU.

    In NumPy for the same reason as `codec.quantised`.
    """
    if response.ndim == 2:
        return response, response
    axes = tuple(range(2, response.ndim))
    means = [
        values.mean(axis=axes, dtype=np.float64).astype(np.float32) for values in (np.maximum(response, 0), response)
    ]
    return means[0], means[1]


def probabilities(class_values_NU: NDArray[np.float64], layers: Layers) -> NDArray[np.float64] | None:
    """The classes' probabilities, (N, classes); None if the network's output has none."""
    if layers.output == "none":
        return None
    if layers.is_probability:
        return class_values_NU
    if layers.output == "sigmoid":
        return 0.5 * (1 + np.tanh(class_values_NU / 2))  # which cannot overflow
    shifted = np.exp(class_values_NU - class_values_NU.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def _score_one(
    target: Target, units: Mapping[str, LayerValues], probability_U: NDArray[np.float64] | None, layers: Layers
) -> Scores:
    first_U, first_before_relu_U = units[target.layer]
    activation, others, rank = 0.0, 0.0, 1
    is_class = target.layers == (layers.class_layer,)
    labels = layers.labels if is_class else ()
    highest = np.argsort(-first_U, kind="stable")[:NUM_TOP]
    top5 = tuple(TopUnit(int(u), labels[u] if labels else None, float(first_U[u])) for u in highest)
    if target.measure != "sum":
        return Scores(_along(first_before_relu_U, target), None, None, top5, 0.0)
    for layer, (values_U, before_relu_U) in units.items():
        own = {u.unit: u.weight for u in target.units if u.layer == layer}
        positive_U = np.maximum(values_U, 0)
        used_U = before_relu_U if target.is_negative else positive_U
        activation += sum(weight * float(used_U[unit]) for unit, weight in own.items())
        is_other_U = np.ones(len(values_U), dtype=bool)
        is_other_U[list(own)] = False
        others += float(positive_U[is_other_U].sum(dtype=np.float64))
        if target.is_negative:
            rank = max(rank, 1 + int((before_relu_U[is_other_U] < max(before_relu_U[unit] for unit in own)).sum()))
        elif wanted := [values_U[unit] for unit, weight in own.items() if weight > 0]:
            rank = max(rank, 1 + int((values_U[is_other_U] > min(wanted)).sum()))
    wanted_units = [u.unit for u in target.units if is_class and (u.weight > 0 or target.is_negative)]
    own_probabilities = [] if probability_U is None else [float(probability_U[unit]) for unit in wanted_units]
    combine = sum if layers.output == "softmax" else min
    return Scores(
        activation=activation,
        rank=rank,
        probability=combine(own_probabilities) if own_probabilities else None,
        top5=top5,
        others_sum=others,
    )


def _along(response_U: NDArray[np.float32], target: Target) -> float:
    """See `objectives.along`."""
    response = response_U.astype(np.float64)
    projection = sum(unit.weight * response[unit.unit] for unit in target.units)
    return float(projection if target.measure == "dot" else projection / max(np.linalg.norm(response), 1e-12))


@dataclass(frozen=True)
class ScoredPicture:
    """One target's outcome: its picture as it will be saved, and what the network sees in it."""

    result: RenderResult
    status: Status
    reason: str | None  # None if the status is ok
    picture_HW3: NDArray[np.uint8] | None  # None, as the next two, where the picture has values that are not finite
    scores: Scores | None
    unrounded_activation: float | None

    @property
    def merit(self) -> tuple[bool, float]:
        """Highest for the best of several tries: success counts first, then the activation."""
        return not self.status.is_failure, self.scores.activation if self.scores else -math.inf


class Best:
    """Of each target's tries the best one, as they come.

    Args:
        targets: in the order in which their tries come.
    """

    def __init__(self, targets: Sequence[Target]):
        self.targets = deque(targets)
        self.waiting: list[ScoredPicture] = []

    def add(self, scored: Sequence[ScoredPicture]) -> list[tuple[Target, ScoredPicture]]:
        """The targets that have all their tries now."""
        self.waiting += scored
        done = []
        while self.targets and len(self.waiting) >= (num := self.targets[0].num_tries):
            done.append((self.targets.popleft(), max(self.waiting[:num], key=lambda one: one.merit)))
            del self.waiting[:num]
        return done


def score_results(results: Sequence[RenderResult], network: FrozenNetwork) -> list[ScoredPicture]:
    """The outcomes of a batch. `network` should be a float32 one."""
    finite = [result for result in results if result.is_finite]
    scored: dict[Target, ScoredPicture] = {}
    if finite:
        targets = [result.target for result in finite]
        pictures = [quantised(result.picture_3HW) for result in finite]
        saved = score(as_tensor(pictures), targets, network)
        unrounded = score(torch.stack([result.picture_3HW for result in finite]), targets, network)
        for result, picture_HW3, scores, other in zip(finite, pictures, saved, unrounded, strict=True):
            status, reason = outcome(result, scores, network.layers)
            scored[result.target] = ScoredPicture(result, status, reason, picture_HW3, scores, other.activation)
    return [scored.get(result.target) or ScoredPicture(result, *NONFINITE, None, None, None) for result in results]


def outcome(result: RenderResult, scores: Scores, layers: Layers) -> tuple[Status, str | None]:
    """Status and reason of a target with a picture: the one rule behind both."""
    target = result.target
    if target.is_negative:
        if scores.activation > 0:
            return Status.SUPPRESSED, f"below zero as asked: {-scores.activation:.4g} before the ReLU"
        return Status.NOT_CONVERGED, f"not below zero before the ReLU after {result.num_updates} updates"
    if target.measure != "sum" and scores.activation <= 0:
        return Status.NOT_CONVERGED, f"the {target.measure} with the direction is {scores.activation:.3g}: not above 0"
    if _is_silent(target, scores, layers):
        return Status.DEAD, f"the activation is 0 on the saved picture after {result.num_updates} updates"
    if layers.class_layer in target.layers and layers.output == "softmax" and (scores.rank or 1) > 1:
        best = scores.top5[0]
        return Status.NOT_CONVERGED, f"rank {scores.rank} on the saved picture: {best.label or best.unit} is first"
    if layers.output == "sigmoid" and scores.probability is not None and scores.probability < 0.5:
        return Status.NOT_CONVERGED, f"probability {scores.probability:.3g} on the saved picture: below one half"
    start = result.activation_curve[0]
    if scores.activation < start:
        return Status.NOT_CONVERGED, f"the activation fell from {start:.4g} to {scores.activation:.4g}"
    return Status.OK, None


def _is_silent(target: Target, scores: Scores, layers: Layers) -> bool:
    """Whether the target's units do not respond at all.

    A class is not silent because its value is below zero: softmax does not depend on a shift of all values, such as
    minus squared distances, so one above all others is seen. With sigmoid, 0 alone is silence.
    """
    is_zero = target.measure == "sum" and scores.activation <= 0 and all(unit.weight > 0 for unit in target.units)
    if not is_zero or target.layers != (layers.class_layer,) or len(target.units) > 1:
        return is_zero
    if layers.output == "sigmoid":
        return scores.probability == 0.5
    is_first = scores.rank == 1 and len({top.activation for top in scores.top5[:2]}) == 2
    return layers.output == "none" or not is_first
