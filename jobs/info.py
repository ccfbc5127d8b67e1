"""`dgn info`: what a configuration costs and what its network has."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dgn import discriminator as discriminators
from dgn import info
from dgn.errors import DgnError
from dgn.recipes import RenderConfig
from dgn.render import DTYPES
from dgn.targets import MODES
from jobs.cli import print_json


def info_command(
    network: str,
    preset: str,
    width: float | None,
    precision: str,
    layer: str | None,
    layers: bool,
    networks: bool,
    as_json: bool,
) -> None:
    if networks:
        print("\n".join(discriminators.known_networks()))
        return
    layout = discriminators.layout(network)
    if layers:
        print("\n".join(f"{name} {count}" for name, count in layout.units.items()))
        return
    if precision not in ("float32", "bfloat16"):
        raise DgnError(f"unknown precision '{precision}': expected float32 or bfloat16")
    if layer is not None and layer not in layout.units:
        raise DgnError(f"unknown layer '{layer}': dgn info --discriminator {network} --layers lists them")
    config = RenderConfig.from_preset(preset, precision, **({} if width is None else {"width": width}))  # type: ignore[arg-type]
    num_classes = len(layout.labels)
    num_filters = sum(layout.units[name] for name in layout.filter_layers)
    content: dict[str, Any] = {
        "discriminator": network,
        "preset": preset,
        "precision": precision,
        "bytes_per_number": DTYPES[precision].itemsize,
        "layer": layer or layout.class_layer,
        "modes": {},
        "classes": num_classes,
        "filters": num_filters,
        "targets_all": 2 * num_classes + num_filters,
        "targets_all_in_both_modes": 2 * (num_classes + num_filters),
        "layers": layout.units,
    }
    for mode in MODES:
        cost = info.cost(config, mode, network, layer)
        totals = {"ops_per_update": cost.ops_per_update, "bytes_per_target": cost.bytes_per_target}
        content["modes"][mode] = asdict(cost) | totals
    if as_json:
        print_json(content)
        return
    print(f"{network}, preset {preset}, {precision}, against layer {content['layer']}")
    for mode, cost_of in content["modes"].items():
        print(
            f"  {mode:<10} width {cost_of['width']:g}, {cost_of['num_trainable']:>9,} trainable variables a target, "
            f"{cost_of['ops_per_update'] / 1e9:.1f} GFLOP an update ({cost_of['num_views']} views), "
            f"{cost_of['num_updates']} updates, {cost_of['bytes_per_target'] / 1e6:.0f} MB"
        )
    print(f"  targets: {num_classes} classes x 2 modes + {num_filters} conv filters = {content['targets_all']:,}")
