"""A second opinion on saved pictures: an independent network's, and the network's own after small distortions.

The network made a picture until it liked it, so its own rank proves little. Pictures are uint8 RGB, (N, 3, 224, 224).
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
from dgn.networks.registry import class_labels
from dgn.networks.weights import NetworkWeights
from dgn.pictures.distortions import DISTORTIONS
from dgn.pictures.scoring import Scores, score
from dgn.targets import Target


@dataclass(frozen=True)
class Opinion:
    """The second opinion on one picture."""

    by_judge: Scores | None  # None for targets in other layers than the classes': the judge has no such unit
    after: dict[str, Scores]  # the network's own, by distortion


def check_independent(judge: NetworkWeights, own: NetworkWeights) -> None:
    """Raises: DgnError if the judge is the network itself, or was trained on other classes."""
    is_same_file = judge.sha256 == own.sha256
    if is_same_file or (judge.network == own.network and _are_equal(judge.state, own.state)):
        raise DgnError(
            f"{judge.source} is the network that made these pictures: expected another network as judge, or other "
            "weights"
        )
    theirs, ours = class_labels(judge.network), class_labels(own.network)
    if theirs != ours:
        unit = next((u for u, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), None)
        differing = f"; class {unit} is {theirs[unit]} there and {ours[unit]} here" if unit is not None else ""
        raise DgnError(
            f"{judge.network} cannot judge {own.network}: it has other classes ({len(theirs)} there, {len(ours)} here"
            f"{differing}); expected a network that was trained on the same classes"
        )


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
    theirs = {
        n: replace(target, units=tuple(replace(unit, layer=judge.layers.class_layer) for unit in target.units))
        for n, target in enumerate(targets)
        if target.layers == (layers.class_layer,)
    }
    if not theirs:
        return [None] * len(targets)
    scores = dict(zip(theirs, score(pictures_N3HW[list(theirs)], list(theirs.values()), judge), strict=True))
    return [scores.get(n) for n in range(len(targets))]
