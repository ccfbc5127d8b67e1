"""How fast photographs are looked at: `python -m benchmarks.examples IMAGES --out FILE.json`.

For all classes and one layer of EfficientNet-Lite0: photographs a second of `dgn examples` from the first commit to the
last, and before and after it those of the plain network alone, in as many processes of one thread each, on photographs
that are decoded already. Lists of some units are compared with a plain loop in float64 over the first photographs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine
from benchmarks.new_run import new_run
from dgn.cluster.examples import find_examples, subjects_of
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import network_named
from dgn.networks.weights import filled, load_weights
from dgn.pictures.example_sheets import NUM_BEST
from dgn.pictures.examples import Watcher
from dgn.pictures.photographs import load_photograph
from dgn.runs.config import RunConfig
from dgn.runs.examples import Examples
from dgn.runs.photographs import list_photographs, make_photograph_plan, photograph_store, read_shard
from dgn.runs.plan import make_plan
from dgn.runs.run import Run
from dgn.runs.stores import open_store

NETWORK, LAYER, BATCH = "efficientnet_lite0", "_blocks.8._bn1", 16


def config_of(layer: str) -> RunConfig:
    return RunConfig(discriminator=NETWORK, targets=("classes", f"filters:{layer}"), precision="float32")


def forward_rate(seconds: float) -> float:
    """Photographs a second of one process, which has one thread."""
    torch.set_num_threads(1)
    network = FrozenNetwork(load_weights(NETWORK))
    pictures = torch.rand(BATCH, 3, network.size_px, network.size_px)
    layer, start, count = network.layers.classes(), 0.0, -3
    while count < 1 or time.perf_counter() - start < seconds:
        if count == 0:
            start = time.perf_counter()
        network.scores(pictures, layer)
        count += 1
    return BATCH * count / (time.perf_counter() - start)


def forward_rates(num_processes: int, seconds: float) -> float:
    """Of all processes together."""
    with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
        return sum(pool.map(forward_rate, [seconds] * num_processes))


def looked_at(url: str, images: str, num_workers: int) -> float:
    """Makes the examples. Returns photographs a second, from the first commit to the last."""
    commits: list[tuple[float, int]] = []

    def observe(progress: Any) -> None:
        if not commits or progress.pictures_done > commits[-1][1]:
            commits.append((time.perf_counter(), progress.pictures_done))

    find_examples(Run(open_store(url)), images, "image", {}, (num_workers, num_workers), None, observe)
    done = [commit for commit in commits if commit[1]]
    return (done[-1][1] - done[0][1]) / (done[-1][0] - done[0][0])


def largest_difference(config: RunConfig, images: str, num_units: int, num_photographs: int) -> float:
    """Between values of the watched network and of a plain loop in float64, as a share of the largest of each unit.
    Raises: AssertionError if a list of the nine best would differ although its values do not lie within that."""
    weights = load_weights(NETWORK)
    subjects = subjects_of(make_plan(config, weights.network.layers))
    chosen = [subjects[int(n)] for n in np.linspace(0, len(subjects) - 1, num_units)]
    watcher = Watcher(FrozenNetwork(weights), chosen)
    plain = filled(weights.network, weights.state).eval().double()
    kept: dict[str, torch.Tensor] = {}
    for layer in watcher.layers:
        module, _ = weights.network.layers.module_of(layer)
        plain.get_submodule(module).register_forward_hook(lambda _m, _i, out, layer=layer: kept.update({layer: out[0]}))
    means, stds = (torch.tensor(v).double().reshape(-1, 1, 1) for v in (weights.network.means, weights.network.stds))
    store = photograph_store(images)
    plan = make_photograph_plan(store, list_photographs(store), "image")
    ours, theirs = list[Any](), list[Any]()
    for index in range(plan.num_shards):
        for _, read in read_shard(store, plan, index):
            if len(ours) == num_photographs:
                break
            square = load_photograph(read(), watcher.square_px)
            ours.append(watcher.look(square[None]).values_NS[0])
            seen = torch.from_numpy(watcher.seen(square).copy()).permute(2, 0, 1).double() / 255
            with torch.no_grad():
                plain(((seen * weights.network.value_range - means) / stds)[None])
            row = []
            for subject in chosen:
                response = kept[subject.layer][subject.units[0].unit]
                row.append((response if response.ndim == 0 else response.clamp_min(0).mean()).item())
            theirs.append(row)
    found_NS, expected_NS = np.array(ours, np.float64), np.array(theirs)
    difference = float((np.abs(found_NS - expected_NS).max(0) / np.abs(expected_NS).max(0)).max())
    for s in range(num_units):
        best = np.argsort(-found_NS[:, s], kind="stable")[:NUM_BEST]
        wanted = np.sort(expected_NS[:, s])[::-1][:NUM_BEST]
        np.testing.assert_allclose(expected_NS[best, s], wanted, atol=difference * np.abs(expected_NS[:, s]).max())
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement of the network alone")
    parser.add_argument("--units", type=int, default=50, help="that are compared with a plain loop")
    parser.add_argument("--photographs", type=int, default=300, help="for that")
    arguments = parser.parse_args()
    config = config_of(LAYER)
    assert LAYER in network_named(NETWORK).layers.units
    figures: dict[str, Any] = {"network": NETWORK, "layer": LAYER, "workers": arguments.workers, "machine": machine()}
    before = forward_rates(arguments.workers, arguments.seconds)
    with tempfile.TemporaryDirectory() as folder:
        new_run(folder, config)
        rate = looked_at(folder, arguments.images, arguments.workers)
        done = Examples.of(Run(open_store(folder))).done()
        assert done
        figures |= {"photographs": done.num_photographs, "units": done.num_subjects, "examples": done.num_examples}
    after = forward_rates(arguments.workers, arguments.seconds)
    alone = statistics.mean([before, after])
    figures |= {"network_alone_per_s": [before, after], "examples_per_s": rate, "share": rate / alone}
    figures["largest_difference"] = largest_difference(config, arguments.images, arguments.units, arguments.photographs)
    print(json.dumps(figures, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
