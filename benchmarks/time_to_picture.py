"""Seconds to a picture that convinces.

    python -m benchmarks.time_to_picture --weights FILE --judge squeezenet1_0=FILE --judge efficientnet_lite0 --earlier

For classes of a real classifier: dgn's presets, with --earlier also `standard` as it was before its recipe changed, and
lucent at its defaults, if it is installed. They take turns, batch by batch. For each: seconds of one finished picture,
and after how many seconds its 8-bit PNG has rank 1 by the classifier and is first or in the top five of a judge, a
network that took no part. Pictures on the way are looked at every tenth of the updates; the looking is not counted.

On a CPU dgn draws in as many processes as there are threads, as it does by default (--workers); lucent in one process
with all threads, and also in as many processes. Pictures that are drawn at the same time share the seconds. With random
weights (no --weights) there are only seconds; --share then makes a share of the updates, whose seconds are scaled up.
With --out, a repeated command continues.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine import frozen
from benchmarks.machine import machine
from benchmarks.timing import DEVICE, HAS_GPU, synchronised
from dgn.cluster.environment import WORKER_ENVIRONMENT
from dgn.engine import engine_for
from dgn.method.batch import start_batch
from dgn.method.decoder import random_decoder, read_decoder
from dgn.method.loop import Optimisation
from dgn.method.precision import DTYPES, exact_float32
from dgn.method.recipes import Moves, RenderConfig
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import network_named
from dgn.networks.weights import NetworkWeights, load_weights
from dgn.pictures.codec import as_tensor, quantised
from dgn.pictures.scoring import score
from dgn.pictures.second_opinion import judged
from dgn.targets import MODES, Mode, Target, WeightedUnit

# Spread over animals, things and places.
CLASSES = (9, 107, 130, 207, 251, 281, 292, 309, 340, 388, 404, 417, 562, 668, 698, 779, 817, 852, 920, 963)
LOOKS = 10
# What `standard` had untrained before it sought classes at half size (docs/experiments.md).
EARLIER_RECIPE: dict[str, Any] = {
    "width": 0.5, "num_updates": 240, "learning_rate": 0.002, "last_rate_share": 1.0, "half_share": 0.0,
    "moves": Moves(),
}  # fmt: skip
EARLIER = "dgn, earlier standard, one process"  # as it was by default
LUCENT, LUCENT_STEPS = "lucent", 512
Looked = tuple[float, list[Tensor]]  # seconds of a picture so far, the pictures
Drawn = tuple[list[Target], list[Looked]]  # pictures that were drawn together


def ours(
    config: RenderConfig, classifier: FrozenNetwork, targets: list[Target], decoder: Any, looks: int
) -> list[Looked]:
    """`render_batch`'s loop, with snapshots on the way."""
    looked: list[Looked] = []
    spent, start = 0.0, synchronised()
    with classifier.engine.keep_memory(), exact_float32():
        optimisation = Optimisation(start_batch(targets, config, classifier, decoder))
        num_updates = optimisation.batch.recipe.num_updates
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
    looked: list[Looked], targets: list[Target], exact: FrozenNetwork, judges: dict[str, FrozenNetwork]
) -> list[dict[str, Any]]:
    """For each target its looks in order: seconds, rank by the classifier and by each judge, of the 8-bit picture."""
    rows: list[dict[str, Any]] = [{"unit": target.units[0].unit, "looks": []} for target in targets]
    for elapsed, pictures in looked:
        look: list[dict[str, Any]] = [{"seconds": elapsed} for _ in targets]
        if judges:
            pixels = as_tensor([quantised(one) for one in pictures])
            for one, own in zip(look, score(pixels, targets, exact), strict=True):
                one.update(rank=own.rank, activation=own.activation)
            for name, judge in judges.items():
                for one, other in zip(look, judged(pixels, targets, exact.layers, judge), strict=True):
                    one[name] = other.rank if other else None
        for row, one in zip(rows, look, strict=True):
            row["looks"].append(one)
    return rows


