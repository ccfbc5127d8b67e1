"""What one picture maximises, and how people write sets of them.

Everything is keyed by layer and 0-based unit, never by label: ImageNet has two cardigans, a garment and a dog.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from dgn.errors import TargetError

Mode = Literal["untrained", "pretrained"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class WeightedUnit:
    layer: str
    unit: int
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.unit}" if self.weight == 1 else f"{self.unit}x{self.weight:g}"


Group = tuple[WeightedUnit, ...]


@dataclass(frozen=True)
class Target:
    """One picture to be made: the unit or weighted units that it excites, the mode of G, and the seed.

    `stream_seed` starts the target's own random stream; it depends on nothing but seed and target_id, so neither
    batch nor shard can change a picture.
    """

    units: Group
    mode: Mode
    seed: int

    @property
    def layer(self) -> str:
        return self.units[0].layer

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(u.layer for u in self.units))

    @property
    def unit(self) -> int | None:
        """The unit, or None where the target is a weighted group."""
        is_single = len(self.units) == 1 and self.units[0].weight == 1
        return self.units[0].unit if is_single else None

    @property
    def target_id(self) -> str:
        """Stable, unique in a run, and fit to be a file name: `fc8-00668-untrained-s0`."""
        if self.unit is not None:
            what = f"{self.layer}-{self.unit:05d}"
        else:
            what = "__".join(
                f"{layer}-{'_'.join(str(u) for u in self.units if u.layer == layer)}" for layer in self.layers
            )
            if len(what) > 80:
                what = f"{self.layer}-group-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
        return f"{what}-{self.mode}-s{self.seed}"

    @property
    def stream_seed(self) -> int:
        digest = hashlib.sha256(f"{self.seed}/{self.target_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class TargetBlock:
    """Targets of one layer and mode: every group with every seed, in that order. Targets are made one at a time."""

    layer: str
    groups: tuple[Group, ...]
    mode: Mode
    first_seed: int
    num_seeds: int

    def __len__(self) -> int:
        return len(self.groups) * self.num_seeds

    def target(self, i: int) -> Target:
        return Target(self.groups[i // self.num_seeds], self.mode, self.first_seed + i % self.num_seeds)

    def __iter__(self) -> Iterator[Target]:
        return (self.target(i) for i in range(len(self)))


@dataclass(frozen=True)
class Layout:
    """What of a network targets can name: layers in order of depth with their unit counts, and the classes' labels."""

    network: str
    units: dict[str, int]
    class_layer: str
    filter_layers: tuple[str, ...]
    labels: tuple[str, ...]
    aliases: dict[str, str]  # dotted module name -> the layer's usual name, where it has one

    def label(self, target: Target) -> str | None:
        """The class labels of the target's units, None for other layers' units."""
        if target.layers != (self.class_layer,):
            return None
        return " + ".join(self.labels[u.unit] for u in target.units)


def parse_targets(
    specs: Sequence[str], layout: Layout, modes: Sequence[str] | None, first_seed: int = 0, num_seeds: int = 1
) -> list[TargetBlock]:
    """Blocks for target specifications, in order of mode and depth; a unit named twice is one target.

    `all` (classes in both modes, all conv filters untrained; every target in `modes` where given) · `classes` ·
    `classes:0-99,668,mosque` · `filters` · `filters:conv5_1:0-31` · `mix:classes:9+30` · `group:conv5_1:3*0.5+17` ·
    `group:conv5_1:3+17,conv4_1:7`. Without `modes`, all but `all` are untrained.

    Raises: TargetError, in one line, for whatever the network does not have or names twice.
    """
    for mode in modes or ():
        if mode not in MODES:
            raise TargetError(f"unknown mode '{mode}': expected one of {', '.join(MODES)}")
    if not specs:
        raise TargetError(
            "no targets: expected for instance --targets all, classes, classes:0-99 or filters:LAYER:0-31"
        )
    if num_seeds < 1:
        raise TargetError(f"--seeds {num_seeds}: expected at least 1 picture a target")
    wanted: dict[tuple[Mode, str], dict[Group, None]] = {}

    def add(layer: str, groups: Sequence[Group], default_modes: Sequence[str]) -> None:
        for mode in modes or default_modes:
            wanted.setdefault((mode, layer), {}).update(dict.fromkeys(groups))  # type: ignore[arg-type]

    for spec in specs:
        kind, _, rest = spec.partition(":")
        if spec == "all":
            add(layout.class_layer, _singles(layout.class_layer, _all_units(layout, layout.class_layer)), MODES)
        if spec in ("all", "filters"):
            for layer in layout.filter_layers:
                add(layer, _singles(layer, _all_units(layout, layer)), ("untrained",))
        elif kind == "classes":
            units = _parse_classes(rest, layout, spec) if ":" in spec else _all_units(layout, layout.class_layer)
            add(layout.class_layer, _singles(layout.class_layer, units), ("untrained",))
        elif kind == "filters":
            layer, _, selection = rest.partition(":")
            layer = _check_layer(layer, layout, spec)
            units = _parse_units(selection, layer, layout, spec) if ":" in rest else _all_units(layout, layer)
            add(layer, _singles(layer, units), ("untrained",))
        elif kind == "mix" and rest.startswith("classes:"):
            group = _parse_group(layout.class_layer, rest.removeprefix("classes:"), layout, spec)
            add(layout.class_layer, [group], ("untrained",))
        elif kind == "group" and ":" in rest:
            parts = [part.partition(":") for part in rest.split(",")]
            group = tuple(u for layer, _, units in parts for u in _parse_group(layer, units, layout, spec))
            add(group[0].layer, [group], ("untrained",))
        else:
            raise TargetError(
                f"unknown target '{spec}': expected all, classes, classes:0-99, classes:LABEL, filters, "
                "filters:LAYER:0-31, mix:classes:9+30 or group:LAYER:3*0.5+17"
            )
    depth = {layer: i for i, layer in enumerate(layout.units)}
    keys = sorted(wanted, key=lambda key: (MODES.index(key[0]), depth[key[1]]))
    return [TargetBlock(layer, tuple(wanted[mode, layer]), mode, first_seed, num_seeds) for mode, layer in keys]


