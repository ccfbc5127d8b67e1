"""Seconds per update and picture, ours and others': `python -m benchmarks.engine --out benchmarks/engine.json`.

In one process, in turn, round by round: dgn in float32 and bfloat16 at several batch sizes, both modes, for classes and
for filters; the plain loop of the paper, one picture at a time (tests/helpers/paper_port.py); lucent as shipped, whose
hooks on the network grow with every call, and with its hooks cleared. One view an update, preset `paper`, random
weights, which cost what trained ones cost. lucent trains no generator. Beside them what the same process gets out of
the device: a matrix product and convolutions of VGG-16's shapes. Lucent: `pip install torch-lucent==0.1.8 kornia tqdm
decorator ipython`; without it those rows are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import machine
from benchmarks.timing import DEVICE, HAS_GPU, seconds, synchronised
from dgn.cost.counted import count_cost, operation_counter
from dgn.engine import engine_for
from dgn.method import batch as batches
from dgn.method.architecture import Architecture
from dgn.method.decoder import random_decoder
from dgn.method.generator import initial_weights
from dgn.method.loop import update
from dgn.method.precision import DTYPES, exact_float32
from dgn.method.recipes import PAPER, RenderConfig
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import network_named
from dgn.networks.weights import NetworkWeights
from dgn.targets import Mode, Target, WeightedUnit
from tests.helpers.paper_port import PaperGenerator, paper_losses

BATCHES = (1, 4, 8, 16, 32, 64) if HAS_GPU else (1, 4, 8, 16)
FILTERS = ("conv3_1", "features_10", 11)  # our name, lucent's, and how many of VGG's `features` reach it


@lru_cache
def frozen(network: str) -> NetworkWeights:
    torch.manual_seed(0)
    with DEVICE:  # a hundred million random numbers take a CPU seconds
        state = network_named(network).built().state_dict()
    return NetworkWeights(network_named(network), {name: tensor.cpu() for name, tensor in state.items()}, "", "random")


def peaks(repeats: int = 5) -> dict[str, float]:
    """FLOP/s of a square matrix product, and the best of VGG-16's 3x3 convolutions forward, channels-last."""
    best: dict[str, float] = {}
    n = 8192 if HAS_GPU else 4096
    with engine_for(DEVICE).keep_memory(), exact_float32(), torch.no_grad():
        for precision in ("float32", "bfloat16"):
            dtype = DTYPES[precision]
            a, b = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in range(2))
            best[f"{precision}_product"] = 2 * n**3 / seconds(lambda: a @ b, repeats)  # noqa: B023
            rates = []
            pictures = 64 if HAS_GPU else 4
            for channels, px in ((64, 224), (128, 112), (256, 56), (512, 28)):
                x = torch.randn(pictures, channels, px, px, device=DEVICE).to(dtype)
                w = torch.randn(channels, channels, 3, 3, device=DEVICE).to(dtype)
                x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
                convolve = partial(F.conv2d, x, w, padding=1)
                rates.append(2 * pictures * channels**2 * 9 * px**2 / seconds(convolve, repeats))
            best[f"{precision}_convolution"] = max(rates)
    return best


def targets_of(kind: str, mode: Mode, n: int) -> list[Target]:
    layer = "fc8" if kind == "class" else FILTERS[0]
    return [Target((WeightedUnit(layer, i),), mode, i) for i in range(n)]


@contextmanager
def same_start() -> Iterator[None]:
    """All targets start with the same weights: drawing them takes a CPU longer than what is measured here."""
    kept: dict[Architecture, dict[str, Tensor]] = {}
    draw = batches.initial_weights

    def start(architecture: Architecture, stream: torch.Generator) -> dict[str, Tensor]:
        if architecture not in kept:
            kept[architecture] = initial_weights(architecture, stream)
        return kept[architecture]

    batches.initial_weights = start
    try:
        yield
    finally:
        batches.initial_weights = draw


class Ours:
    """dgn's update of N targets, as `render_batch` runs it, with pictures of the whole size."""

    def __init__(
        self, classifier: FrozenNetwork, kind: str, mode: Mode, precision: Any, batch: int, preset: str = "paper"
    ):
        self.config = RenderConfig.from_preset(preset, precision, half_share=0.0)
        self.classifier, self.kind, self.mode, self.batch = classifier, kind, mode, batch
        self.decoder = random_decoder(self.config.pretrained) if mode == "pretrained" else None

    @contextmanager
    def started(self) -> Iterator[tuple[Callable[[], object], Callable[[], object]]]:
        """The update, and the same launch by launch, whose operations can be counted."""
        engine = self.classifier.engine
        with same_start(), engine.keep_memory(), exact_float32():
            targets = targets_of(self.kind, self.mode, self.batch)
            batch = batches.start_batch(targets, self.config, self.classifier, self.decoder)
            once = partial(update, batch, batch.optimiser())
            repeated = engine.repeated(once)
            yield lambda: repeated(*batch.random()), lambda: once(*batch.random())

    def measure(self, repeats: int) -> float:
        with self.started() as (repeated, _):
            return seconds(repeated, repeats, warm_ups=3 if HAS_GPU else 1) / self.batch

    def operations(self) -> int:
        """One target's update in plain convolutions, which is how a convolution's peak is counted too."""
        return count_cost(
            self.config, self.mode, network_named("vgg16"), targets_of(self.kind, self.mode, 1)[0].layer
        ).ops_per_update

    def executed(self) -> int:
        """The same, counted while it runs: fewer where convolutions are Winograd's. No counter sees a GPU's own."""
        if HAS_GPU:
            return self.operations()
        with self.started() as (_, once), operation_counter() as counter:
            once()
        return int(counter.get_total_flops()) // self.batch


