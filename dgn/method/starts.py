"""Where a code of windows begins: at the photograph's whose picture excites the target most.

Differs from the paper, whose codes all begin at one place: the best of a few dozen photographs is a better
beginning than their mean (docs/experiments.md).

Shapes: N targets, M photographs, K the code's length, U units of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dgn.method import objectives
from dgn.method.objectives import UnitValues

if TYPE_CHECKING:
    from dgn.method.batch import Batch

STARTS = "code.starts"  # among a decoder's weights: photographs' codes, of the first band, in deviations: (M, C P)
NUM_STARTS = 64
SHARE_OF_LIMIT = 0.97  # at most, because a code on its limit could not move

# What the photographs' pictures do to the layers that were last asked for, by classifier.
_seen: WeakKeyDictionary[Any, tuple[Mapping[str, Tensor], Tensor, dict[str, UnitValues]]] = WeakKeyDictionary()


@torch.no_grad()
def begin_at_photographs(batch: Batch) -> None:
    """Moves the codes of a batch that has just been started."""
    starts_MK = _alphas(batch)
    values = _values(batch, starts_MK)
    for n in range(len(batch.streams)):
        wanted = {layer: wanted_NU[n : n + 1] for layer, wanted_NU in batch.wanted.items()}
        best = _objective(batch, values, wanted).argmax()
        batch.own["alpha"].data[n] = starts_MK[best]


def _alphas(batch: Batch) -> Tensor:
    """alpha at each photograph's code, (M, K). The finer bands begin at their mean."""
    steps_MK, limit = batch.shared[STARTS], batch.recipe.code_limit
    if limit is not None:
        share = (steps_MK / limit).clamp(-SHARE_OF_LIMIT, SHARE_OF_LIMIT)
        steps_MK = limit * torch.atanh(share)
    alpha_MK = steps_MK.new_zeros(len(steps_MK), batch.architecture.num_features)
    alpha_MK[:, : steps_MK.shape[1]] = steps_MK
    return alpha_MK


def _values(batch: Batch, alpha_MK: Tensor) -> Mapping[str, UnitValues]:
    """The layers' units for the photographs' pictures, (M, U)."""
    classifier, layers = batch.classifier, list(batch.wanted)
    if classifier in _seen:
        drawn_by, alpha_before_MK, found = _seen[classifier]
        is_same = list(found) == layers and drawn_by.keys() == batch.shared.keys()
        pairs = [(alpha_before_MK, alpha_MK), *((drawn_by[name], batch.shared[name]) for name in drawn_by if is_same)]
        if is_same and all(one.shape == other.shape and torch.equal(one, other) for one, other in pairs):
            return found
    parts: dict[str, list[UnitValues]] = {layer: [] for layer in layers}
    for some in alpha_MK.split(classifier.engine.scoring_batch_size):
        pictures = replace(batch, own={"alpha": some}).pictures(None, classifier.size_px)
        for layer, response in classifier.responses(pictures, layers).items():
            parts[layer].append(objectives.unit_values(response))
    values = {
        layer: UnitValues(
            torch.cat([part.before_relu for part in of_layer]), torch.cat([part.activation for part in of_layer])
        )
        for layer, of_layer in parts.items()
    }
    _seen[classifier] = batch.shared, alpha_MK, values
    return values


def _objective(batch: Batch, values: Mapping[str, UnitValues], wanted: Mapping[str, Tensor]) -> Tensor:
    """What one target maximises, for each photograph: (M,)."""
    if batch.measure == "sum":
        return objectives.objectives(values, wanted, wakes_silent_units=batch.recipe.wakes_silent_units)
    [(layer, direction_1U)] = wanted.items()
    return objectives.along(values[layer].before_relu, direction_1U, batch.measure)
