"""Eq. 2 to 4 of the paper as pure functions, one value per target.

An objective is maximised, a loss is minimised; the sign flips once, in `loss`.
Shapes: N targets (or views of them), U units of a layer, H, W the layer's map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dgn.targets import Measure, WeightedUnit


@dataclass(frozen=True)
class UnitValues:
    """A layer's units for each picture, (N, U) both: before the ReLU, and the activations after it."""

    before_relu: Tensor
    activation: Tensor


def unit_values(response: Tensor) -> UnitValues:
    """The units of a layer's response, in float32 or wider.

    (N, U) as it is; maps (N, U, H, W) and a transformer's tokens (N, U, L) averaged over all but N and U.
    """
    if response.dtype in (torch.bfloat16, torch.float16):
        response = response.float()
    axes = tuple(range(2, response.ndim))
    activation = F.relu(response)
    if not axes:
        return UnitValues(response, activation)
    return UnitValues(response.mean(axes), activation.mean(axes))


def mean_over_views(values: UnitValues, num_views: int) -> UnitValues:
    """(N * V, U) -> (N, U): the mean over each target's V views."""
    return UnitValues(
        values.before_relu.unflatten(0, (-1, num_views)).mean(1),
        values.activation.unflatten(0, (-1, num_views)).mean(1),
    )


def layer_weights(groups: Sequence[Sequence[WeightedUnit]], layer: str, num_units: int) -> Tensor:
    """How much each target wants of each unit of the layer, (N, U); 0 for units that it does not name."""
    wanted_NU = torch.zeros(len(groups), num_units)
    for n, group in enumerate(groups):
        for unit in group:
            if unit.layer == layer:
                wanted_NU[n, unit.unit] = unit.weight
    return wanted_NU


def along(response_NU: Tensor, direction_NU: Tensor, measure: Measure) -> Tensor:
    """How far a layer's mean response goes along each target's direction, (N,): `dot`, the projection on it, in units
    of the response; `cosine`, the projection's share of the response's length, in [-1, 1].

    Args:
        response_NU: before any ReLU.
        direction_NU: of length 1.
    """
    projection_N = (response_NU * direction_NU).sum(1)
    if measure == "dot":
        return projection_N
    return projection_N / torch.linalg.vector_norm(response_NU, dim=1).clamp_min(1e-12)


def activations(values: Mapping[str, UnitValues], wanted: Mapping[str, Tensor]) -> Tensor:
    """a(c_i) of Eq. 2, (N,): the weighted sum of each target's own units, after the ReLU.

    Differs from the paper for targets with negative weights alone: theirs is the sum before the ReLU, because after it
    a silent unit cannot be told from one that is held far below zero.
    """
    return _weighted(values, wanted, {layer: v.activation for layer, v in values.items()})


def objectives(values: Mapping[str, UnitValues], wanted: Mapping[str, Tensor], *, wakes_silent_units: bool) -> Tensor:
    """The values to maximise, (N,): the activations, or for a silent unit its value before the ReLU.

    Differs from the paper (if `wakes_silent_units`): the paper requires a > 0 at all times and does not say how to get
    there. A unit that is silent everywhere has no gradient after the ReLU and would never move.
    """
    if not wakes_silent_units:
        return activations(values, wanted)
    pulled = {}
    for layer, v in values.items():
        is_silent_NU = (v.activation <= 0) & (wanted[layer] > 0)  # beside others, units with a negative weight may rest
        pulled[layer] = torch.where(is_silent_NU, v.before_relu, v.activation)
    return _weighted(values, wanted, pulled)


def _weighted(values: Mapping[str, UnitValues], wanted: Mapping[str, Tensor], used: Mapping[str, Tensor]) -> Tensor:
    """The weighted sums of the values in `used` or, for targets with negative weights alone, before the ReLU."""
    has_positive_N1 = torch.stack([(wanted_NU > 0).any(1, keepdim=True) for wanted_NU in wanted.values()]).any(0)
    return torch.stack([
        (torch.where(has_positive_N1, used[layer], v.before_relu) * wanted[layer]).sum(1)
        for layer, v in values.items()
    ]).sum(0)  # fmt: skip


def others_sum(values: Mapping[str, UnitValues], wanted: Mapping[str, Tensor]) -> Tensor:
    """The sum over c_j of Eq. 2, (N,): activations of all other units in the layers that the target names."""
    total = []
    for layer, v in values.items():
        is_own_NU = wanted[layer] != 0
        has_units_N1 = is_own_NU.any(1, keepdim=True)
        total.append((v.activation * (~is_own_NU & has_units_N1)).sum(1))
    return torch.stack(total).sum(0)


def loss(objective_N: Tensor, others_N: Tensor, penalty_others: float, regulariser_N: Tensor) -> Tensor:
    """Eq. 2, (N,): -a(c_i) + lambda * sum of the others + R."""
    return -objective_N + penalty_others * others_N + regulariser_N


def gamma_regulariser(gamma_N3: Tensor) -> Tensor:
    """Eq. 3, (N,): 0.01 times the l1 norm of the picture channels' scales. Keeps colours from saturating."""
    return 0.01 * gamma_N3.abs().sum(1)


def alpha_regulariser(alpha_NK: Tensor, penalty: float = 0.1) -> Tensor:
    """Eq. 4, (N,): `penalty` (0.1 in the paper) times the l2 norm of alpha. Keeps the features in a reasonable range.

    This is the paper's formula; the notebook's Keras regulariser is the sum of squares.
    """
    return penalty * torch.linalg.vector_norm(alpha_NK, dim=1)  # its gradient at 0 is 0; that of sqrt is not finite