class Port:
    """The paper's loop with stock modules, one picture at a time, float32."""

    def __init__(self, weights: NetworkWeights, kind: str, mode: Mode):
        self.network: nn.Module = network_named("vgg16").built()
        self.network.load_state_dict(weights.state)
        self.network = self.network.eval().requires_grad_(False).to(DEVICE)
        start = (
            initial_weights(Architecture(mode), torch.Generator().manual_seed(0))
            if mode == "untrained"
            else random_decoder(PAPER["pretrained"])
        )
        self.generator = PaperGenerator(mode, 1.0).load(start).to(DEVICE)
        if mode == "pretrained":
            self.generator.requires_grad_(False)
            self.generator.alpha.requires_grad_(True)
        depth = FILTERS[2]
        of_filters = nn.Sequential(*list(self.network.features)[:depth], nn.ReLU())  # type: ignore[union-attr, operator]
        self.forward = self.network if kind == "class" else lambda x: of_filters(x).mean((2, 3))
        self.stream = torch.Generator().manual_seed(1)

    def measure(self, repeats: int) -> float:
        paper_losses(self.generator, self.forward, 3, self.stream, 1)
        start = synchronised()
        paper_losses(self.generator, self.forward, 3, self.stream, repeats)
        return (synchronised() - start) / repeats


class Lucent:
    """lucent's `render_vis` with its defaults: no generator, a 128 px Fourier picture, moved, seen at 224 px."""

    def __init__(self, weights: NetworkWeights, kind: str, clears_hooks: bool):
        self.network = network_named("vgg16").built()
        self.network.load_state_dict(weights.state)
        self.network = self.network.eval().to(DEVICE)
        self.objective = "classifier_6:3" if kind == "class" else f"{FILTERS[1]}:3"
        self.clears_hooks = clears_hooks

    def measure(self, repeats: int) -> float:
        from lucent.optvis import render as lucent_render

        if self.clears_hooks:
            for module in self.network.modules():
                module._forward_hooks.clear()
        settings = {"show_image": False, "progress": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lucent_render.render_vis(self.network, self.objective, thresholds=(1,), **settings)
            start = synchronised()
            lucent_render.render_vis(self.network, self.objective, thresholds=(repeats,), **settings)
        return (synchronised() - start) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=2, help="measured in each round, after the first")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--kinds", nargs="+", default=["class", "filter"], choices=["class", "filter"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    weights = frozen("vgg16")
    report: dict[str, Any] = {"machine": machine(), "network": "vgg16, random weights", "peaks": peaks()}
    print(" · ".join(f"{name} {value}" for name, value in report["machine"].items()))
    print(" · ".join(f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in report["peaks"].items()), flush=True)
    classifiers = {p: FrozenNetwork(weights, engine_for(DEVICE), DTYPES[p]) for p in ("float32", "bfloat16")}
    contestants: dict[tuple[str, str, str, int], Any] = {}
    for kind in args.kinds:
        for mode in ("untrained", "pretrained"):
            contestants[kind, mode, "plain port, float32", 1] = Port(weights, kind, mode)
            for precision in ("float32", "bfloat16"):
                for batch in args.batches:
                    if precision == "bfloat16" or batch in (1, 8):
                        of = Ours(classifiers[precision], kind, mode, precision, batch)
                        contestants[kind, mode, f"dgn, {precision}", batch] = of
        if importlib.util.find_spec("lucent"):
            for name, clears in (("lucent as shipped", False), ("lucent, hooks cleared", True)):
                contestants[kind, "no generator", name, 1] = Lucent(weights, kind, clears)
    measured: dict[tuple[str, str, str, int], list[float]] = {key: [] for key in contestants}
    for number in range(args.rounds):
        for key, contestant in contestants.items():
            measured[key].append(contestant.measure(args.updates))
        print(f"round {number + 1} of {args.rounds}", flush=True)
    report["rows"] = rows = []
    print(f"{'':40} batch        s           spread of conv. peak executed port/this lucent/this")
    for key, times in measured.items():
        kind, mode, name, batch = key
        row: dict[str, Any] = dict(zip(("kind", "mode", "name", "batch"), key, strict=True))
        row |= {"seconds": statistics.median(times), "least": min(times), "most": max(times)}
        rate = ""
        if isinstance(contestants[key], Ours):
            peak = report["peaks"][f"{name.split()[-1]}_convolution"]
            row |= {"operations": contestants[key].operations(), "executed": contestants[key].executed()}
            row["share_of_convolution_peak"] = row["operations"] / row["seconds"] / peak
            row["executed_share"] = row["executed"] / row["seconds"] / peak
            rate = f"{row['share_of_convolution_peak']:13.1%} {row['executed_share']:8.1%}"
            for other, of_mode in (("plain port, float32", mode), ("lucent as shipped", "no generator")):
                if (kind, of_mode, other, 1) in measured:
                    pairs = zip(measured[kind, of_mode, other, 1], times, strict=True)
                    row[f"times faster than {other}"] = ratio = statistics.median(a / b for a, b in pairs)
                    rate += f" {ratio:{'9' if other.startswith('plain') else '11'}.2f}"
        rows.append(row)
        spread = f"{row['least']:.4f}-{row['most']:.4f}"
        print(f"{kind:7}{mode:13}{name:22} {batch:3} {row['seconds']:8.4f} {spread:>16} {rate}", flush=True)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
