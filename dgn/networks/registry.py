"""The classifiers that dgn knows by name: torchvision's and the embedded ones."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from dgn.errors import DgnError
from dgn.networks import embedded


def known_networks() -> list[str]:
    """All names, the embedded ones first."""
    return [*embedded.NETWORKS, *models.list_models(module=models)]


def check_known(network: str) -> None:
    """Raises: DgnError for an unknown name."""
    if network not in known_networks():
        near = difflib.get_close_matches(network, known_networks(), n=3)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f"expected {', '.join(embedded.NETWORKS)}, vgg16 or another"
        )
        raise DgnError(
            f"unknown network '{network}': {hint} (`dgn info --networks` and `dgn.known_networks()` list torchvision's "
            "classifiers and dgn's)"
        )


def build_network(network: str) -> nn.Module:
    """The network with random weights. Raises: DgnError for an unknown name."""
    check_known(network)
    if network in embedded.NETWORKS:
        return embedded.build()
    # These two were trained with another normalisation and apply the difference in their forward pass.
    own = {"init_weights": False, "transform_input": True} if network in ("inception_v3", "googlenet") else {}
    return models.get_model(network, weights=None, **own)


class _EmptyOnMeta(TorchFunctionMode):
    """Parameters take no memory, but what a constructor calculates is real, unlike within `torch.device("meta")`."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def bare_network(network: str) -> nn.Module:
    """The network with its parameters' shapes and without memory for them. Raises: DgnError as `build_network` does."""
    # The device overrides a `torch.device("meta")` around the call. Constructors draw random numbers.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), _EmptyOnMeta():
        return build_network(network)


def class_labels(network: str) -> tuple[str, ...]:
    """Labels of the network's classes, by unit."""
    if network in embedded.NETWORKS:
        return embedded.LABELS
    return tuple(models.get_model_weights(network).DEFAULT.meta["categories"])
