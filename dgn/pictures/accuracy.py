"""A network's own accuracy on photographs with known classes: whether it sees them as it was trained to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgn.errors import DgnError
from dgn.method.colours import IMAGENET_MEAN, IMAGENET_STD
from dgn.method.engine import Engine
from dgn.method.moves import resized
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.layers import Layers
from dgn.networks.weights import NetworkWeights
from dgn.pictures.codec import as_tensor
from dgn.pictures.photographs import SUFFIXES, UnreadablePhotograph, load_photograph

MAX_PHOTOGRAPHS = 150
CROPPED = 7 / 8  # of a photograph's central square, as most networks were evaluated
DEVIATIONS = 2.5  # of what chance would do, by which another preprocessing has to be better (McNemar's test)
COMMON: Sequence[Mapping[str, Any]] = (  # ways in which networks are usually trained
    {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "value_range": 1.0},
    {"mean": 0.5, "std": 0.5, "value_range": 1.0},
    {"mean": 0.0, "std": 1.0, "value_range": 1.0},
    {"mean": 0.0, "std": 1.0, "value_range": 255.0},
)


@dataclass(frozen=True)
class Accuracy:
    """Shares of photographs whose class the network ranks first, and among its first five."""

    num_photographs: int
    first: float
    top5: float
    # A usual preprocessing that gives a higher share of first ranks, and that share; None if there is none.
    better: tuple[Mapping[str, Any], float] | None


def measure_accuracy(weights: NetworkWeights, folder: Path, engine: Engine | None = None) -> Accuracy:
    """The network's accuracy as it is described, and whether another preprocessing would serve it better.

    Args:
        folder: photographs whose names begin with their class's number (`668_mosque.jpg`), or in folders that are named
            as the classes, or by their numbers. At most 150 of them are looked at, evenly spread.

    Raises: DgnError if there are none, or the network has no classes.
    """
    layers = weights.network.layers
    layers.classes()
    if layers.num_classes == 1:
        raise DgnError(f"{layers.network} has one class: expected two or more, of which one can be first")
    found = _labelled(folder, layers)
    if not found:
        raise DgnError(
            f"{folder} has no photographs with a class: expected names such as 668_mosque.jpg, or folders named as the "
            f"{layers.num_classes} classes"
        )
    step = max(1, len(found) / MAX_PHOTOGRAPHS)
    chosen = [found[int(n * step)] for n in range(min(len(found), MAX_PHOTOGRAPHS))]
    pictures, classes = [], []
    for path, class_ in chosen:
        try:
            pictures.append(load_photograph(path.read_bytes()))
        except (UnreadablePhotograph, OSError):
            continue
        classes.append(class_)
    if not pictures:
        raise DgnError(f"{folder}: none of {len(chosen)} photographs can be read")
    margin = round(pictures[0].shape[0] * (1 - CROPPED) / 2)
    images = as_tensor(pictures)[..., margin:-margin, margin:-margin] / 255
    is_first_N, is_top5_N = _right(weights, images, classes, engine)
    better = None
    for settings in COMMON:
        if weights.network.layers.num_channels == 1 and not isinstance(settings["mean"], float):
            continue
        other_N, _ = _right(_seen_as(weights, settings), images, classes, engine)
        gained, lost = (other_N & ~is_first_N).sum().item(), (is_first_N & ~other_N).sum().item()
        share = _share(other_N)
        if gained - lost > DEVIATIONS * (gained + lost) ** 0.5 and share > (better[1] if better else 0):
            better = settings, share
    return Accuracy(len(classes), _share(is_first_N), _share(is_top5_N), better)


def _share(is_right_N: Tensor) -> float:
    return is_right_N.float().mean().item()


def _seen_as(weights: NetworkWeights, settings: Mapping[str, Any]) -> NetworkWeights:
    return replace(weights, network=weights.network.with_settings(**settings))


def _right(
    weights: NetworkWeights, images_N3HW: Tensor, classes: Sequence[int], engine: Engine | None
) -> tuple[Tensor, Tensor]:
    """Whether each photograph's class is first, and among the first five: (N,) both."""
    network = FrozenNetwork(weights, engine)
    layer, size = network.layers.classes(), network.engine.scoring_batch_size
    values = [network.scores(images, layer)[1] for images in resized(images_N3HW, network.size_px).split(size)]
    order = torch.cat([each for each in values if each is not None]).cpu().argsort(1, descending=True)[:, :5]
    is_right = order == torch.tensor(classes)[:, None]
    return is_right[:, 0], is_right.any(1)


def _labelled(folder: Path, layers: Layers) -> list[tuple[Path, int]]:
    """Photographs with their classes, in order."""
    if not folder.is_dir():
        raise DgnError(f"no folder of photographs at {folder}")
    by_name = {_plain(label): number for number, label in reversed(list(enumerate(layers.labels)))}
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES:
            continue
        number = re.match(r"(\d+)_", path.name)
        class_ = int(number[1]) if number else _of_folder(path.parent.name, by_name)
        if class_ is not None and class_ < layers.num_classes:
            found.append((path, class_))
    return found


def _of_folder(name: str, by_name: Mapping[str, int]) -> int | None:
    if name.isdecimal():
        return int(name)
    plain = _plain(name)
    return by_name.get(plain, by_name.get(plain.removesuffix("s")))


def _plain(label: str) -> str:
    return re.sub(r"[\W_]+", " ", label).strip().lower()
