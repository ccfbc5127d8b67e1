"""How people write sets of targets: `all`, `classes:0-99,mosque`, `filters:conv5_1:0-31`, `mix:classes:9+30`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from dgn.errors import TargetError
from dgn.networks.layers import Layers
from dgn.targets import MODES, Group, Mode, TargetBlock, WeightedUnit


def parse_targets(
    specs: Sequence[str], layers: Layers, modes: Sequence[str] | None, first_seed: int = 0, num_seeds: int = 1
) -> list[TargetBlock]:
    """Blocks of targets, in order of mode and depth. A unit that is named twice is one target.

    Args:
        specs: any of `all`, `classes`, `classes:0-99,668,mosque`, `filters`, `filters:conv5_1:0-31`,
            `mix:classes:9+30`, `group:conv5_1:3*0.5+17`, `group:conv5_1:3+17,conv4_1:7`.
        modes: for every target. Without it, targets are untrained, except that `all` has the classes in both modes.

    Raises: TargetError for what the network does not have, and for labels that several classes share.
    """
    for mode in modes or ():
        if mode not in MODES:
            raise TargetError(f"unknown mode '{mode}': expected one of {', '.join(MODES)}")
    if not specs:
        raise TargetError("no targets: expected for instance all, classes, classes:0-99 or filters:LAYER:0-31")
    assert num_seeds >= 1
    wanted: dict[tuple[Mode, str], dict[Group, None]] = {}

    def add(layer: str, groups: Sequence[Group], default_modes: Sequence[str]) -> None:
        for mode in modes or default_modes:
            wanted.setdefault((mode, layer), {}).update(dict.fromkeys(groups))  # type: ignore[arg-type]

    for spec in specs:
        kind, _, rest = spec.partition(":")
        if spec == "all":
            add(layers.class_layer, _singles(layers.class_layer, _all_units(layers, layers.class_layer)), MODES)
        if spec in ("all", "filters"):
            for layer in layers.filter_layers:
                add(layer, _singles(layer, _all_units(layers, layer)), ("untrained",))
        elif kind == "classes":
            units = _parse_classes(rest, layers, spec) if ":" in spec else _all_units(layers, layers.class_layer)
            add(layers.class_layer, _singles(layers.class_layer, units), ("untrained",))
        elif kind == "filters":
            layer, _, selection = rest.partition(":")
            layer = _check_layer(layer, layers, spec)
            units = _parse_units(selection, layer, layers, spec) if ":" in rest else _all_units(layers, layer)
            add(layer, _singles(layer, units), ("untrained",))
        elif kind == "mix" and rest.startswith("classes:"):
            group = _parse_group(layers.class_layer, rest.removeprefix("classes:"), layers, spec)
            add(layers.class_layer, [group], ("untrained",))
        elif kind == "group" and ":" in rest:
            parts = [part.partition(":") for part in rest.split(",")]
            group = tuple(u for layer, _, units in parts for u in _parse_group(layer, units, layers, spec))
            add(group[0].layer, [group], ("untrained",))
        else:
            raise TargetError(
                f"unknown target '{spec}': expected all, classes, classes:0-99, classes:LABEL, filters, "
                "filters:LAYER:0-31, mix:classes:9+30 or group:LAYER:3*0.5+17"
            )
    depth = {layer: i for i, layer in enumerate(layers.units)}
    keys = sorted(wanted, key=lambda key: (MODES.index(key[0]), depth[key[1]]))
    return [TargetBlock(layer, tuple(wanted[mode, layer]), mode, first_seed, num_seeds) for mode, layer in keys]


def _singles(layer: str, units: Sequence[int]) -> list[Group]:
    return [(WeightedUnit(layer, unit),) for unit in units]


def _all_units(layers: Layers, layer: str) -> range:
    return range(layers.units[layer])


def _check_layer(layer: str, layers: Layers, spec: str) -> str:
    layer = layers.aliases.get(layer, layer)
    if layer not in layers.units:
        near = difflib.get_close_matches(layer, layers.units, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {_some(list(layers.units))}"
        raise TargetError(
            f"unknown layer '{layer}' in '{spec}': {layers.network} has no such layer; {hint} "
            f"(`dgn info --discriminator {layers.network} --layers` and `dgn.layers('{layers.network}')` list all)"
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
            units += _parse_units(part, layers.class_layer, layers, spec)
        else:
            units.append(_class_by_label(part, layers, spec))
    return units


def _class_by_label(label: str, layers: Layers, spec: str) -> int:
    found = [i for i, known in enumerate(layers.labels) if known.lower() == label.lower()]
    if len(found) > 1:
        numbers = " and ".join(map(str, found))
        raise TargetError(f"label '{label}' in '{spec}' names {len(found)} classes, {numbers}: give the number instead")
    if not found:
        near = difflib.get_close_matches(label.lower(), [known.lower() for known in layers.labels], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {_some(layers.labels)}"
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


def _some(names: Sequence[str], at_most: int = 6) -> str:
    return ", ".join(names[:at_most]) + (f", ... ({len(names)} in all)" if len(names) > at_most else "")
