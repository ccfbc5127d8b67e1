"""How far activations drift with rounding: `python -m benchmarks.rounding --weights FILE`.

Classes, several seeds each, in float32, in bfloat16, and in float32 with sigma changed by a millionth. AdaMax turns
a last bit into another picture of the same thing, so one picture's activation differs by chance; in a class's mean over
its seeds chance is less, and the last of the three shows how much is left. For the activation of the 8-bit PNG
(re-scored in float32) and for the mean of the curve's last quarter (moved views, as optimised) it prints, over the
classes: the median size of the differences of these means, the median of the differences, and the difference of the
median activations.

Several --batch-sizes are compared with the first, too, within each precision. Eighty pictures three times take a CPU
an hour with --preset draft.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from benchmarks.machine import machine
from benchmarks.time_to_picture import CLASSES
from benchmarks.timing import DEVICE, HAS_GPU
from dgn.engine import engine_for
from dgn.method.loop import render_targets
from dgn.method.precision import DTYPES
from dgn.method.recipes import Precision, RenderConfig
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import network_named
from dgn.networks.weights import NetworkWeights, load_weights
from dgn.pictures.codec import as_tensor, quantised
from dgn.pictures.scoring import score
from dgn.targets import Target, WeightedUnit

KINDS = ("png", "optimised")
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
Activations = dict[str, list[float]]  # by kind, of the targets in order


def rendered(
    targets: Sequence[Target], config: RenderConfig, weights: NetworkWeights, batch_size: int, progress: Progress
) -> Activations:
    """Every target's activation, both ways."""
    engine = engine_for(DEVICE)
    classifier = FrozenNetwork(weights, engine, DTYPES[config.precision])
    exact = FrozenNetwork(weights, engine)
    task = progress.add_task(f"{config.precision}, batches of {batch_size}", total=len(targets))
    made: Activations = {kind: [] for kind in KINDS}
    with engine.keep_memory():
        for results in render_targets(targets, config, classifier, batch_size=batch_size):
            pictures = as_tensor([quantised(result.picture_3HW) for result in results])
            made["png"] += [s.activation for s in score(pictures, [r.target for r in results], exact)]
            for result in results:
                made["optimised"].append(statistics.mean(result.activation_curve[-len(result.activation_curve) // 4 :]))
            progress.advance(task, len(results))
    return made


def called(variant: tuple[str, int]) -> str:
    name, batch_size = variant
    return f"{name}, batches of {batch_size}"


def joined(earlier: Activations, later: Activations, num_classes: int) -> Activations:
    """Each class's earlier seeds, then its later ones."""
    tables = {
        kind: [torch.tensor(each[kind]).double().view(num_classes, -1) for each in (earlier, later)] for kind in KINDS
    }
    return {kind: torch.cat(both, 1).flatten().tolist() for kind, both in tables.items()}


def compared(one: Activations, other: Activations, num_seeds: int) -> dict[str, float]:
    """Medians over the classes, whose seeds lie one after another: relative differences to `one`."""
    row: dict[str, float] = {}
    for kind in KINDS:
        first, second = (torch.tensor(each[kind], dtype=torch.float64).view(-1, num_seeds) for each in (one, other))
        by_class = _difference(first.mean(1), second.mean(1))
        row[f"{kind}, size"] = by_class.abs().quantile(0.5).item()
        row[f"{kind}, signed"] = by_class.quantile(0.5).item()
        row[f"{kind}, size, one picture each"] = _difference(first, second).abs().flatten().quantile(0.5).item()
        medians = (each.mean(1).quantile(0.5) for each in (first, second))
        row[f"{kind}, difference of the median activations"] = _difference(*medians).item()
    return row


def _difference(first: Tensor, second: Tensor) -> Tensor:
    """Relative to the first; of two silent units none."""
    return (second - first) / first.abs().clamp_min(1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--discriminator", default="mobilenet_v2")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--classes", type=int, nargs="+", help="default: twenty")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--updates", type=int)
    parser.add_argument("--width", type=float)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[40 if HAS_GPU else 8])
    parser.add_argument("--without-control", action="store_true", help="no third of the pictures with sigma changed")
    parser.add_argument(
        "--more-than", type=Path, help="report of fewer seeds with the same options: only others are made"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    weights = load_weights(args.discriminator, args.weights)
    layers = network_named(args.discriminator).layers
    num_classes = layers.units[layers.class_layer]
    classes = args.classes or (CLASSES if num_classes > max(CLASSES) else range(min(20, num_classes)))
    asked = {"num_updates": args.updates, "width": args.width}
    changes = {name: value for name, value in asked.items() if value is not None}
    about: dict[str, Any] = {
        "machine": machine(), "discriminator": args.discriminator, "weights_sha256": weights.sha256,
        "preset": args.preset, **asked, "classes": list(classes),
    }  # fmt: skip
    report: dict[str, Any] = {**about, "seeds": args.seeds, "rows": {}, "activations": {}}
    units = [WeightedUnit(layers.class_layer, unit) for unit in classes]
    first, *other_sizes = args.batch_sizes
    configs = {str(p): RenderConfig.from_preset(args.preset, p, **changes) for p in PRECISIONS}
    if not args.without_control:
        sigma = configs["float32"].untrained.noise_sigma * (1 + 1e-6)
        changed = RenderConfig.from_preset(args.preset, "float32", **changes, noise_sigma=sigma)
        configs["float32, sigma changed"] = changed
    wanted = [(name, first) for name in configs] + [(name, size) for name in PRECISIONS for size in other_sizes]
    earlier: dict[str, Any] = {"seeds": 0}
    if args.more_than:
        earlier = json.loads(args.more_than.read_text())
        if other := [name for name, value in about.items() if earlier.get(name) != value]:
            parser.error(f"{args.more_than} is of other {', '.join(other)}")
        num_earlier = {key: len(of_key["png"]) for key, of_key in earlier["activations"].items()}
        expected = len(units) * earlier["seeds"]
        if lacking := [key for key in map(called, wanted) if num_earlier.get(key) != expected]:
            parser.error(f"{args.more_than} does not have {lacking[0]}, {earlier['seeds']} seeds")
        if args.seeds <= earlier["seeds"]:
            parser.error(f"{args.more_than} has {earlier['seeds']} seeds: give --seeds above that")
        report |= {"rows": earlier["rows"], "activations": earlier["activations"]}
    targets = [Target((unit,), "untrained", seed) for unit in units for seed in range(earlier["seeds"], args.seeds)]
    made: dict[tuple[str, int], Activations] = {}
    for name, size in wanted:
        with Progress() as progress:
            made[name, size] = rendered(targets, configs[name], weights, size, progress)
        key = called((name, size))
        if args.more_than:
            made[name, size] = joined(report["activations"][key], made[name, size], len(units))
        report["activations"][key] = made[name, size]
        against = ("float32" if size == first else name, first)
        if (name, size) != against:
            what = f"{key} against {called(against)}, {args.seeds} seeds"
            report["rows"][what] = compared(made[against], made[name, size], args.seeds)
            print(what)
            for kind, value in report["rows"][what].items():
                print(f"  {kind}: {value:+.2%}", flush=True)
        if args.out:
            args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