def summary(rows: list[dict[str, Any]], judges: Sequence[str], share: float) -> dict[str, Any]:
    """Of one contender's `verdicts` of all targets."""
    done: dict[str, Any] = {
        "pictures": len(rows),
        "seconds_per_picture": statistics.median(row["looks"][-1]["seconds"] for row in rows) / share,
    }
    if share < 1:
        done["scaled_up_from_share"] = share
    most: dict[str, tuple[str, int]] = {"first by the classifier": ("rank", 1)} if judges else {}
    for judge in judges:
        most |= {f"top five of {judge}": (judge, 5), f"first by {judge}": (judge, 1)}
    for name, (key, rank) in most.items():
        passes = [[look["seconds"] for look in row["looks"] if look["rank"] == 1 and look[key] <= rank] for row in rows]
        reached = [seconds[0] for seconds in passes if seconds]
        of_all = statistics.median(reached + [math.inf] * (len(rows) - len(reached)))
        at_end = sum(row["looks"][-1]["rank"] == 1 and row["looks"][-1][key] <= rank for row in rows)
        done[name] = {
            "at the end": at_end,
            "at any look": len(reached),
            "median seconds of those": statistics.median(reached) if reached else None,
            # Pictures that never pass count as the longest, so that easy ones alone do not make a contender quick.
            "median seconds of all": of_all if of_all < math.inf else None,
        }
    return done


class Contenders:
    """What a process can draw with, each by its name."""

    def __init__(self, args: argparse.Namespace, num_threads: int):
        torch.set_num_threads(num_threads)
        self.engine, self.share = engine_for(DEVICE), args.share
        self.weights = loaded(args.discriminator, args.weights) if args.weights else frozen(args.discriminator)
        self.classifier = FrozenNetwork(self.weights, self.engine, DTYPES[args.precision])
        self.class_layer = self.weights.network.layers.class_layer
        self.num_looks = LOOKS if args.judge else 1
        self.ours: dict[str, tuple[RenderConfig, Mode, Any]] = {}
        for mode in args.modes:
            for preset in args.presets:
                config = RenderConfig.from_preset(preset, args.precision)
                self.ours[f"dgn {preset}, {mode}"] = (self._shortened(config, mode), mode, decoder(args.decoder, mode))
        if args.earlier:
            config = RenderConfig.from_preset("standard", args.precision, **EARLIER_RECIPE)
            self.ours[EARLIER] = (self._shortened(config, "untrained"), "untrained", None)
        self.plain: torch.nn.Module | None = None
        if importlib.util.find_spec("lucent"):
            self.plain = network_named(args.discriminator).built()
            self.plain.load_state_dict(self.weights.state)
            self.plain = self.plain.eval().to(DEVICE)

    def _shortened(self, config: RenderConfig, mode: Mode) -> RenderConfig:
        recipe = config.recipe(mode)
        whole = recipe.num_whole_updates and round(self.share * recipe.num_whole_updates)
        shorter = replace(recipe, num_updates=round(self.share * recipe.num_updates), num_whole_updates=whole)
        return replace(config, **{mode: shorter})

    def draw(self, name: str, targets: list[Target]) -> list[Drawn]:
        if name == LUCENT:
            return [([target], self._lucents(target.units[0].unit)) for target in targets]
        config, mode, decoder = self.ours[name]
        of_mode = [replace(target, mode=mode) for target in targets]
        return [(of_mode, ours(config, self.classifier, of_mode, decoder, self.num_looks))]

    def _lucents(self, unit: int) -> list[Looked]:
        assert self.plain is not None
        for module in self.plain.modules():  # as after a fresh start: its hooks would slow every next picture
            module._forward_hooks.clear()
        layer = self.class_layer.replace("fc8", "classifier.6").replace(".", "_")
        return lucents(self.plain, layer, unit, round(self.share * LUCENT_STEPS), self.num_looks)


def loaded(name: str, file: str) -> NetworkWeights:
    return load_weights(network_named(name), Path(file) if file not in ("", "embedded") else None)


def decoder(file: Path | None, mode: Mode) -> Any:
    if mode == "untrained":
        return None
    if file is None:
        return random_decoder(RenderConfig().pretrained)
    return read_decoder(file.read_bytes(), str(file)).weights


