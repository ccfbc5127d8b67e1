"""How people write sets of targets: `all`, `classes:0-99,mosque`, `filters:conv5_1:0-31`, `mix:classes:9+30`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import get_args

from dgn.errors import TargetError
from dgn.networks.directions import NamedVector, read_directions, stacked
from dgn.networks.layers import Layers
from dgn.targets import MODES, Group, Measure, Mode, Target, TargetBlock, WeightedUnit
from dgn.text import near


def parse_targets(
    specs: Sequence[str], layers: Layers, modes: Sequence[str] | None, first_seed: int = 0, num_seeds: int = 1
) -> list[TargetBlock]:
    """Blocks of targets, in order of mode and depth. A unit that is named twice is one target.

    Args:
        specs: any of `all`, `classes`, `classes:0-99,668,mosque`, `filters`, `filters:conv5_1:0-31`,
            `mix:classes:9+30`, `group:conv5_1:3*0.5+17`, `group:conv5_1:3+17,conv4_1:7`, `raw:features.0.0:0-31`.
            `filters` are what convolutions pass on: after a batch norm if one follows, whose negative scale would turn
            the most into the least. `raw` is the layer itself. `direction:conv5_1:FILE.npy` and
            `direction:conv5_1:FILE.npy:dot` are the vectors in a file, of one number per unit of the layer.
        modes: for every target. Without it, targets are untrained, except that `all` has the classes in both modes.

    Raises: TargetError for what the network does not have, and for labels that several classes share.
    """
    for mode in modes or ():
        if mode not in MODES:
            raise TargetError(f"unknown mode '{mode}': expected one of {', '.join(MODES)}")
    if not specs:
        raise TargetError("no targets: expected for instance all, classes, classes:0-99 or filters:LAYER:0-31")
    assert num_seeds >= 1
    groups: dict[tuple[Mode, str], dict[Group, None]] = {}
    directions: dict[tuple[Mode, str, Measure], dict[bytes, NamedVector]] = {}

    def add(layer: str, some: Sequence[Group], default_modes: Sequence[str]) -> None:
        for mode in modes or default_modes:
            groups.setdefault((mode, layer), {}).update(dict.fromkeys(some))  # type: ignore[arg-type]

    for spec in specs:
        kind, _, rest = spec.partition(":")
        if spec == "all" and layers.class_layer is not None:
            add(layers.class_layer, _singles(layers.class_layer, _all_units(layers, layers.class_layer)), MODES)
        if spec in ("all", "filters"):
            if not layers.filter_layers and (spec == "filters" or layers.class_layer is None):
                raise TargetError(f"{layers.network} has no filters to draw: none of its layers is a convolution")
            for layer in layers.filter_layers:
                add(layer, _singles(layer, _all_units(layers, layer)), ("untrained",))
        elif kind == "classes":
            units = _parse_classes(rest, layers, spec) if ":" in spec else _all_units(layers, layers.classes())
            add(layers.classes(), _singles(layers.classes(), units), ("untrained",))
        elif kind == "filters":
            layer, _, selection = rest.partition(":")
            layer = _check_layer(layer, layers, spec)
            layer = layers.norms.get(layer, layer)
            units = _parse_units(selection, layer, layers, spec) if ":" in rest else _all_units(layers, layer)
            add(layer, _singles(layer, units), ("untrained",))
        elif kind == "raw" and ":" in rest:
            layer, _, selection = rest.partition(":")
            layer = _check_layer(layer, layers, spec)
            add(layer, _singles(layer, _parse_units(selection, layer, layers, spec)), ("untrained",))
        elif kind == "direction" and ":" in rest:
            layer, _, file = rest.partition(":")
            layer = _check_layer(layer, layers, spec)
            measure, vectors = read_directions(file, layer, layers.units[layer], spec)
            for mode in modes or ("untrained",):
                directions.setdefault((mode, layer, measure), {}).update(vectors)  # type: ignore[arg-type]
        elif kind == "mix" and rest.startswith("classes:"):
            group = _parse_group(layers.classes(), rest.removeprefix("classes:"), layers, spec)
            add(layers.classes(), [group], ("untrained",))
        elif kind == "group" and ":" in rest:
            parts = [part.partition(":") for part in rest.split(",")]
            group = tuple(u for layer, _, units in parts for u in _parse_group(layer, units, layers, spec))
            add(group[0].layer, [group], ("untrained",))
        else:
            raise TargetError(
                f"unknown target '{spec}': expected all, classes, classes:0-99, classes:LABEL, filters, "
                "filters:LAYER:0-31, raw:LAYER:0-31, mix:classes:9+30, group:LAYER:3*0.5+17 or "
                "direction:LAYER:FILE.npy"
            )
    for found in groups.values():
        _check_names(found)
    blocks = [
        TargetBlock(layer, tuple(found), mode, first_seed, num_seeds) for (mode, layer), found in groups.items()
    ] + [
        TargetBlock(layer, stacked(layer, vectors), mode, first_seed, num_seeds, measure)
        for (mode, layer, measure), vectors in directions.items()
    ]
    depth = {layer: i for i, layer in enumerate(layers.units)}
    measures = get_args(Measure)
    return sorted(blocks, key=lambda one: (MODES.index(one.mode), depth[one.layer], measures.index(one.measure)))


def _check_names(groups: Iterable[Group]) -> None:
    """Raises: TargetError if two groups would have one target_id, which has six digits of a weight."""
    named: dict[str, Group] = {}
    for group in groups:
        if len(group) > 1 or group[0].weight != 1:
            name = Target(group, "untrained", 0).subject
            if named.setdefault(name, group) != group:
                raise TargetError(
                    f"two targets would be called {name}: their weights differ after six digits, round them"
                )


def _singles(layer: str, units: Sequence[int]) -> list[Group]:
    return [(WeightedUnit(layer, unit),) for unit in units]


def _all_units(layers: Layers, layer: str) -> range:
    return range(layers.units[layer])


def _check_layer(layer: str, layers: Layers, spec: str) -> str:
    layer = layers.aliases.get(layer, layer)
    if layer not in layers.units:
        raise TargetError(
            f"unknown layer '{layer}' in '{spec}': {layers.network} has no such layer; "
            f"{near(layer, layers.units, 'it has')} "
            "(`dgn info --layers` with the same network, in Python `dgn.layers(network)`, lists all)"
        )
    return layer


def _check_unit(unit: int, layer: str, layers: Layers, spec: str) -> int:
    if not 0 <= unit < layers.units[layer]:
        raise TargetError(
            f"unknown unit {unit} in '{spec}': {layer} of {layers.network} has units 0 to {layers.units[layer] - 1}"
        )
    return unit


def _parse_units(text: str, layer: str, layers: Layers, spec: str) -> list[int]:
    units: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not match:
            raise TargetError(f"unknown unit '{part}' in '{spec}': expected a number or a range such as 0-31")
        first = _check_unit(int(match[1]), layer, layers, spec)
        last = _check_unit(int(match[2] or match[1]), layer, layers, spec)
        if last < first:
            raise TargetError(f"empty range '{part}' in '{spec}': expected the smaller number first")
        units += range(first, last + 1)
    return units


def _parse_classes(text: str, layers: Layers, spec: str) -> list[int]:
    units: list[int] = []
    for part in (p.strip() for p in text.split(",")):
        if re.fullmatch(r"\d+(-\d+)?", part):
            units += _parse_units(part, layers.classes(), layers, spec)
        else:
            units.append(_class_by_label(part, layers, spec))
    return units


def _class_by_label(label: str, layers: Layers, spec: str) -> int:
    found = [i for i, known in enumerate(layers.labels) if known.lower() == label.lower()]
    if len(found) > 1:
        numbers = " and ".join(map(str, found))
        raise TargetError(f"label '{label}' in '{spec}' names {len(found)} classes, {numbers}: give the number instead")
    if not found:
        hint = (
            near(label, layers.labels, "it has") if layers.labels else "its classes are numbers (--labels names them)"
        )
        raise TargetError(f"unknown class '{label}' in '{spec}': {layers.network} has no such label; {hint}")
    return found[0]


def _parse_group(layer: str, text: str, layers: Layers, spec: str) -> Group:
    layer = _check_layer(layer, layers, spec)
    group: dict[int, WeightedUnit] = {}
    for part in text.split("+"):
        match = re.fullmatch(r"\s*([^*]*[^*\s])\s*(?:\*\s*(-?\d+(?:\.\d+)?)\s*)?", part)
        name = match[1] if match else ""
        if not match or not (name.isdecimal() or layer == layers.class_layer):
            raise TargetError(f"unknown unit '{part}' in '{spec}': expected UNIT or UNIT*WEIGHT, joined by +")
        if match[2] and float(match[2]) == 0:
            raise TargetError(f"unit {name} has weight 0 in '{spec}': expected another weight, or leave the unit out")
        unit = int(name) if name.isdecimal() else _class_by_label(name, layers, spec)
        _check_unit(unit, layer, layers, spec)
        if unit in group:
            raise TargetError(f"unit {unit} is named twice in '{spec}': give it one weight")
        group[unit] = WeightedUnit(layer, unit, float(match[2] or 1))
    return tuple(group.values())
