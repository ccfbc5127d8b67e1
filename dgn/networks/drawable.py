"""Whether a network can draw, found before anything is written: it runs in a precision and passes gradients to its
pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dgn.method.engine import Engine
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.network import Network
from dgn.networks.weights import NetworkWeights


def drawable(load: Callable[[torch.dtype], FrozenNetwork], layers: Sequence[str], dtype: torch.dtype) -> FrozenNetwork:
    """The network, after one picture went through it and its gradient came back.

    Args:
        load: gives the network in a precision.
        layers: of the targets.

    Raises: DgnError if it does not run, or if no gradient comes back.
    """
    network = load(dtype)
    network.check_gradients(layers)
    return network


def without_weights(network: Network, dtype: torch.dtype) -> FrozenNetwork:
    """The network without arithmetic, on PyTorch's meta device; on the CPU if its code looks at values."""
    device = "meta" if network.layers.is_symbolic else "cpu"
    with torch.device(device):
        state = (network.bare().to(device) if network.layers.is_symbolic else network.built()).state_dict()
        return FrozenNetwork(NetworkWeights(network, state, "", "meta"), Engine(device), dtype)
