"""An update's time by part on a CPU: python -m benchmarks.parts --weights FILE [--precision float32]

Milliseconds of one update of one class in preset `standard`, untrained, at half size and at the whole. First by piece,
each timed by itself, forward and back: the generator, the views, the classifier, the optimiser. Then by kind of
operation, from PyTorch's profiler: what each kind takes of the whole update.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import machine
from benchmarks.timing import seconds
from dgn.engine import engine_for
from dgn.method.batch import Batch, start_batch
from dgn.method.loop import Optimisation
from dgn.method.moves import move, recolour
from dgn.method.precision import DTYPES, exact_float32
from dgn.method.recipes import RenderConfig
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import network_named
from dgn.networks.weights import load_weights
from dgn.targets import Target, WeightedUnit

# By parts of PyTorch's names of operations; the first that fits counts.
KINDS = {
    "convolutions": ("conv",),
    "products of matrices": ("mm", "dot"),
    "norms": ("norm", "mean", "var", "sum"),
    "resizing and turning": ("upsample", "interpolate", "grid_sampler", "affine", "pad"),
    "optimiser": ("maximum", "_foreach", "adamax", "lerp", "abs", "sqrt"),
    "copies": ("copy", "cat", "clone", "contiguous", "fill", "zero", "empty"),
    "activations and sums": ("relu", "hardtanh", "threshold", "clamp", "tanh", "sigmoid", "add", "mul", "sub", "div"),
}


def pieces(batch: Batch, optimisation: Optimisation) -> dict[str, Any]:
    """What an update consists of, to be called by itself; each but the optimiser also goes back."""
    noise, maps, colours = batch.random()
    pictures = batch.pictures(noise, batch.seen_px).detach()
    views = recolour(move(pictures, maps), colours).detach()

    def generator() -> None:
        batch.pictures(noise, batch.seen_px).backward(torch.ones_like(pictures))

    def moved() -> None:
        picture = pictures.clone().requires_grad_()
        recolour(move(picture, maps), colours).backward(torch.ones_like(views))

    def classifier() -> None:
        seen = views.clone().requires_grad_()
        (response,) = batch.classifier.responses(seen, list(batch.wanted)).values()
        response.sum().backward()

    def optimiser() -> None:
        optimisation.optimiser.step()

    return {"generator": generator, "views": moved, "classifier": classifier, "optimiser": optimiser}


def by_kind(optimisation: Optimisation, repeats: int) -> dict[str, float]:
    """Milliseconds of an update that PyTorch spends in each kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            optimisation.step()
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        name = event.key.lower()
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "all else")
        spent[kind] += event.self_cpu_time_total / 1e3 / repeats
    return {kind: round(milliseconds, 1) for kind, milliseconds in spent.most_common()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--discriminator", default="mobilenet_v2")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--precision", default="float32", choices=["bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    weights = load_weights(network_named(args.discriminator), args.weights)
    engine = engine_for("cpu")
    classifier = FrozenNetwork(weights, engine, DTYPES[args.precision])
    target = Target((WeightedUnit(weights.network.layers.class_layer, 9),), "untrained", 0)
    about = {
        "precision": args.precision,
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
    }
    print(json.dumps(machine() | about))
    for size, half_share in (("half", 0.99), ("whole", 0.0)):
        config = RenderConfig.from_preset("standard", args.precision, half_share=half_share)
        with engine.keep_memory(), exact_float32():
            optimisation = Optimisation(start_batch([target], config, classifier, None))
            whole = seconds(optimisation.step, args.repeats, warm_ups=3)
            spent = {
                name: round(seconds(piece, args.repeats, warm_ups=2) * 1e3, 1)
                for name, piece in pieces(optimisation.batch, optimisation).items()
            }
            print(size, json.dumps({"update": round(whole * 1e3, 1), **spent, "of which": by_kind(optimisation, 5)}))


if __name__ == "__main__":
    main()
