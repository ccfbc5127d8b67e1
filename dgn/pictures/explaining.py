"""Explanations: the filters that speak most for a network's answer to a photograph.

Paper: section 5.3, a set of weighted filters as one target, and the outlook: a selection of features before it.
Shapes: U units of a layer, H, W its map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dgn.errors import DgnError, TargetError
from dgn.method.objectives import unit_values
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.layers import Layers
from dgn.networks.specs import parse_targets
from dgn.pictures.attribution import shortlist, silenced
from dgn.pictures.examples import box_around
from dgn.pictures.scoring import probabilities
from dgn.targets import Group, Mode, Target, WeightedUnit
from dgn.text import near

NUM_ANSWERS = 3
SHORTLIST = 4  # times as many filters as are asked for, each of which is silenced
LEAST_FALL = 1e-5  # of the class's value: what is less may be float32's rounding
LEAST_WEIGHT = 0.001


@dataclass(frozen=True, eq=False)
class Photograph:
    """What the network sees of it: (H, W, 3) RGB, writable, as PyTorch wants it."""

    name: str
    sha256: str
    seen_HW3: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Evidence:
    """A filter that speaks for the class, or the weighted group of all that are shown of a layer.

    Args:
        weight: in the group; None for the group.
        fall: what the class's value loses when it is silenced, the group's filters all at once.
        probability_without: of the class then; None if the output gives none.
        activation: on the photograph, averaged over its map; of a group, the weighted sum.
        map_HW: where it responds, 255 at its strongest; None without a map.
    """

    units: Group
    weight: float | None
    fall: float
    probability_without: float | None
    activation: float
    map_HW: NDArray[np.uint8] | None

    @property
    def layer(self) -> str:
        return self.units[0].layer

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """Around its strongest response, see `box_around`."""
        return None if self.map_HW is None else box_around(int(self.map_HW.argmax()), *self.map_HW.shape)

    def target(self, mode: Mode, seed: int) -> Target:
        return Target(self.units, mode, seed)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What speaks for a class on one photograph.

    Args:
        answers: the classes that the network puts first, with their probabilities if its output gives any.
        evidence: by layer, the strongest first and the group last; a single filter has no group, and a layer where
            nothing speaks for the class has nothing.
    """

    photograph: Photograph
    class_: int
    value: float
    probability: float | None
    answers: tuple[tuple[int, float | None], ...]
    evidence: Mapping[str, tuple[Evidence, ...]]


