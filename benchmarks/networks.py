"""Tries every network of torchvision or timm once: layers, class layer, one update, a scored picture of its own size.

Run with: python -m benchmarks.networks torchvision|timm OUT.jsonl [--processes 2]

Weights are random, because most cannot be had here and none is needed to find what breaks. Each line of OUT is one
network: what was found, or the one line that refuses it. Networks of more than --at-most GiB (8) are skipped. A
repeated command continues; a network that ended its process is noted as that. `python -m benchmarks.networks report
OUT.jsonl` prints the table of docs/networks.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dgn.errors import DgnError
from dgn.method.loop import render_batch
from dgn.method.recipes import RenderConfig
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.network import Network
from dgn.networks.registry import network_named
from dgn.networks.weights import NetworkWeights
from dgn.pictures.scoring import score_results
from dgn.targets import Target, WeightedUnit

LARGE_BYTES = 40 * 2**20  # of weights; larger networks run in bfloat16, which takes this processor less time
CONFIG = RenderConfig.from_preset("draft", num_updates=1, num_views=1, width=1 / 32)


def names_of(library: str) -> list[str]:
    if library == "torchvision":
        from dgn.networks.torchvision_networks import torchvision_names

        return torchvision_names()
    import timm

    return [f"timm:{name}" for name in timm.list_models()]


def with_random_weights(network: Network) -> NetworkWeights:
    """Small numbers, repeated, because a billion of PyTorch's initial weights take a minute."""
    tile = torch.randn(100_003, generator=torch.Generator().manual_seed(0)) * 0.02

    def filled(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor
        values = tile.repeat(-(-tensor.numel() // len(tile)))[: tensor.numel()].reshape(tensor.shape)
        return values.abs() + 0.5 if name.endswith("running_var") else values

    state = network.bare().state_dict()
    return NetworkWeights(network, {name: filled(name, tensor) for name, tensor in state.items()}, "", "random")


def loaded(network: Network, is_large: bool) -> FrozenNetwork:
    """In bfloat16 if it is large, unless it has an operation that a CPU lacks in bfloat16."""
    weights = with_random_weights(network)
    if is_large:
        with suppress(DgnError):
            return FrozenNetwork(weights, dtype=torch.bfloat16)
    return FrozenNetwork(weights)


def tried(name: str, most_gib: float = 8) -> dict[str, Any]:
    """What came of one network."""
    start = time.monotonic()
    try:
        network = network_named(name)
        num_bytes = 4 * sum(tensor.numel() for tensor in network.bare().state_dict().values())
        if num_bytes > most_gib * 2**30:
            return {"name": name, "outcome": "skipped", "why": f"{num_bytes / 2**30:.1f} GiB of weights"}
        layers = network.layers
        about = {
            "size": network.size, "classes": layers.num_classes, "class_layer": layers.class_layer,
            "layers": len(layers.units), "filter_layers": len(layers.filter_layers),
            "why_no_classes": layers.why_no_classes,
        }  # fmt: skip
        layer = layers.class_layer or (layers.filter_layers or tuple(layers.units))[-1]
        classifier = loaded(network, is_large=num_bytes > LARGE_BYTES)
        about["dtype"] = str(classifier.dtype)
        target = Target((WeightedUnit(layer, layers.units[layer] // 2),), "untrained", 0)
        [scored] = score_results(render_batch([target], CONFIG, classifier), classifier)
        _, height, width = scored.result.picture_3HW.shape
        assert (height, width) == (network.size, network.size)
        assert scored.scores is not None
        assert torch.tensor(scored.scores.activation).isfinite()
        about |= {"is_fused": type(classifier.cut_behind((layer,))).__name__ != "Watched"}
        about |= {"is_coupled": classifier.is_coupled, "activation": scored.scores.activation}
        outcome = {"outcome": "works", **about}
    except DgnError as error:
        outcome = {"outcome": "refused", "why": str(error)}
    except Exception as error:  # what a user would see as a traceback
        outcome = {"outcome": "broken", "why": f"{type(error).__name__}: {error}"[:500]}
    return {"name": name, **outcome, "seconds": round(time.monotonic() - start, 1)}


def work(names: list[str], out: Path, most_gib: float) -> None:
    """One process: tries the names that have no line yet, and notes which it is at."""
    at = out.with_suffix(f".{os.getpid()}")
    for name in names:
        at.write_text(name)
        line = json.dumps(tried(name, most_gib))
        with out.open("a") as file:
            file.write(line + "\n")
        gc.collect()
    at.unlink()


def done(out: Path) -> set[str]:
    lines = map(json.loads, out.read_text().splitlines()) if out.exists() else ()
    return {line["name"] for line in lines if line["outcome"] != "skipped"}


def run(library: str, out: Path, num_processes: int, most_gib: float) -> None:
    for left in out.parent.glob(f"{out.stem}.[0-9]*"):  # of processes that ended within a network
        if left.read_text() not in done(out):
            with out.open("a") as file:
                file.write(json.dumps({"name": left.read_text(), "outcome": "ended its process"}) + "\n")
        left.unlink()
    names = [name for name in names_of(library) if name not in done(out)]
    random.Random(0).shuffle(names)  # so that a part of them is a fair sample
    parts = [names[n::num_processes] for n in range(num_processes)]
    command = [sys.executable, "-m", "benchmarks.networks", "--at-most", str(most_gib), "work", str(out)]
    num_done = len(done(out))
    processes = [subprocess.Popen([*command, *part]) for part in parts if part]
    codes = [process.wait() for process in processes]
    if any(codes) and len(done(out)) > num_done:
        run(library, out, num_processes, most_gib)


def report(out: Path) -> None:
    lines = list({line["name"]: line for line in map(json.loads, out.read_text().splitlines())}.values())
    counts = Counter(line["outcome"] for line in lines)
    num_tried = len(lines) - counts["skipped"]
    print(f"{len(lines)} networks: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
    print(f"{counts['works'] / num_tried:.1%} of the {num_tried} of at most 8 GiB work")
    working = [line for line in lines if line["outcome"] == "works"]
    numbers = {
        "unfused": sum(not line["is_fused"] for line in working),
        "seeing pictures one by one": sum(line["is_coupled"] for line in working),
        "without classes": sum(line["class_layer"] is None for line in working),
    }
    print(", ".join(f"{number} {what}" for what, number in numbers.items()))
    for line in lines:
        if line["outcome"] != "works":
            print(f"| `{line['name']}` | {line['outcome']} | {line.get('why', '')} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["torchvision", "timm", "work", "report"])
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--at-most", type=float, default=8, help="GiB of weights")
    args = parser.parse_args()
    if args.what == "work":
        work(args.names, args.out, args.at_most)
    elif args.what == "report":
        report(args.out)
    else:
        run(args.what, args.out, args.processes, args.at_most)
