"""Seconds to a picture that convinces: `python -m benchmarks.time_to_picture --weights FILE --judge-weights FILE`.

For classes of a real classifier: dgn's presets and lucent at its defaults, seconds of one finished picture, and after
how many seconds its 8-bit PNG has rank 1 by the classifier, and is first or in the top five of a second network.
Pictures on the way are looked at every tenth of the updates; the looking is not counted. dgn renders a batch, so its
seconds are the batch's divided by its targets. With random weights (no --weights) there are
only seconds; --share then makes a share of the updates, whose seconds are scaled up.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine import frozen
from benchmarks.machine import machine
from benchmarks.timing import DEVICE, HAS_GPU, synchronised
from dgn.engine import engine_for
from dgn.method.batch import start_batch
from dgn.method.decoder import random_decoder, read_decoder
from dgn.method.loop import Optimisation
from dgn.method.precision import DTYPES, exact_float32
from dgn.method.recipes import PRESETS, RenderConfig
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import network_named
from dgn.networks.weights import load_weights
from dgn.pictures.codec import as_tensor, quantised
from dgn.pictures.scoring import score
from dgn.pictures.second_opinion import judged
from dgn.targets import MODES, Mode, Target, WeightedUnit

# Spread over animals, things and places.
CLASSES = (9, 107, 130, 207, 251, 281, 292, 309, 340, 388, 404, 417, 562, 668, 698, 779, 817, 852, 920, 963)
LOOKS = 10
LUCENT_STEPS = 512
Looked = tuple[float, list[Tensor]]  # seconds of a picture so far, the pictures


def ours(
    config: RenderConfig, classifier: FrozenNetwork, mode: Mode, targets: list[Target], decoder: Any, looks: int
) -> list[Looked]:
    """`render_batch`'s loop, with snapshots on the way."""
    looked: list[Looked] = []
    num_updates, spent, start = config.recipe(mode).num_updates, 0.0, synchronised()
    with classifier.engine.keep_memory(), exact_float32():
        optimisation = Optimisation(start_batch(targets, config, classifier, decoder))
        for n in range(1, num_updates + 1):
            optimisation.step()
            if n % (num_updates // looks) == 0 or n == num_updates:
                pictures = list(optimisation.batch.snapshot().cpu())
                spent += synchronised() - start
                looked.append((spent / len(targets), pictures))
                start = synchronised()
    return looked


def lucents(network: torch.nn.Module, layer: str, unit: int, steps: int, looks: int) -> list[Looked]:
    """lucent's `render_vis` at its defaults; what it returns are RGB in [0, 1], 128 px, as it would save them."""
    from lucent.optvis import render as lucent_render

    thresholds = tuple(steps * n // looks for n in range(1, looks + 1))
    start = synchronised()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = lucent_render.render_vis(
            network, f"{layer}:{unit}", thresholds=thresholds, show_image=False, progress=False
        )
    elapsed = synchronised() - start
    resized = [
        torch.nn.functional.interpolate(torch.from_numpy(image).permute(0, 3, 1, 2), size=224, mode="bilinear")
        for image in images
    ]
    return [(elapsed * n / steps, list(image)) for n, image in zip(thresholds, resized, strict=True)]


def verdicts(
    looked: list[Looked], targets: list[Target], exact: FrozenNetwork, judge: FrozenNetwork
) -> list[list[dict[str, Any]]]:
    """For each look, for each target: seconds, rank by the classifier, rank by the judge, of the 8-bit picture."""
    rows = []
    for elapsed, pictures in looked:
        pixels = as_tensor([quantised(one) for one in pictures])
        own = score(pixels, targets, exact)
        others = judged(pixels, targets, exact.layers, judge)
        rows.append([
            {"seconds": elapsed, "rank": a.rank, "activation": a.activation, "judge": b.rank}
            for a, b in zip(own, others, strict=True) if b is not None
        ])  # fmt: skip
    return rows


def summary(rows_of_targets: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """`rows_of_targets`: for each target its looks in order."""
    conditions: dict[str, Callable[[dict[str, Any]], bool]] = {
        "first by the classifier": lambda row: row["rank"] == 1,
        "top five of the judge": lambda row: row["rank"] == 1 and row["judge"] <= 5,
        "first by the judge": lambda row: row["rank"] == 1 and row["judge"] == 1,
    }
    done: dict[str, Any] = {
        "pictures": len(rows_of_targets),
        "seconds_per_picture": statistics.median(looks[-1]["seconds"] for looks in rows_of_targets),
    }
    for name, holds in conditions.items():
        first = [next((row["seconds"] for row in looks if holds(row)), None) for looks in rows_of_targets]
        reached = sorted(seconds for seconds in first if seconds is not None)
        done[name] = {
            "share at the end": sum(holds(looks[-1]) for looks in rows_of_targets) / len(rows_of_targets),
            "share at any look": len(reached) / len(rows_of_targets),
            "median seconds of those": statistics.median(reached) if reached else None,
        }
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--discriminator", default="mobilenet_v2")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--judge", default="squeezenet1_0")
    parser.add_argument("--judge-weights", type=Path)
    parser.add_argument("--decoder", type=Path, help="for the pretrained mode too")
    parser.add_argument("--classes", type=int, nargs="+", default=list(CLASSES))
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default: those that can be")
    parser.add_argument("--presets", nargs="+", default=["standard", "draft"])
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--batch-size", type=int, default=20 if HAS_GPU else 4)
    parser.add_argument("--share", type=float, default=1.0, help="of the updates, with random weights")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    is_real = args.weights is not None
    if is_real and args.share < 1:
        parser.error("--share is for random weights: with real ones the pictures have to be finished")
    modes = args.modes or (MODES if args.decoder or not is_real else MODES[:1])
    if is_real and "pretrained" in modes and not args.decoder:
        parser.error("--modes pretrained with real weights: give --decoder FILE")
    weights = load_weights(args.discriminator, args.weights) if is_real else frozen(args.discriminator)
    engine = engine_for(DEVICE)
    classifier, exact = FrozenNetwork(weights, engine, DTYPES[args.precision]), FrozenNetwork(weights, engine)
    judge = FrozenNetwork(load_weights(args.judge, args.judge_weights), engine) if is_real else None
    class_layer = network_named(args.discriminator).layers.class_layer
    report: dict[str, Any] = {
        "machine": machine(), "discriminator": args.discriminator, "weights": "real" if is_real else "random",
        "judge": args.judge if is_real else None, "decoder": args.decoder.name if args.decoder else "random",
        "precision": args.precision, "batch_size": args.batch_size,
        "rows": {},
    }  # fmt: skip

    def note(name: str, looked_of_batches: list[tuple[list[Target], list[Looked]]]) -> None:
        if judge is None:
            seconds = statistics.median(looked[-1][0] for _, looked in looked_of_batches) / args.share
            report["rows"][name] = {"seconds_per_picture": seconds, "scaled_up_from_share": args.share}
        else:
            looks_of_targets: list[list[dict[str, Any]]] = []
            for targets, looked in looked_of_batches:
                looks_of_targets += map(list, zip(*verdicts(looked, targets, exact, judge), strict=True))
            report["rows"][name] = summary(looks_of_targets) | {"targets": looks_of_targets}
        print(name, json.dumps({k: v for k, v in report["rows"][name].items() if k != "targets"}), flush=True)
        if args.out:
            args.out.write_text(json.dumps(report, indent=1) + "\n")

    for preset in args.presets:
        for mode in modes:
            num_updates = round(args.share * PRESETS[preset][mode].num_updates)
            config = RenderConfig.from_preset(preset, args.precision, num_updates=num_updates)
            decoder = None
            if mode == "pretrained":
                width = config.pretrained.width
                decoder = (
                    read_decoder(args.decoder.read_bytes(), str(args.decoder)).weights
                    if args.decoder
                    else random_decoder(width)
                )
            targets = [Target((WeightedUnit(class_layer, unit),), mode, 0) for unit in args.classes]
            batches = [targets[i : i + args.batch_size] for i in range(0, len(targets), args.batch_size)]
            if HAS_GPU:  # kernels are compiled before the clock starts
                two = RenderConfig.from_preset(preset, args.precision, num_updates=2)
                ours(two, classifier, mode, batches[0], decoder, 1)
            note(f"dgn {preset}, {mode}", [
                (batch, ours(config, classifier, mode, batch, decoder, LOOKS if is_real else 1)) for batch in batches
            ])  # fmt: skip
    if importlib.util.find_spec("lucent"):
        network = network_named(args.discriminator).built()
        network.load_state_dict(weights.state)
        network = network.eval().to(DEVICE)
        steps = round(args.share * LUCENT_STEPS)
        looked = []
        for unit in args.classes:
            for module in network.modules():  # as after a fresh start: its hooks would slow every next picture
                module._forward_hooks.clear()
            one = lucents(
                network,
                class_layer.replace("fc8", "classifier.6").replace(".", "_"),
                unit,
                steps,
                LOOKS if is_real else 1,
            )
            looked.append(([Target((WeightedUnit(class_layer, unit),), "untrained", 0)], one))
        note("lucent", looked)


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"({time.perf_counter() - start:.0f} s)")
