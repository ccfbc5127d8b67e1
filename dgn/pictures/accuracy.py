"""A network's own accuracy on photographs with known classes: whether it sees them as it was trained to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
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

AnyPath = TypeVar("AnyPath", bound=PurePath)

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
    num_without_class: int  # photographs in the folder that were left out
    num_unreadable: int  # that were left out too, of those looked at
    first: float
    top5: float
    # A usual preprocessing that gives a higher share of first ranks, and that share; None if there is none.
    better: tuple[Mapping[str, Any], float] | None


@dataclass(frozen=True)
class Labelled:
    """Photographs with known classes: at most 150 of a folder's, evenly spread."""

    pictures: list[NDArray[np.uint8]]  # (256, 256, 3) each
    classes: list[int]
    num_without_class: int  # photographs in the folder that were left out
    num_unreadable: int  # that were left out too, of those looked at


def labelled_photographs(folder: Path, layers: Layers) -> Labelled:
    """Photographs in folders that are named as a network's classes, or by their numbers; if none is, with names that
    begin with their class's number (`668_mosque.jpg`).

    Raises: DgnError if there are none, or the network has no classes.
    """
    layers.classes()
    if layers.num_classes == 1:
        raise DgnError(f"{layers.network} has one class: expected two or more, of which one can be first")
    found, num_without_class = _labelled(folder, layers)
    if not found:
        raise DgnError(
            f"{folder} has no photographs with a class: expected folders named as the {layers.num_classes} classes, or "
            "names such as 668_mosque.jpg"
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
    return Labelled(pictures, classes, num_without_class, len(chosen) - len(classes))


def measure_accuracy(weights: NetworkWeights, folder: Path, engine: Engine | None = None) -> Accuracy:
    """The network's accuracy as it is described, and whether another preprocessing would serve it better.

    Args:
        folder: as for `labelled_photographs`, which see for errors.
    """
    photographs = labelled_photographs(folder, weights.network.layers)
    pictures, classes = photographs.pictures, photographs.classes
    margin = round(pictures[0].shape[0] * (1 - CROPPED) / 2)
    images = as_tensor(pictures)[..., margin:-margin, margin:-margin] / 255
    is_first_N, is_top5_N = right_ranks(weights, images, classes, engine)
    better = None
    for settings in COMMON:
        if weights.network.layers.num_channels == 1 and not isinstance(settings["mean"], float):
            continue
        other_N, _ = right_ranks(_seen_as(weights, settings), images, classes, engine)
        gained, lost = (other_N & ~is_first_N).sum().item(), (is_first_N & ~other_N).sum().item()
        share = _share(other_N)
        if gained - lost > DEVIATIONS * (gained + lost) ** 0.5 and share > (better[1] if better else 0):
            better = settings, share
    left_out = photographs.num_without_class, photographs.num_unreadable
    return Accuracy(len(classes), *left_out, _share(is_first_N), _share(is_top5_N), better)


def _share(is_right_N: Tensor) -> float:
    return is_right_N.float().mean().item()


def _seen_as(weights: NetworkWeights, settings: Mapping[str, Any]) -> NetworkWeights:
    return replace(weights, network=weights.network.with_settings(**settings))


def right_ranks(
    weights: NetworkWeights, images_N3HW: Tensor, classes: Sequence[int], engine: Engine | None
) -> tuple[Tensor, Tensor]:
    """Whether each photograph's class is first, and among the first five: (N,) both."""
    network = FrozenNetwork(weights, engine)
    layer, size = network.layers.classes(), network.engine.scoring_batch_size
    values = [network.scores(images, layer)[1] for images in resized(images_N3HW, network.size_px).split(size)]
    order = torch.cat([each for each in values if each is not None]).cpu().argsort(1, descending=True)[:, :5]
    is_right = order == torch.tensor(classes)[:, None]
    return is_right[:, 0], is_right.any(1)


def _labelled(folder: Path, layers: Layers) -> tuple[list[tuple[Path, int]], int]:
    """Photographs with their classes, in order, and how many have none.

    If any of the folders below `folder` is a class, folders alone decide: a number at the start of a name may then
    count the photographs.
    """
    if not folder.is_dir():
        raise DgnError(f"no folder of photographs at {folder}")
    photographs = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    folders = classes_of_folders({path.parent for path in photographs} - {folder}, layers)
    found = [(path, folders[path.parent]) for path in photographs if path.parent in folders]
    if not found:
        numbered = [(path, int(number[1])) for path in photographs if (number := re.match(r"(\d+)_", path.name))]
        found = [(path, class_) for path, class_ in numbered if class_ < layers.num_classes]
    return found, len(photographs) - len(found)


def classes_of_folders(folders: Iterable[AnyPath], layers: Layers) -> dict[AnyPath, int]:
    """By their names: labels, or numbers of classes unless the labels are numbers too."""
    by_label = {_plain(label): number for number, label in reversed(list(enumerate(layers.labels)))}
    numbers = {} if any(map(str.isdecimal, layers.labels)) else {str(n): n for n in range(layers.num_classes)}
    found = {}
    for folder in folders:
        plain = _plain(folder.name)
        class_ = by_label.get(plain, by_label.get(plain.removesuffix("s"), numbers.get(plain.lstrip("0") or "0")))
        if class_ is not None:
            found[folder] = class_
    return found


def folders_of_classes(photographs: Iterable[str], layers: Layers) -> dict[str, int]:
    """Classes by the paths of the photographs' folders, see `classes_of_folders`."""
    if layers.class_layer is None:
        return {}
    folders = {PurePosixPath(name).parent for name in photographs} - {PurePosixPath(".")}
    return {str(folder): class_ for folder, class_ in classes_of_folders(folders, layers).items()}


def _plain(label: str) -> str:
    return re.sub(r"[\W_]+", " ", label).strip().lower()
