"""A second opinion on saved pictures: of an independent network, and of D itself after small harms.

D made a picture until it liked it, so D's own rank proves little. Pictures are uint8, RGB, (N, 3, 224, 224).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgn.discriminator import Discriminator, FrozenWeights, class_labels
from dgn.distort import DISTORTIONS
from dgn.errors import DgnError
from dgn.picture import Scores, score
from dgn.targets import Layout, Target


@dataclass(frozen=True)
class Opinion:
    """On one picture. `by_judge` is None where its target is not of classes: another network has no such unit."""

    by_judge: Scores | None
    after: dict[str, Scores]  # D's own, by distortion


def check_independent(judge: FrozenWeights, own: FrozenWeights) -> None:
    """Raises: DgnError where the judge is D itself, or was taught other classes."""
    is_same_file = judge.sha256 == own.sha256
    if is_same_file or (judge.network == own.network and _are_equal(judge.state, own.state)):
        raise DgnError(
            f"{judge.source} is the network that made these pictures: expected another one as judge, or one of other "
            "weights"
        )
    theirs, ours = class_labels(judge.network), class_labels(own.network)
    if theirs != ours:
        unit = next((u for u, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), None)
        differing = f"; class {unit} is {theirs[unit]} there, {ours[unit]} here" if unit is not None else ""
        raise DgnError(
            f"{judge.network} cannot judge {own.network}: it has other classes ({len(theirs)} there, {len(ours)} here"
            f"{differing}); expected a network that was taught the same ones"
        )


def _are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def opinions(
    pictures_N3HW: Tensor, targets: Sequence[Target], own: Discriminator, judge: Discriminator
) -> list[Opinion]:
    """Both networks should be float32 ones."""
    seen = judged(pictures_N3HW, targets, own.layout, judge)
    after = {name: score(distort(pictures_N3HW) / 255, targets, own) for name, distort in DISTORTIONS.items()}
    return [Opinion(seen[n], {name: scores[n] for name, scores in after.items()}) for n in range(len(targets))]


def judged(
    pictures_N3HW: Tensor, targets: Sequence[Target], layout: Layout, judge: Discriminator
) -> list[Scores | None]:
    """The judge's scores of the same classes. `layout`: D's, which the targets are of."""
    theirs = {
        n: replace(target, units=tuple(replace(unit, layer=judge.layout.class_layer) for unit in target.units))
        for n, target in enumerate(targets)
        if target.layers == (layout.class_layer,)
    }
    if not theirs:
        return [None] * len(targets)
    scores = dict(zip(theirs, score(pictures_N3HW[list(theirs)] / 255, list(theirs.values()), judge), strict=True))
    return [scores.get(n) for n in range(len(targets))]
