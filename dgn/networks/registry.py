"""The classifiers that dgn knows by name: the embedded ones, torchvision's, timm's, and functions of one's own."""

from __future__ import annotations

from functools import lru_cache

from dgn.errors import DgnError
from dgn.method.colours import IMAGENET_MEAN, IMAGENET_STD
from dgn.networks import embedded
from dgn.networks.efficientnet_lite import SIZES_PX, lite_network
from dgn.networks.network import Network
from dgn.networks.own_code import is_code
from dgn.networks.timm_networks import PREFIX, timm_network
from dgn.networks.torchvision_networks import torchvision_names, torchvision_network
from dgn.text import near


def known_networks() -> list[str]:
    """All names but timm's, which `timm.list_models()` lists: embedded networks first, then torchvision's."""
    return [*embedded.NETWORKS, *SIZES_PX, *torchvision_names()]


@lru_cache
def network_named(name: str) -> Network:
    """A network by its name, as its authors describe it. Raises: DgnError for an unknown name."""
    if name.startswith(PREFIX):
        return timm_network(name)
    if name in SIZES_PX:
        return lite_network(name)
    if name in embedded.NETWORKS:
        return Network(
            embedded.EmbeddedBuilder(name), size=embedded.SIZE_PX, mean=IMAGENET_MEAN, std=IMAGENET_STD,
            labels=embedded.LABELS, name=name,
        )  # fmt: skip
    if name in torchvision_names():
        return torchvision_network(name)
    if is_code(name):
        raise DgnError(
            f"network '{name}': only commands run code by its name; in Python give dgn.Network(function, ...)"
        )
    raise DgnError(
        f"unknown network '{name}': {near(name, known_networks())} (`dgn info --networks` and `dgn.known_networks()` "
        "list dgn's and torchvision's; timm:NAME is one of timm's, FILE.py:FUNCTION one of your own)"
    )
