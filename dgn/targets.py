"""Targets: what one picture maximises.

Everything is keyed by layer and 0-based unit, never by label: two of ImageNet's classes are called "cardigan".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What is made large: the weighted sum of units or, for a direction in the space of a layer's units, the cosine with it
# or the projection on it.
Measure = Literal["sum", "cosine", "dot"]
Mode = Literal["untrained", "pretrained"]  # of the generator: trained for each picture, or a frozen decoder
MODES: tuple[Mode, ...] = get_args(Mode)  # in the order in which they are listed everywhere


def mode_rank(mode: str) -> int:
    """Position of a mode wherever modes are sorted; unknown ones come last."""
    return MODES.index(mode) if mode in MODES else len(MODES)


@dataclass(frozen=True)
class WeightedUnit:
    """A unit, 0-based in its layer, and its weight in the objective."""

    layer: str
    unit: int
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.unit}" if self.weight == 1 else f"{self.unit}x{self.weight:g}"


Group = tuple[WeightedUnit, ...]


@dataclass(frozen=True)
class Target:
    """One picture to make: the unit or weighted units that it excites, the generator's mode, and the seed.

    Args:
        measure: `sum`; or `cosine` or `dot` if the weights are a direction in the space of the layer's units.
        name: of the direction.
        num_tries: if more than 1, its picture is the best of those of so many seeds, from `seed` on.
    """

    units: Group
    mode: Mode
    seed: int
    measure: Measure = "sum"
    name: str = ""
    num_tries: int = 1

    @property
    def layer(self) -> str:
        """The layer of the first unit."""
        return self.units[0].layer

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of all units, each once."""
        return tuple(dict.fromkeys(u.layer for u in self.units))

    @property
    def unit(self) -> int | None:
        """The unit, or None for a weighted group."""
        is_single = len(self.units) == 1 and self.units[0].weight == 1 and self.measure == "sum"
        return self.units[0].unit if is_single else None

    @property
    def is_negative(self) -> bool:
        """Whether all weights are negative: the picture is one of what silences the units."""
        return self.measure == "sum" and all(unit.weight < 0 for unit in self.units)

    @property
    def target_id(self) -> str:
        """Stable, unique in a run, and usable as a file name: `fc8-00668-untrained-s0`, `...-s1to3` for the best of
        three seeds."""
        return _target_id(self.subject, self.mode, self.seed, self.num_tries)

    @property
    def tries(self) -> list[Target]:
        """The targets of single seeds among which it is the best one."""
        return [replace(self, seed=self.seed + n, num_tries=1) for n in range(self.num_tries)]

    @property
    def subject(self) -> str:
        """What is sought, whatever the mode and the seed: `fc8-00668`."""
        if self.measure != "sum":
            digest = hashlib.sha256("_".join(map(str, self.units)).encode()).hexdigest()
            what = f"{self.layer}-{self.measure}-{self.name}-{digest[:8]}"
        elif self.unit is not None:
            what = f"{self.layer}-{self.unit:05d}"
        else:
            what = "__".join(
                f"{layer}-{'_'.join(str(u) for u in self.units if u.layer == layer)}" for layer in self.layers
            )
            if len(what) > 80:
                what = f"{self.layer}-group-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
        return what

    @property
    def stream_seed(self) -> int:
        """Seed of the target's own random stream. It depends on seed and target_id alone, so neither the batch nor the
        shard can change a picture."""
        digest = hashlib.sha256(f"{self.seed}/{self.target_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions in the space of a layer's units. An array, because units take fifty times the memory: a direction's
    are made when they are asked for.

    Args:
        names: of the directions.
        vectors_DU: (directions, units), numbers of any type; each vector has a length above 0.
    """

    layer: str
    names: tuple[str, ...]
    vectors_DU: NDArray[Any]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, which: int) -> Group:
        vector_U = of_length_1(self.vectors_DU[which])
        return tuple(WeightedUnit(self.layer, int(unit), float(vector_U[unit])) for unit in vector_U.nonzero()[0])

    @cached_property
    def sha256(self) -> str:
        """Of names and numbers as they were given, because machines differ in the last bit of a length."""
        digest = hashlib.sha256(f"{self.names} {self.vectors_DU.dtype} {self.vectors_DU.shape}".encode())
        digest.update(self.vectors_DU.tobytes())
        return digest.hexdigest()


def of_length_1(vector_U: NDArray[Any]) -> NDArray[Any]:
    """The vector divided by its length, as float64."""
    wide_U = vector_U.astype("float64")
    return wide_U / math.sqrt(wide_U.dot(wide_U))


@dataclass(frozen=True)
class TargetBlock:
    """Targets of one layer and mode: every group with every seed, in that order. Each is created when asked for.

    Args:
        num_tries: of each target, which then has one seed.
    """

    layer: str
    groups: tuple[Group, ...] | Directions
    mode: Mode
    first_seed: int
    num_seeds: int
    measure: Measure = "sum"
    num_tries: int = 1

    def __len__(self) -> int:
        return len(self.groups) * self.num_seeds

    def target(self, i: int) -> Target:
        which, seed = divmod(i, self.num_seeds)
        name = self.groups.names[which] if isinstance(self.groups, Directions) else ""
        return Target(self.groups[which], self.mode, self.first_seed + seed, self.measure, name, self.num_tries)

    def target_ids(self, start: int, stop: int) -> Iterator[str]:
        """Those of the targets [start, stop). A group's part of them is made once for all its seeds."""
        subject, group = "", -1
        for i in range(start, stop):
            which, seed = divmod(i, self.num_seeds)
            if which != group:
                subject, group = self.target(i).subject, which
            yield _target_id(subject, self.mode, self.first_seed + seed, self.num_tries)

    def __iter__(self) -> Iterator[Target]:
        return (self.target(i) for i in range(len(self)))


def _target_id(subject: str, mode: Mode, seed: int, num_tries: int) -> str:
    last = f"to{seed + num_tries - 1}" if num_tries > 1 else ""
    return f"{subject}-{mode}-s{seed}{last}"
