"""Whether a network can draw, found before anything is written: it runs in a precision and passes gradients to its
pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from dgn.errors import DgnError
from dgn.method.engine import Engine
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.network import Network
from dgn.networks.weights import NetworkWeights
from dgn.text import in_one_line

log = logging.getLogger("dgn")


def drawable(
    load: Callable[[torch.dtype], FrozenNetwork], layers: Sequence[str], dtype: torch.dtype, or_float32: bool = False
) -> FrozenNetwork:
    """The network, after one picture went through it and its gradient came back.

    Args:
        load: gives the network in a precision.
        layers: of the targets.
        or_float32: whether a network that does not run in bfloat16 is loaded in float32 instead, which is logged.

    Raises: DgnError if it does not run, or if no gradient comes back.
    """
    try:
        return _tried(load(dtype), layers)
    except DgnError as error:
        if not or_float32 or dtype != torch.bfloat16:
            raise
        exact = _tried(load(torch.float32), layers)
        why = in_one_line(error.__cause__ or error)
        log.info("%s does not run in bfloat16 (%s): it runs in float32", exact.layers.network, why)
        return exact


def _tried(network: FrozenNetwork, layers: Sequence[str]) -> FrozenNetwork:
    network.check_gradients(layers)
    return network


def without_weights(network: Network, dtype: torch.dtype) -> FrozenNetwork:
    """The network without arithmetic, on PyTorch's meta device; on the CPU if its code looks at values."""
    device = "meta" if network.layers.is_symbolic else "cpu"
    with torch.device(device):
        state = (network.bare().to(device) if network.layers.is_symbolic else network.built()).state_dict()
        return FrozenNetwork(NetworkWeights(network, state, "", "meta"), Engine(device), dtype)
