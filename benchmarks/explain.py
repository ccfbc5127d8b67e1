"""Which attribution finds the filters that a network's answer rests on:
`python -m benchmarks.explain IMAGES --discriminator NETWORK --weights FILE --layers LAYER,LAYER --out FILE.json`.

For each photograph and layer, every contender names the six filters that speak most for the network's answer. The
reference is none of them: the six are silenced together, and what counts is how far the answer's value falls. Silencing
each filter alone needs a run of the network for each, so it is measured in layers of at most `--most-units`; there it
is also compared with the other contenders, by rank correlation and by how many of the six are the same.
The file is written after each photograph.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import machine
from dgn.method.objectives import unit_values
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.weights import load_weights
from dgn.pictures.attribution import by_gradient, shortlist, silenced
from dgn.pictures.examples import seen, square_px
from dgn.pictures.explaining import SHORTLIST
from dgn.pictures.paths import ranked
from dgn.pictures.photographs import load_photograph
from dgn.runs.photographs import list_photographs, photograph_store

NUM_TOP = 6


def contenders(
    network: FrozenNetwork, image_3HW: Tensor, layer: str, class_: int, stream: np.random.Generator, most_units: int
) -> dict[str, Callable[[], Tensor]]:
    """By name, what gives a value to each filter."""
    num_units, listed = network.units[layer], SHORTLIST * NUM_TOP
    found = {
        "gradient": lambda: by_gradient(network, image_3HW, layer, class_, (1.0,)),
        "gradient at four": lambda: by_gradient(network, image_3HW, layer, class_),
        "shortlist": lambda: falls(
            network, image_3HW, layer, class_, shortlist(network, image_3HW, layer, class_, listed)
        ),
        "activation": lambda: activation_of(network, image_3HW, layer),
        "random": lambda: torch.from_numpy(stream.permutation(num_units)),
    }
    if num_units <= most_units:
        active = activation_of(network, image_3HW, layer).nonzero()[:, 0].tolist()
        found["silencing"] = lambda: falls(network, image_3HW, layer, class_, active)
    return found


def activation_of(network: FrozenNetwork, image_3HW: Tensor, layer: str) -> Tensor:
    """Of each filter, (U,)."""
    return unit_values(network.all_scores(image_3HW[None], [layer])[0][layer]).activation[0]


def falls(network: FrozenNetwork, image_3HW: Tensor, layer: str, class_: int, units: Sequence[int]) -> Tensor:
    """What the class's value loses when each of the units is silenced alone, (U,); 0 for all others."""
    values_N = silenced(network, image_3HW, layer, [(), *((unit,) for unit in units)])[:, class_]
    falls_U = torch.zeros(network.units[layer], dtype=torch.float64)
    falls_U[list(units)] = values_N[0] - values_N[1:]
    return falls_U


def look(
    network: FrozenNetwork, image_3HW: Tensor, layer: str, stream: np.random.Generator, most_units: int
) -> dict[str, Any]:
    """One photograph and layer."""
    class_ = int(silenced(network, image_3HW, layer, [()])[0].argmax())
    values, seconds = dict[str, Tensor](), dict[str, float]()
    for name, value in contenders(network, image_3HW, layer, class_, stream, most_units).items():
        started_s = time.process_time()
        values[name] = value().double()
        seconds[name] = time.process_time() - started_s
    top = {name: value_U.topk(NUM_TOP).indices.tolist() for name, value_U in values.items()}
    values_NC = silenced(network, image_3HW, layer, [(), *top.values()])
    probabilities_N = values_NC.softmax(1)[:, class_].tolist()
    falls = (values_NC[0, class_] - values_NC[1:, class_]).tolist()
    found: dict[str, Any] = {"layer": layer, "class": class_, "value": values_NC[0, class_].item(), "seconds": seconds}
    found |= {"fall": dict(zip(top, falls, strict=True)), "probability": probabilities_N[0]}
    found |= {"probability_without": dict(zip(top, probabilities_N[1:], strict=True))}
    if "silencing" in values:
        is_active_U = (values["activation"] > 0).numpy()
        alone = values["silencing"].numpy()[is_active_U]
        found["rank_correlation"] = {
            name: _rank_correlation(value_U.numpy()[is_active_U], alone)
            for name, value_U in values.items()
            if name != "shortlist"  # which values no others
        }
        found["same_of_six"] = {name: len({*units} & {*top["silencing"]}) for name, units in top.items()}
    return found


def _rank_correlation(one: Any, other: Any) -> float:
    """Spearman's."""
    one_rank, other_rank = ranked(np.stack([one, other]))
    return float(one_rank @ other_rank)


def summary(looks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means by layer and contender."""
    rows = []
    for layer in dict.fromkeys(one["layer"] for one in looks):
        of_layer = [one for one in looks if one["layer"] == layer]
        for name in of_layer[0]["fall"]:
            row: dict[str, Any] = {"layer": layer, "contender": name, "photographs": len(of_layer)}
            for measure in ("fall", "probability_without", "rank_correlation", "same_of_six", "seconds"):
                if name in of_layer[0].get(measure, ()):
                    row[measure] = float(np.mean([one[measure][name] for one in of_layer]))
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images")
    parser.add_argument("--discriminator", required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--layers", required=True)
    parser.add_argument("--photographs", type=int, default=50)
    parser.add_argument("--most-units", type=int, default=256, help="of layers in which each filter alone is silenced")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    network = FrozenNetwork(load_weights(arguments.discriminator, arguments.weights))
    store = photograph_store(arguments.images)
    names = list_photographs(store).photographs
    stream, looks = np.random.default_rng(0), list[dict[str, Any]]()
    chosen = [names[n] for n in stream.permutation(len(names))[: arguments.photographs]]
    for name in chosen:
        square_HW3 = load_photograph(store.read(name), square_px(network.size_px))
        image_3HW = torch.from_numpy(seen(square_HW3, network.size_px).copy()).permute(2, 0, 1) / 255
        for layer in arguments.layers.split(","):
            looks.append(look(network, image_3HW, layer, stream, arguments.most_units))
        figures = {"network": arguments.discriminator, "machine": machine(), "summary": summary(looks), "looks": looks}
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    for row in summary(looks):
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})


if __name__ == "__main__":
    main()
