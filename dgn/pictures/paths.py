"""The path of a picture through a network, compared with that of photographs: which units fire, layer by layer.

A picture that was made to excite a class may reach it by other units than photographs of the class do (Geirhos et al.,
"Don't trust your eyes", ICML 2024). Units are measured as filters are: a map's mean after the ReLU.

Shapes: N pictures, U units of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dgn.errors import DgnError
from dgn.method.objectives import unit_values
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.layers import Layers

Item = TypeVar("Item")

MOST_LAYERS = 64  # that are compared, because the maps of all of them are in memory at a time
RARELY = 0.05  # share of a class's photographs
NUM_UNITS, NUM_PHOTOGRAPHS = 6, 3  # that are named of a picture, and of a unit


def path_layers(layers: Layers) -> tuple[str, ...]:
    """The layers of filters, at most MOST_LAYERS, evenly spread over the depth. Raises: DgnError if there are none."""
    if not layers.filter_layers:
        raise DgnError(f"{layers.network} has no convolutions whose units could be compared along its depth")
    return evenly(layers.filter_layers, MOST_LAYERS)


def evenly(items: Sequence[Item], most: int) -> tuple[Item, ...]:
    """At most `most` of them, the first and the last among these, evenly spread."""
    count = min(len(items), most)
    return tuple(items[round(n * (len(items) - 1) / max(count - 1, 1))] for n in range(count))


@dataclass(frozen=True, eq=False)
class Paths:
    """What units do on N pictures: by layer, in order of depth, activations and their ranks (see `ranked`), (N, U)
    both."""

    activations: Mapping[str, NDArray[np.float32]]
    ranks: Mapping[str, NDArray[np.float32]]

    @classmethod
    def of(cls, images_N3HW: Tensor, network: FrozenNetwork, layers: Sequence[str]) -> Paths:
        """Of pictures in [0, 1]."""
        responses, _ = network.all_scores(images_N3HW, layers)
        return cls.with_ranks({layer: unit_values(responses[layer]).activation.cpu().numpy() for layer in layers})

    @classmethod
    def with_ranks(cls, activations: Mapping[str, NDArray[np.float32]]) -> Paths:
        return cls(activations, {layer: ranked(values_NU) for layer, values_NU in activations.items()})

    @classmethod
    def joined(cls, parts: Sequence[Paths]) -> Paths:
        return cls(
            {layer: np.concatenate([one.activations[layer] for one in parts]) for layer in parts[0].activations},
            {layer: np.concatenate([one.ranks[layer] for one in parts]) for layer in parts[0].ranks},
        )

    def take(self, chosen: NDArray[np.bool_] | Sequence[int]) -> Paths:
        """Those of some of the pictures."""
        activations = {layer: values_NU[chosen] for layer, values_NU in self.activations.items()}
        return Paths(activations, {layer: ranks_NU[chosen] for layer, ranks_NU in self.ranks.items()})


def ranked(values_NU: NDArray[np.float32]) -> NDArray[np.float32]:
    """Ranks of a layer's units for each picture, (N, U): centred and of length 1, so that the product of two rows is
    Spearman's rank correlation. Equal values share their mean rank; a row of equal values alone becomes 0."""
    ranks_NU = np.empty(values_NU.shape)
    for n, values_U in enumerate(values_NU):
        _, places, counts = np.unique(values_U, return_inverse=True, return_counts=True)
        ranks_NU[n] = (counts.cumsum() - (counts - 1) / 2)[places]
    centred_NU = ranks_NU - ranks_NU.mean(1, keepdims=True)
    lengths_N1 = np.linalg.norm(centred_NU, axis=1, keepdims=True)
    return (centred_NU / np.where(lengths_N1 > 0, lengths_N1, 1)).astype(np.float32)


@dataclass(frozen=True)
class Similarity:
    """Mean rank correlations along the depth, one per layer: of the picture with photographs of its class, of these
    with each other, and of these with photographs of other classes."""

    picture: tuple[float, ...]
    same: tuple[float, ...]
    other: tuple[float, ...]

    @property
    def normalised(self) -> float | None:
        """1 if the picture's path is as similar to photographs of its class as they are to each other; 0 if only as
        similar as photographs of other classes. None if photographs of the class are not more similar to each other.

        Differs from the paper: the sums over all layers are compared, not each layer, because in early layers of
        single classes the two kinds of photographs hardly differ.
        """
        span = sum(self.same) - sum(self.other)
        return (sum(self.picture) - sum(self.other)) / span if span > 0 else None


