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

from dgn.targets import WeightedUnit


@dataclass(frozen=True)
class UnitValues:
    """A layer's units for each picture, (N, U) both: before the ReLU, and the activations after it."""

    before_relu: Tensor
    activation: Tensor


def unit_values(response: Tensor) -> UnitValues:
    """Units of a layer's response, a map's unit averaged over space.

    (N, U) as it is; (N, U, H, W) over H and W; (N, L, U), a transformer's tokens, over L. float32 or wider.
    """
    if response.dtype in (torch.bfloat16, torch.float16):
        response = response.float()
    axes = {2: (), 3: (1,), 4: (2, 3)}[response.ndim]
    activation = F.relu(response)
    if not axes:
        return UnitValues(response, activation)
    return UnitValues(response.mean(axes), activation.mean(axes))


def layer_weights(groups: Sequence[Sequence[WeightedUnit]], layer: str, num_units: int) -> Tensor:
    """(N, U): how much each target wants of each unit of the layer, 0 where it does not want it."""
    wanted_NU = torch.zeros(len(groups), num_units)
    for n, group in enumerate(groups):
        for unit in group:
            if unit.layer == layer:
                wanted_NU[n, unit.unit] = unit.weight
    return wanted_NU


def activations(values: Mapping[str, UnitValues], wanted: Mapping[str, Tensor]) -> Tensor:
    """a(c_i) of Eq. 2, (N,): the weighted sum of each target's own units, after the ReLU."""
    return torch.stack([(v.activation * wanted[layer]).sum(1) for layer, v in values.items()]).sum(0)


def objectives(values: Mapping[str, UnitValues], wanted: Mapping[str, Tensor], *, wakes_silent_units: bool) -> Tensor:
    """What is maximised, (N,): the activations, where a silent unit is pulled by its value before the ReLU instead.

    Differs from the paper (when `wakes_silent_units`): it asks that a > 0 at all times and does not say how; a unit
    that is silent everywhere has no gradient after the ReLU and would never move.
    """
    if not wakes_silent_units:
        return activations(values, wanted)
    total = []
    for layer, v in values.items():
        is_silent_NU = (v.activation <= 0) & (wanted[layer] > 0)  # what is not wanted may stay silent
        pulled = torch.where(is_silent_NU, v.before_relu, v.activation)
        total.append((pulled * wanted[layer]).sum(1))
    return torch.stack(total).sum(0)


def others_sum(values: Mapping[str, UnitValues], wanted: Mapping[str, Tensor]) -> Tensor:
    """The sum over c_j of Eq. 2, (N,): activations of all other units in the layers that the target has units in."""
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
    """Eq. 3, (N,): 0.01 times the l1 norm of the three picture channels' scales; keeps colours from saturating."""
    return 0.01 * gamma_N3.abs().sum(1)


def alpha_regulariser(alpha_NK: Tensor, penalty: float = 0.1) -> Tensor:
    """Eq. 4, (N,): `penalty` (the paper's 0.1) times the l2 norm of alpha; keeps the features'
    coordinates in a reasonable range.

    The paper's formula; the notebook's Keras regulariser is the sum of squares.
    """
    return penalty * torch.linalg.vector_norm(alpha_NK, dim=1)  # its gradient at 0 is 0, the root's is not finite
