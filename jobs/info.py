"""`dgn info`: what a configuration costs, and the layers of its network."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from dgn.errors import DgnError
from dgn.jobs.common.flags import with_settings
from dgn.jobs.common.printing import print_json
from dgn.method.recipes import RenderConfig
from dgn.networks.network import Network
from dgn.runs.config import NETWORK_SETTINGS, RunConfig
from dgn.runs.validation import validated
from dgn.targets import MODES
from dgn.text import as_flag, plural

SUMS = ("ops_per_update", "ops_per_picture", "bytes_per_target")  # what a cost's parts add up to


@with_settings(RunConfig, *NETWORK_SETTINGS, "preset", "width")
def command(
    settings: dict[str, Any],
    precision: Annotated[str, typer.Option(help="Precision of the arithmetic: float32 or bfloat16.")] = "float32",
    layer: Annotated[str | None, typer.Option(help="Layer of the targets. Default: the layer of classes.")] = None,
    only_layers: Annotated[bool, typer.Option("--layers", help="Only list the network's layers.")] = False,
    networks: Annotated[bool, typer.Option("--networks", help="Only list the known networks.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from dgn.networks.registry import known_networks
    from dgn.runs.networks import describe_network

    if networks:
        print("\n".join(known_networks()))
        return
    chosen = validated(RunConfig, settings)
    network = describe_network(chosen)
    layers = network.layers
    if not layers.units:
        raise DgnError(
            f"{network.name} has no layers to draw: it has no classes ({layers.why_no_classes}), and none of its "
            "modules has units: expected a network of modules such as nn.Conv2d"
        )
    if only_layers:
        print("\n".join(f"{name} {count}" for name, count in layers.units.items()))
        return
    if precision not in ("float32", "bfloat16"):
        raise DgnError(f"unknown precision '{precision}': expected float32 or bfloat16")
    if layer is not None and layer not in layers.units:
        raise DgnError(f"unknown layer '{layer}': --layers lists those of {network.name}")
    width = {} if chosen.width is None else {"width": chosen.width}
    config = RenderConfig.from_preset(chosen.preset, precision, **width)  # type: ignore[arg-type]
    content = _content(network, config, layer)
    if as_json:
        print_json(content)
    else:
        _print(content)


def _content(network: Network, config: RenderConfig, layer: str | None) -> dict[str, Any]:
    from dgn.cost.counted import count_cost
    from dgn.method.precision import DTYPES

    layers = network.layers
    num_classes = layers.num_classes
    num_filters = sum(layers.units[name] for name in layers.filter_layers)
    layer = layer or layers.class_layer or [*layers.units, *layers.filter_layers][-1]
    costs = {mode: count_cost(config, mode, network, layer) for mode in MODES}
    return {
        "discriminator": layers.network,
        "preset": config.preset,
        "precision": config.precision,
        "bytes_per_number": DTYPES[config.precision].itemsize,
        "layer": layer,
        "modes": {mode: asdict(cost) | {name: getattr(cost, name) for name in SUMS} for mode, cost in costs.items()},
        "input": network.description(),
        "is_grey": layers.num_channels == 1,
        "class_layer": layers.class_layer,
        "why_no_classes": layers.why_no_classes,
        "classes": num_classes,
        "filters": num_filters,
        "targets_all": 2 * num_classes + num_filters,
        "targets_all_in_both_modes": 2 * (num_classes + num_filters),
        "layers": layers.units,
    }


def _print(content: dict[str, Any]) -> None:
    print(
        f"{content['discriminator']}, preset {content['preset']}, {content['precision']}, "
        f"for targets in layer {content['layer']}"
    )
    sees = content["input"]
    mean, std = (as_flag(sees[name]) for name in ("mean", "std"))
    colours = "grey" if content["is_grey"] else sees["channel_order"]
    print(f"  sees {colours} pictures of {sees['size']} px, mean {mean}, std {std}, white {sees['value_range']:g}")
    classes = f"{content['classes']:,} units of {content['class_layer']}, {sees['output']}"
    print(f"  classes: {classes if content['class_layer'] else 'none, ' + content['why_no_classes']}")
    for mode, cost in content["modes"].items():
        print(
            f"  {mode:<10} width {cost['width']:g}, {cost['num_trainable']:>9,} trainable variables per target, "
            f"{cost['ops_per_update'] / 1e9:.1f} GFLOP per update ({plural(cost['num_views'], 'view')}), "
            f"{cost['num_updates']} updates, {cost['ops_per_picture'] / 1e12:.2f} TFLOP per picture, "
            f"{cost['bytes_per_target'] / 1e6:.0f} MB"
        )
    print(
        f"  targets: {content['classes']} classes x 2 modes + {content['filters']} conv filters = "
        f"{content['targets_all']:,}"
    )