@dataclass(frozen=True)
class Unit:
    """A unit that fires on a picture and rarely on photographs of its class.

    Args:
        share, share_of_others: of the class's photographs, and of others, that excite the unit at least as much.
        deviations: by which it is above its mean on photographs of the class: standard deviations over all
            photographs, the unit's own or that of the layer's average unit, whichever is larger.
        photographs: numbers of those of other classes that excite it most, the strongest first.
    """

    layer: str
    unit: int
    activation: float
    share: float
    share_of_others: float
    deviations: float
    photographs: tuple[int, ...]


class Reference:
    """Photographs of a class, and of others, with which pictures of the class are compared.

    Args:
        own: of at least two photographs.
        others: of at least one.
    """

    def __init__(self, own: Paths, others: Paths):
        self.own, self.others = own, others
        self._mean_rank = {layer: ranks_NU.mean(0, dtype=np.float64) for layer, ranks_NU in own.ranks.items()}
        self._same = tuple(_mean_of_pairs(ranks_NU) for ranks_NU in own.ranks.values())
        self._other = tuple(float(others.ranks[layer].mean(0) @ mean_U) for layer, mean_U in self._mean_rank.items())

    def similarity(self, picture: Paths) -> Similarity:
        """Of one picture."""
        own = tuple(float(picture.ranks[layer][0] @ mean_U) for layer, mean_U in self._mean_rank.items())
        return Similarity(own, self._same, self._other)

    def unusual(self, picture: Paths) -> float:
        """Share of all units that at most RARELY of the class's photographs excite as much as the picture does."""
        rare = [
            share_at_least(picture.activations[layer][0], own_NU) <= RARELY
            for layer, own_NU in self.own.activations.items()
        ]
        return float(np.concatenate(rare).mean())

    @property
    def usual(self) -> float:
        """What to expect at most of `unusual` for another photograph of the class. It is as likely to be at any place
        among the N photographs as each of them, and unusual at the first floor(N * RARELY) + 1 of N + 1 places; where
        a unit is silent on several photographs, at fewer."""
        num = len(next(iter(self.own.activations.values())))
        return (math.floor(num * RARELY) + 1) / (num + 1)

    def units(self, picture: Paths) -> list[Unit]:
        """At most NUM_UNITS, the one of the most deviations first."""
        found = [unit for layer in picture.activations for unit in self._units_of(layer, picture)]
        return sorted(found, key=lambda unit: -unit.deviations)[:NUM_UNITS]

    def _units_of(self, layer: str, picture: Paths) -> list[Unit]:
        """The layer's candidates, at most NUM_UNITS."""
        activation_U, own_NU = picture.activations[layer][0], self.own.activations[layer]
        others_NU = self.others.activations[layer]
        share_U = share_at_least(activation_U, own_NU)
        deviation_U = np.concatenate([own_NU, others_NU]).std(0, dtype=np.float64)
        scale_U = np.maximum(deviation_U, deviation_U.mean())
        above_U = (activation_U - own_NU.mean(0, dtype=np.float64)) / np.where(scale_U > 0, scale_U, 1)
        candidate_U = np.where((share_U <= RARELY) & (above_U > 0), above_U, 0)
        best = [u for u in np.argsort(-candidate_U, kind="stable")[:NUM_UNITS].tolist() if candidate_U[u] > 0]
        other_share_U = share_at_least(activation_U, others_NU)
        return [
            Unit(
                layer, u, float(activation_U[u]), float(share_U[u]), float(other_share_U[u]), float(above_U[u]),
                _strongest(others_NU[:, u]),
            )
            for u in best
        ]  # fmt: skip


def share_at_least(activation_U: NDArray[np.float32], photographs_NU: NDArray[np.float32]) -> NDArray[np.float64]:
    """Share of the photographs that excite each unit at least as much, (U,)."""
    return (photographs_NU >= activation_U).mean(0)


def _mean_of_pairs(ranks_NU: NDArray[np.float32]) -> float:
    """The mean product of two different rows: what is left of the product of sums without each row's with itself."""
    total_U, count = ranks_NU.sum(0, dtype=np.float64), len(ranks_NU)
    return float((total_U @ total_U - (ranks_NU.astype(np.float64) ** 2).sum()) / (count * (count - 1)))


def _strongest(activation_N: NDArray[np.float32]) -> tuple[int, ...]:
    order = np.argsort(-activation_N, kind="stable")[:NUM_PHOTOGRAPHS].tolist()
    return tuple(n for n in order if activation_N[n] > 0)
