"""How the network sees a saved picture.

What counts is what a person and a second program can open. So scores come from the 8-bit picture, through the whole
plain network with a hook (`FrozenNetwork.scores`), never from the tensors of the optimisation loop.

Shapes: N pictures, U units of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgn.errors import DgnError
from dgn.method.architecture import PICTURE_PX
from dgn.method.loop import RenderResult
from dgn.method.memory import in_batches
from dgn.networks.frozen import FrozenNetwork
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

    activation: float  # of the target, after the ReLU, averaged over space for a map
    rank: int  # 1 if no unit outside the target is higher than the target's weakest wanted unit in its layer
    # Softmax of the network's output, summed over the target's classes; None for other layers.
    probability: float | None
    top5: tuple[TopUnit, ...]  # of the target's first layer
    others_sum: float  # of Eq. 2, without lambda


def read_pictures(pngs: Sequence[bytes]) -> Tensor:
    """N saved pictures as (N, 3, 224, 224) uint8 RGB. Raises: DgnError if one is not a picture of the generator."""
    pictures = [decode_png(png) for png in pngs]
    for picture in pictures:
        if picture.shape[:2] != (PICTURE_PX, PICTURE_PX):
            raise DgnError(
                f"a picture of the run is {picture.shape[1]} x {picture.shape[0]} px: "
                f"expected {PICTURE_PX} x {PICTURE_PX}"
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
    units: dict[str, NDArray[np.float32]] = {}
    probabilities_NU = np.empty(0)
    for layer in dict.fromkeys(layer for target in targets for layer in target.layers):
        response, logits_NU = network.scores(images_N3HW, layer)
        units[layer] = _mean_over_space(response.cpu().numpy())
        logits = logits_NU.cpu().double().numpy()
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        probabilities_NU = shifted / shifted.sum(1, keepdims=True)
    return [
        _score_one(target, {layer: units[layer][n] for layer in target.layers}, probabilities_NU[n], network)
        for n, target in enumerate(targets)
    ]


def _mean_over_space(response: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, U). Signed if a layer has no map, so that silent units have different ranks; after the ReLU where it has one.

    In NumPy for the same reason as `codec.quantised`.
    """
    if response.ndim == 2:
        return response
    axes = (1,) if response.ndim == 3 else (2, 3)
    return np.maximum(response, 0).mean(axis=axes, dtype=np.float64).astype(np.float32)


def _score_one(
    target: Target, units: dict[str, NDArray[np.float32]], probability_U: NDArray[np.float64], network: FrozenNetwork
) -> Scores:
    layers = network.layers
    activation, others, rank = 0.0, 0.0, 1
    for layer, values_U in units.items():
        own = {u.unit: u.weight for u in target.units if u.layer == layer}
        positive_U = np.maximum(values_U, 0)
        activation += sum(weight * float(positive_U[unit]) for unit, weight in own.items())
        is_other_U = np.ones(len(values_U), dtype=bool)
        is_other_U[list(own)] = False
        others += float(positive_U[is_other_U].sum(dtype=np.float64))
        wanted = [values_U[unit] for unit, weight in own.items() if weight > 0]
        if wanted:
            rank = max(rank, 1 + int((values_U[is_other_U] > min(wanted)).sum()))
    first_U = units[target.layer]
    is_class = target.layers == (layers.class_layer,)
    top = np.argsort(-first_U, kind="stable")[:NUM_TOP]
    return Scores(
        activation=activation,
        rank=rank,
        probability=float(sum(probability_U[u.unit] for u in target.units)) if is_class else None,
        top5=tuple(TopUnit(int(u), layers.labels[u] if is_class else None, float(first_U[u])) for u in top),
        others_sum=others,
    )


@dataclass(frozen=True)
class ScoredPicture:
    """One target's outcome: its picture as it will be saved, and what the network sees in it."""

    result: RenderResult
    status: Status
    reason: str | None  # None if the status is ok
    picture_HW3: NDArray[np.uint8] | None  # None, as the next two, where the picture has values that are not finite
    scores: Scores | None
    unrounded_activation: float | None


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
            status, reason = outcome(result, scores, network.layers.class_layer)
            scored[result.target] = ScoredPicture(result, status, reason, picture_HW3, scores, other.activation)
    return [scored.get(result.target) or ScoredPicture(result, *NONFINITE, None, None, None) for result in results]


def outcome(result: RenderResult, scores: Scores, class_layer: str) -> tuple[Status, str | None]:
    """Status and reason of a target with a picture: the one rule behind both."""
    target = result.target
    if scores.activation <= 0 and all(unit.weight > 0 for unit in target.units):
        return Status.DEAD, f"the activation is 0 on the saved picture after {result.num_updates} updates"
    if class_layer in target.layers and scores.rank > 1:
        best = scores.top5[0]
        return Status.NOT_CONVERGED, f"rank {scores.rank} on the saved picture: {best.label or best.unit} is first"
    start = result.activation_curve[0]
    if scores.activation < start:
        return Status.NOT_CONVERGED, f"the activation fell from {start:.4g} to {scores.activation:.4g}"
    return Status.OK, None
