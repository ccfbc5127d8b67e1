"""A second opinion on saved pictures: an independent network's, and the network's own after small distortions.

The network made a picture until it liked it, so its own rank proves little. Pictures are uint8 RGB,
(N, 3, H, W), of the size that the network sees; a judge sees them at its own.
A judge is the independent network, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgn.errors import DgnError
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.layers import Layers
from dgn.networks.weights import NetworkWeights
from dgn.pictures.distortions import DISTORTIONS
from dgn.pictures.scoring import Scores, score
from dgn.targets import Target


@dataclass(frozen=True)
class Opinion:
    """The second opinion on one picture."""

    by_judge: Scores | None  # None for targets in other layers than the classes': the judge has no such unit
    after: dict[str, Scores]  # the network's own, by distortion


def check_independent(judge: NetworkWeights, own: NetworkWeights) -> str:
    """Returns: what people should know because labels are missing; empty if the classes are known to be the same.

    Raises: DgnError if the judge is the network itself, or was trained on other classes.
    """
    is_same_file = judge.sha256 == own.sha256
    if is_same_file or (judge.network.name == own.network.name and _are_equal(judge.state, own.state)):
        raise DgnError(
            f"{judge.source} is the network that made these pictures: expected another network as judge, or other "
            "weights"
        )
    theirs, ours = judge.network.layers, own.network.layers
    unlabelled = [layers.network for layers in (theirs, ours) if layers.num_classes and not layers.labels]
    if theirs.num_classes != ours.num_classes or (theirs.labels != ours.labels and not unlabelled):
        unit = next((u for u, (a, b) in enumerate(zip(theirs.labels, ours.labels, strict=False)) if a != b), None)
        differing = (
            f"; class {unit} is {theirs.labels[unit]} there and {ours.labels[unit]} here" if unit is not None else ""
        )
        raise DgnError(
            f"{judge.network.name} cannot judge {own.network.name}: it has other classes ({theirs.num_classes} there, "
            f"{ours.num_classes} here{differing}); expected a network that was trained on the same classes, with the "
            "same labels"
        )
    if not unlabelled:
        return ""
    names = list(dict.fromkeys(unlabelled))
    have = "has" if len(names) == 1 else "have"
    return f"{' and '.join(names)} {have} no labels: dgn cannot check that the classes are the same, in the same order"


def _are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def opinions(
    pictures_N3HW: Tensor, targets: Sequence[Target], own: FrozenNetwork, judge: FrozenNetwork
) -> list[Opinion]:
    """One opinion per picture. Both networks should be float32 ones."""
    seen = judged(pictures_N3HW, targets, own.layers, judge)
    after = {name: score(distort(pictures_N3HW), targets, own) for name, distort in DISTORTIONS.items()}
    return [Opinion(seen[n], {name: scores[n] for name, scores in after.items()}) for n in range(len(targets))]


def judged(
    pictures_N3HW: Tensor, targets: Sequence[Target], layers: Layers, judge: FrozenNetwork
) -> list[Scores | None]:
    """The judge's scores of the same classes; None for targets that are not classes of `layers`."""
    class_layer = judge.layers.class_layer
    theirs = {
        n: replace(target, units=tuple(replace(unit, layer=class_layer) for unit in target.units))
        for n, target in enumerate(targets)
        if class_layer is not None and target.layers == (layers.class_layer,) and target.measure == "sum"
    }
    if not theirs:
        return [None] * len(targets)
    scores = dict(zip(theirs, score(pictures_N3HW[list(theirs)], list(theirs.values()), judge), strict=True))
    return [scores.get(n) for n in range(len(targets))]