def _singles(layer: str, units: Sequence[int]) -> list[Group]:
    return [(WeightedUnit(layer, unit),) for unit in units]


def _all_units(layout: Layout, layer: str) -> range:
    return range(layout.units[layer])


def _check_layer(layer: str, layout: Layout, spec: str) -> str:
    layer = layout.aliases.get(layer, layer)
    if layer not in layout.units:
        raise TargetError(
            f"unknown layer '{layer}' in '{spec}': {layout.network} has {_some(list(layout.units))} "
            "(all of them: dgn info --layers)"
        )
    return layer


def _check_unit(unit: int, layer: str, layout: Layout, spec: str) -> int:
    if not 0 <= unit < layout.units[layer]:
        raise TargetError(
            f"unknown unit {unit} in '{spec}': {layer} of {layout.network} has units 0 to {layout.units[layer] - 1}"
        )
    return unit


def _parse_units(text: str, layer: str, layout: Layout, spec: str) -> list[int]:
    units: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not match:
            raise TargetError(f"unknown unit '{part}' in '{spec}': expected a number or a range such as 0-31")
        first = _check_unit(int(match[1]), layer, layout, spec)
        last = _check_unit(int(match[2] or match[1]), layer, layout, spec)
        if last < first:
            raise TargetError(f"empty range '{part}' in '{spec}': expected the smaller number first")
        units += range(first, last + 1)
    return units


def _parse_classes(text: str, layout: Layout, spec: str) -> list[int]:
    units: list[int] = []
    for part in (p.strip() for p in text.split(",")):
        if re.fullmatch(r"\d+(-\d+)?", part):
            units += _parse_units(part, layout.class_layer, layout, spec)
        else:
            units.append(_class_by_label(part, layout, spec))
    return units


def _class_by_label(label: str, layout: Layout, spec: str) -> int:
    found = [i for i, known in enumerate(layout.labels) if known.lower() == label.lower()]
    if len(found) > 1:
        numbers = " and ".join(map(str, found))
        raise TargetError(f"label '{label}' in '{spec}' names {len(found)} classes, {numbers}: give the number instead")
    if not found:
        near = difflib.get_close_matches(label.lower(), [known.lower() for known in layout.labels], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {_some(layout.labels)}"
        raise TargetError(f"unknown class '{label}' in '{spec}': {layout.network} has no such label; {hint}")
    return found[0]


def _parse_group(layer: str, text: str, layout: Layout, spec: str) -> Group:
    layer = _check_layer(layer, layout, spec)
    group: dict[int, WeightedUnit] = {}
    for part in text.split("+"):
        match = re.fullmatch(r"\s*(\d+)(?:\*(-?\d+(?:\.\d+)?))?\s*", part)
        if not match or (match[2] and float(match[2]) == 0):
            raise TargetError(f"unknown unit '{part}' in '{spec}': expected UNIT or UNIT*WEIGHT, joined by +")
        unit = _check_unit(int(match[1]), layer, layout, spec)
        if unit in group:
            raise TargetError(f"unit {unit} stands twice in '{spec}': give it one weight")
        group[unit] = WeightedUnit(layer, unit, float(match[2] or 1))
    return tuple(group.values())


def _some(names: Sequence[str], at_most: int = 6) -> str:
    return ", ".join(names[:at_most]) + (f", ... ({len(names)} in all)" if len(names) > at_most else "")