def chosen_layers(asked: Sequence[str] | None, layers: Layers) -> tuple[str, ...]:
    """The filter layers that are asked for, or the last one and the one in the middle, in order of depth.

    Raises: TargetError for other layers; DgnError if the network has none.
    """
    filters = layers.filter_layers
    if not filters:
        raise DgnError(f"{layers.network} has no filters that could speak for a class: none of its layers is a "
                       "convolution")  # fmt: skip
    if asked is None:
        return tuple(dict.fromkeys((filters[len(filters) // 2], filters[-1])))
    chosen = []
    for name in asked:
        layer = layers.aliases.get(name, name)
        layer = layers.norms.get(layer, layer)
        if layer not in filters:
            what = "is not a filter layer" if layer in layers.units else "is not a layer"
            raise TargetError(f"'{name}' {what} of {layers.network}; {near(name, filters, 'its filter layers are')}")
        chosen.append(layer)
    return tuple(sorted(dict.fromkeys(chosen), key=filters.index))


def chosen_class(asked: str | None, layers: Layers) -> int | None:
    """The class that is asked for by number or label; None for the network's own answer.

    Raises: TargetError if the network has no such class; DgnError if it has to be asked for.
    """
    layers.classes()
    if asked is None:
        if layers.output == "none":
            raise DgnError(
                f"the output of {layers.network} gives no probabilities, so none of its {layers.num_classes:,} values "
                "is its answer: name the one to explain with --class"
            )
        return None
    [block] = parse_targets([f"classes:{asked}"], layers, None)
    if len(block) > 1:
        raise TargetError(f"--class {asked} names {len(block)} classes: expected one, its number or label")
    return block.target(0).unit


def explain(
    network: FrozenNetwork, photograph: Photograph, layers: Sequence[str], class_: int | None, top: int
) -> Explanation:
    """What speaks for a class, or for the network's answer, on a photograph.

    Args:
        top: filters per layer, at most; only those that speak for the class are shown.
    """
    image_3HW = torch.from_numpy(photograph.seen_HW3).permute(2, 0, 1) / 255
    responses, values_NC = network.all_scores(image_3HW[None], layers)
    assert values_NC is not None
    probability_NC = probabilities(values_NC.cpu().double().numpy(), network.layers)
    order = values_NC[0].argsort(descending=True)[:NUM_ANSWERS].tolist()
    answers = tuple((one, None if probability_NC is None else float(probability_NC[0, one])) for one in order)
    answer = order[0] if class_ is None else class_
    with network.running(1):
        value = float(network.changed_class_values(image_3HW[None], {})[0, answer])
    return Explanation(
        photograph=photograph,
        class_=answer,
        value=value,
        probability=None if probability_NC is None else float(probability_NC[0, answer]),
        answers=answers,
        evidence={
            layer: _evidence(network, image_3HW, answer, value, layer, responses[layer], top) for layer in layers
        },
    )


def _evidence(
    network: FrozenNetwork, image_3HW: Tensor, class_: int, value: float, layer: str, response: Tensor, top: int
) -> tuple[Evidence, ...]:
    """The layer's filters of the largest falls, which are measured for a shortlist, and their group."""
    activation_U = unit_values(response).activation[0].double().cpu()
    units = [unit for unit in shortlist(network, image_3HW, layer, class_, SHORTLIST * top) if activation_U[unit] > 0]
    measured_NC = silenced(network, image_3HW, layer, [(), *((unit,) for unit in units)])
    falls = measured_NC[0, class_] - measured_NC[1:, class_]
    order = falls.argsort(descending=True, stable=True)[:top].tolist()
    largest = [n for n in order if falls[n] > LEAST_FALL * abs(value)]
    if not largest:
        return ()
    peak_U = F.relu(response[0]).reshape(len(activation_U), -1).amax(1).double().cpu()
    weights = _weights([float(falls[n] / peak_U[units[n]]) for n in largest])
    together = tuple(WeightedUnit(layer, units[n], weight) for n, weight in zip(largest, weights, strict=True))
    groups: list[Group] = [(replace(one, weight=1.0),) for one in together]
    values_NC = measured_NC[[n + 1 for n in largest]]
    if len(together) > 1:
        groups.append(together)
        values_NC = torch.cat([values_NC, silenced(network, image_3HW, layer, [[one.unit for one in together]])])
    probability_NC = probabilities(values_NC.numpy(), replace(network.layers, is_probability=False))
    return tuple(
        Evidence(
            units=group,
            weight=weights[n] if n < len(together) else None,
            fall=float(measured_NC[0, class_] - values_NC[n, class_]),
            probability_without=None if probability_NC is None else float(probability_NC[n, class_]),
            activation=sum(one.weight * float(activation_U[one.unit]) for one in group),
            map_HW=_map(response[0], group),
        )
        for n, group in enumerate(groups)
    )


def _weights(gains: Sequence[float]) -> list[float]:
    """Weights of a group, the largest 1, with two digits, at least LEAST_WEIGHT: falls per strongest response. In a
    picture all over which each filter responds as at its strongest place on the photograph, each then counts by its
    fall.

    With the mean response in its stead, a filter that responds in one place alone would rule the group's picture.
    """
    return [max(LEAST_WEIGHT, float(f"{gain / max(gains):.2g}")) for gain in gains]


def _map(response_UHW: Tensor, group: Group) -> NDArray[np.uint8] | None:
    """Where the group responds, 255 at its strongest; None without a map."""
    if response_UHW.ndim != 3:
        return None
    wanted_U = torch.tensor([one.weight for one in group], dtype=torch.float64)
    activation_UHW = F.relu(response_UHW[[one.unit for one in group]]).double().cpu()
    summed_HW = (wanted_U[:, None, None] * activation_UHW).sum(0)
    return (summed_HW / summed_HW.max() * 255).round().byte().numpy()