class Workers:
    """Processes that draw at the same time, as dgn's workers do, each with its share of the threads."""

    def __init__(self, args: argparse.Namespace):
        start: dict[str, Any] = {"mp_context": multiprocessing.get_context("spawn"), "initializer": _start}
        start["initargs"] = (args, max(1, torch.get_num_threads() // args.workers))
        os.environ.update(WORKER_ENVIRONMENT)
        self.pools = [ProcessPoolExecutor(1, **start) for _ in range(args.workers)]
        for ready in [pool.submit(_draw, LUCENT, []) for pool in self.pools]:
            ready.result()

    def draw(self, name: str, targets: list[Target]) -> list[Drawn]:
        """As many pictures at a time as there are workers, so each is charged that part of its seconds."""
        shares = [share for n in range(len(self.pools)) if (share := targets[n :: len(self.pools)])]
        calls = [pool.submit(_draw, name, share) for pool, share in zip(self.pools, shares, strict=False)]
        return [
            (some, [(elapsed / len(shares), pictures) for elapsed, pictures in looked])
            for call in calls
            for some, looked in call.result()
        ]


def _start(args: argparse.Namespace, num_threads: int) -> None:
    global _contenders
    _contenders = Contenders(args, num_threads)


def _draw(name: str, targets: list[Target]) -> list[Drawn]:
    return _contenders.draw(name, targets)


_contenders: Contenders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--discriminator", default="mobilenet_v2")
    parser.add_argument("--weights", help="a file, or 'embedded' for those that come with dgn; default: random")
    parser.add_argument("--judge", action="append", default=[], metavar="NETWORK[=FILE]", help="repeatable")
    parser.add_argument("--decoder", type=Path, help="for the pretrained mode too")
    parser.add_argument("--classes", type=int, nargs="+", default=list(CLASSES))
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default: those that can be")
    parser.add_argument("--presets", nargs="+", default=["standard"], choices=["standard", "draft"])
    parser.add_argument("--earlier", action="store_true", help="also the earlier `standard`")
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--batch-size", type=int, default=20 if HAS_GPU else 4)
    parser.add_argument("--workers", type=int, default=1 if HAS_GPU else torch.get_num_threads())
    parser.add_argument("--share", type=float, default=1.0, help="of the updates, with random weights")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders by name, as they are printed")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if bool(args.weights) != bool(args.judge) or (args.weights and args.share < 1):
        parser.error("real weights need a --judge and the whole of the updates; random ones have no judge")
    args.modes = args.modes or (MODES if args.decoder or not args.weights else MODES[:1])
    if args.weights and "pretrained" in args.modes and not args.decoder:
        parser.error("--modes pretrained with real weights: give --decoder FILE")

    here = Contenders(args, torch.get_num_threads())
    targets = [Target((WeightedUnit(here.class_layer, unit),), "untrained", 0) for unit in args.classes]
    batches = [targets[i : i + args.batch_size] for i in range(0, len(targets), args.batch_size)]
    workers = Workers(args) if args.workers > 1 else here
    contenders = {name: partial((here if name == EARLIER else workers).draw, name) for name in here.ours}
    if here.plain:
        contenders[LUCENT] = partial(here.draw, LUCENT)
        if args.workers > 1:
            contenders[f"{LUCENT}, {args.workers} processes"] = partial(workers.draw, LUCENT)
    if unknown := set(args.only or ()) - contenders.keys():
        parser.error(f"no contender {unknown.pop()}: expected some of {', '.join(contenders)}")
    contenders = {name: draw for name, draw in contenders.items() if not args.only or name in args.only}
    if HAS_GPU:  # kernels are compiled before the clock starts
        for name in here.ours:
            here.draw(name, batches[0])
    exact = FrozenNetwork(here.weights, here.engine)
    judges = {
        name: FrozenNetwork(loaded(name, file), here.engine)
        for name, _, file in (judge.partition("=") for judge in args.judge)
    }

    report: dict[str, Any] = {
        "machine": machine(), "discriminator": args.discriminator, "weights": "real" if args.weights else "random",
        "judges": list(judges), "decoder": args.decoder.name if args.decoder else "random",
        "precision": args.precision, "batch_size": args.batch_size, "workers": args.workers,
        "threads": torch.get_num_threads(),
        "summaries": {}, "targets": {name: [] for name in contenders},
    }  # fmt: skip
    if args.out and args.out.exists():
        earlier = json.loads(args.out.read_text())
        settings = ("discriminator", "weights", "judges", "decoder", "precision", "batch_size", "workers", "threads")
        if differing := [name for name in settings if earlier.get(name) != report[name]]:
            parser.error(f"{args.out} was made with another {differing[0]}: {earlier.get(differing[0])}")
        report["summaries"] = earlier["summaries"]
        report["targets"] = earlier["targets"] | {name: earlier["targets"].get(name, []) for name in contenders}
    for batch in batches:
        for name, draw in contenders.items():
            rows = report["targets"][name]
            if any(row["unit"] == batch[0].units[0].unit for row in rows):
                continue
            for those, looked in draw(batch):
                rows += verdicts(looked, those, exact, judges)
            report["summaries"][name] = summary(rows, list(judges), args.share)
            print(name, json.dumps(report["summaries"][name]), flush=True)
            if args.out:
                args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"({time.perf_counter() - start:.0f} s)")
