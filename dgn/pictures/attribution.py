"""How much each filter of a layer speaks for a class, on one photograph.

A filter is silenced where it responds: its response r becomes min(r, 0). Behind a ReLU it is then 0 everywhere.

Shapes: U units of a layer, H, W its map; photographs are (3, H, W), RGB in [0, 1], of the network's own size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dgn.method.memory import in_batches
from dgn.networks.frozen import FrozenNetwork

SHARES = (0.25, 0.5, 0.75, 1.0)


def by_gradient(
    network: FrozenNetwork, image_3HW: Tensor, layer: str, class_: int, shares: Sequence[float] = SHARES
) -> Tensor:
    """Gradient times activation, (U,) float64: the sum over the map of relu(r) times the gradient of the class's value
    with respect to r. To first order, what the value loses when the filter is silenced.

    Args:
        shares: of their activations that all filters of the layer keep while a gradient is taken; the mean of these
            gradients counts, as in integrated gradients (Sundararajan et al., 2017). At their whole activation, filters
            above the limit of a ReLU6 have none.

    Raises: DgnError if no gradient leads from the class to the layer.
    """
    parts = (shares,) if not network.is_coupled else [(share,) for share in shares]
    return torch.stack([_by_gradient(network, image_3HW, layer, class_, some) for some in parts]).mean(0)


def _by_gradient(network: FrozenNetwork, image_3HW: Tensor, layer: str, class_: int, shares: Sequence[float]) -> Tensor:
    seen: list[Tensor] = []

    def add(response: Tensor) -> Tensor:
        added, activation = torch.zeros_like(response, requires_grad=True), F.relu(response)
        share = torch.tensor(shares, dtype=response.dtype).reshape(-1, *(1,) * (response.ndim - 1))
        seen[:] = activation, added
        return response.clamp_max(0) + share.to(response.device) * activation + added

    with network.running(len(shares)), torch.enable_grad():
        images_N3HW = image_3HW.expand(len(shares), *image_3HW.shape)
        values_NC = network.changed_class_values(images_N3HW, {layer: add})
        network.expect_gradients({f"class {class_}": values_NC})
        activation, added = seen
        [gradient] = torch.autograd.grad(values_NC[:, class_].sum(), added, materialize_grads=True)
    return (activation * gradient).double().mean(0).flatten(1).sum(1).cpu()


def shortlist(network: FrozenNetwork, image_3HW: Tensor, layer: str, class_: int, num: int) -> list[int]:
    """The `num` filters that speak most for the class by their gradients, or all of a smaller layer."""
    value_U = by_gradient(network, image_3HW, layer, class_)
    return value_U.topk(min(num, len(value_U))).indices.tolist()


@torch.no_grad()
def silenced(network: FrozenNetwork, image_3HW: Tensor, layer: str, sets: Sequence[Sequence[int]]) -> Tensor:
    """The classes' values with each set of filters silenced at once, (sets, classes) float64."""

    def run(some: Sequence[Sequence[int]]) -> Tensor:
        rows = [n for n, units in enumerate(some) for _ in units]
        columns = [unit for units in some for unit in units]

        def silence(response: Tensor) -> Tensor:
            response = response.clone()
            response[rows, columns] = response[rows, columns].clamp_max(0)
            return response

        images_N3HW = image_3HW.expand(len(some), *image_3HW.shape)
        with network.running(len(some)):
            return network.changed_class_values(images_N3HW, {layer: silence}).double().cpu()

    at_a_time = 1 if network.is_coupled else network.engine.scoring_batch_size
    return torch.cat(list(in_batches(sets, at_a_time, run, network.engine)))
