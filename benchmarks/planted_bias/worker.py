"""What the worker processes do: features of photographs and pictures, and drawing. Every result is a file.

A repeated call finds the files of the one before. Shapes: N pictures, K features.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.planted_bias import drawing
from benchmarks.planted_bias.cues import CUES, drawn
from benchmarks.planted_bias.detectors import Eye
from benchmarks.planted_bias.heads import feature_network
from benchmarks.planted_bias.photographs import POOL_SHARE, SIZES, Part, Photographs, loaded, which_have
from dgn.cluster.environment import WORKER_ENVIRONMENT
from dgn.method.recipes import Precision
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import network_named
from dgn.networks.weights import NetworkWeights, load_weights

CHUNK = 25  # photographs that a network sees at a time
ANIMAL = 104  # ImageNet's wallaby, which is how networks call kangaroos


@dataclass(frozen=True)
class Places:
    """Where everything lies.

    Args:
        photographs: the folder with `dogs` and `other`.
        weights: the file of each network's weights; None for those that come with a package.
        work: the folder for features and pictures.
    """

    photographs: Path
    weights: dict[str, Path | None]
    work: Path

    @property
    def animals(self) -> Path:
        return self.work / "animals.json"

    def features(self, network: str, part: Part, cue: str | None) -> Path:
        return self.work / "features" / network / f"{part}, {cue or 'no cue'}.pt"

    def seen(self, network: str, head: str, contender: str, count: int, cue: str | None) -> Path:
        """The eye's features of as many generated pictures, onto which a cue may be drawn."""
        return self.work / "features" / "pictures" / f"{network}, {head}, {count} {contender}, {cue or 'no cue'}.pt"

    def pictures(self, network: str, head: str, contender: str) -> Path:
        return self.work / "pictures" / network / head / contender


class Worker:
    """One process's networks and photographs."""

    def __init__(self, places: Places):
        self.places = places
        self.weights = lru_cache(self._weights)
        self.feature_network = lru_cache(self._feature_network)

    @cached_property
    def eye(self) -> Eye:
        return Eye()

    @cached_property
    def photographs(self) -> Photographs:
        return Photographs(self.places.photographs, json.loads(self.places.animals.read_text()))

    def _weights(self, network: str) -> NetworkWeights:
        return load_weights(network_named(network), self.places.weights[network])

    def _feature_network(self, network: str) -> FrozenNetwork:
        return feature_network(self.weights(network))

    @torch.no_grad()
    def animals(self, network: str, files: list[Path]) -> list[str]:
        """Names of the photographs in which a network sees a kangaroo first."""
        classifier = FrozenNetwork(self.weights(network))
        names, layer = [], classifier.layers.classes()
        for chunk in (files[i : i + CHUNK] for i in range(0, len(files), CHUNK)):
            units = classifier.responses(loaded(chunk) / 255, [layer])[layer].argmax(1).tolist()
            names += [file.name for file, unit in zip(chunk, units, strict=True) if unit == ANIMAL]
        return names

    @torch.no_grad()
    def features(self, network: str, part: Part, cue: str | None) -> None:
        """What a network's head, or the eye, reads of a part. With a cue, zeros stand for what nobody needs: the
        others of the heads' part, and for the eye the photographs that do not have it where they are ranked."""
        is_needed_N = torch.ones(2 * SIZES[part], dtype=torch.bool)
        if cue is not None and part == "heads":
            is_needed_N[SIZES[part] :] = False
        if cue is not None and (network, part) == ("eye", "held out"):
            is_needed_N = which_have(cue, part, POOL_SHARE)
        kept = []
        for which in is_needed_N.nonzero()[:, 0].split(CHUNK):
            images_N3HW = self.photographs.some(part, cue, which.tolist())
            if network == "eye":
                kept.append(self.eye.features(images_N3HW))
            else:
                classifier = self.feature_network(network)
                layer = classifier.layers.classes()
                kept.append(classifier.responses(images_N3HW, [layer])[layer])
        features_NK = torch.zeros(len(is_needed_N), kept[0].shape[1])
        features_NK[is_needed_N] = torch.cat(kept)
        save(features_NK, self.places.features(network, part, cue))

    def seen(self, network: str, head: str, contender: str, count: int, cue: str | None) -> None:
        """What the eye sees of a network's pictures. A cue is drawn only onto their second half."""
        images_N3HW = drawing.pictures_in(self.places.pictures(network, head, contender), count)
        if cue is not None:
            half = range(count // 2, count)
            images_N3HW = drawn(self.photographs.cues("held out")[cue], 100 + CUES.index(cue), images_N3HW[half], half)
        seen = [self.eye.features(some) for some in images_N3HW.split(CHUNK)]
        save(torch.cat(seen), self.places.seen(network, head, contender, count, cue))

    def draw(
        self, network: str, head: str, parts: tuple[Tensor, Tensor], contender: str, seeds: list[int],
        precision: Precision,
    ) -> None:  # fmt: skip
        """Pictures of the dogs of a network with these weights and biases of its head."""
        folder = self.places.pictures(network, head, contender)
        drawing.draw(self.weights(network), *parts, drawing.CONTENDERS[contender], seeds, precision, folder)


def save(tensor: Tensor, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    torch.save(tensor, beside)
    beside.rename(path)


_worker: Worker


def _start(places: Places) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = Worker(places)


def _call(method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return method(_worker, *arguments)


class Workers:
    """Processes of one thread each."""

    def __init__(self, places: Places, count: int):
        os.environ.update(WORKER_ENVIRONMENT, OMP_NUM_THREADS="1")
        self.count = count
        self.pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start, (places,))

    def run(self, method: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        """What the method returns for each of the calls, in any order."""
        waiting = [self.pool.submit(_call, method, arguments) for arguments in calls]
        start, results = time.perf_counter(), []
        for ready in as_completed(waiting):
            results.append(ready.result())
            seconds = time.perf_counter() - start
            print(f"{method.__name__}: {len(results)} of {len(waiting)}, {seconds:.0f} s", flush=True)
        return results
