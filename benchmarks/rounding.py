"""How far activations drift with rounding: `python -m benchmarks.rounding --weights FILE`.

Twenty classes, several seeds each, in float32 and in bfloat16. AdaMax turns a last bit into another picture of the same
thing, so one picture's activation differs by chance; a class's mean over its seeds differs by less, and what is left
then is precision's own. Prints, for the activation of the 8-bit PNG (re-scored in float32) and for the mean of the last
quarter of the updates (all moved views, as optimised), the median over the classes of the differences of these means.

Several --batch-sizes are compared with the first, too, within each precision.
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

from benchmarks.engine import DEVICE, HAS_GPU
from benchmarks.machine import machine
from benchmarks.time_to_picture import CLASSES
from dgn import picture
from dgn.discriminator import Discriminator, FrozenWeights, layout, load_weights
from dgn.recipes import RenderConfig
from dgn.render import DTYPES, render_targets
from dgn.targets import Target, WeightedUnit

KINDS = ("png", "optimised")
Activations = dict[str, list[float]]  # by kind, of the targets in order


def rendered(
    targets: Sequence[Target], config: RenderConfig, weights: FrozenWeights, batch_size: int, progress: Progress
) -> Activations:
    """Every target's activation, both ways."""
    discriminator = Discriminator(weights, DEVICE, DTYPES[config.precision])
    exact = Discriminator(weights, DEVICE)
    task = progress.add_task(f"{config.precision}, batches of {batch_size}", total=len(targets))
    made: Activations = {kind: [] for kind in KINDS}
    for results in render_targets(targets, config, discriminator, batch_size=batch_size):
        pngs = [picture.encode_png(result.picture_3HW) for result in results]
        made["png"] += [s.activation for s in picture.rescore(pngs, [r.target for r in results], exact)]
        for result in results:
            made["optimised"].append(statistics.mean(result.activation_curve[-len(result.activation_curve) // 4 :]))
        progress.advance(task, len(results))
    return made


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
        row[f"{kind}, median activation"] = _difference(*medians).item()
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
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    weights = load_weights(args.discriminator, args.weights)
    layers = layout(args.discriminator)
    num_classes = layers.units[layers.class_layer]
    classes = args.classes or (CLASSES if num_classes > max(CLASSES) else range(min(20, num_classes)))
    units = [WeightedUnit(layers.class_layer, unit) for unit in classes]
    targets = [Target((unit,), "untrained", seed) for unit in units for seed in range(args.seeds)]
    asked = {"num_updates": args.updates, "width": args.width}
    changes = {name: value for name, value in asked.items() if value is not None}
    first, *other_sizes = args.batch_sizes
    made: dict[tuple[str, int], Activations] = {}
    with Progress() as progress:
        for precision in ("float32", "bfloat16"):
            config = RenderConfig.from_preset(args.preset, precision, **changes)  # type: ignore[arg-type]
            for size in args.batch_sizes:
                made[precision, size] = rendered(targets, config, weights, size, progress)
    pairs = [(("float32", first), ("bfloat16", first))]
    pairs += [((precision, first), (precision, size)) for precision in ("float32", "bfloat16") for size in other_sizes]
    report: dict[str, Any] = {
        "machine": machine(), "discriminator": args.discriminator, "preset": args.preset, **changes,
        "classes": list(classes), "seeds": args.seeds, "rows": {},
        "activations": {f"{precision}, batch {size}": each for (precision, size), each in made.items()},
    }  # fmt: skip
    for one, other in pairs:
        name = f"{other[0]}, batch {other[1]} against {one[0]}, batch {one[1]}"
        report["rows"][name] = compared(made[one], made[other], args.seeds)
        print(name)
        for what, value in report["rows"][name].items():
            print(f"  {what}: {value:+.2%}")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
