"""Which pictures look alike: their features in a second network, neighbours, two figures per picture, and a map."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgn.errors import DgnError
from dgn.method.objectives import unit_values
from dgn.networks.frozen import FrozenNetwork

NUM_QUERIES = 512  # whose cosines with all pictures are in memory at a time: 2 GB for a million pictures
NUM_NEIGHBOURS = 14  # of a picture, for the map
FEWEST_ON_MAP = 2 * NUM_NEIGHBOURS
MAP_SEED = 0


def features(pictures_N3HW: Tensor, network: FrozenNetwork) -> NDArray[np.float64]:
    """What a network makes of pictures (N, 3, H, W), uint8, before it names a class: the means of its last maps after
    the ReLU, (N, channels)."""
    layer = network.layers.filter_layers[-1]
    responses, _ = network.all_scores(pictures_N3HW / 255, [layer])
    return unit_values(responses[layer]).activation.cpu().double().numpy()


def main_directions(blocks: Iterable[NDArray[np.floating]], num_directions: int) -> NDArray[np.float32] | None:
    """The directions that lose least of unit-length features, (channels, directions), orthonormal; None for none.

    No mean is taken off, so cosines stay what they are among all channels.

    Args:
        blocks: features, (N, channels) each.
    """
    moments: NDArray[np.float64] | None = None
    for block in blocks:
        unit = normalised(block).astype(np.float64)
        moments = unit.T @ unit if moments is None else moments + unit.T @ unit
    if moments is None:
        return None
    _, vectors = np.linalg.eigh(moments)  # ascending
    return vectors[:, ::-1][:, :num_directions].astype(np.float32)


def normalised(values_NC: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows of unit length; zeros stay zeros."""
    values = values_NC.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def nearest(
    unit_NC: NDArray[np.float32], count: int, observe: Callable[[int], None] = lambda done: None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The `count` other rows with the highest cosines, highest first: their numbers and the cosines, (N, count) each.

    Exact: every row is compared with every other.

    Args:
        unit_NC: rows of unit length, no zeros; more than `count`.
        observe: called with the number of rows that are done.
    """
    every = torch.from_numpy(unit_NC)
    rows, cosines = np.empty((len(every), count), np.int32), np.empty((len(every), count), np.float32)
    for start in range(0, len(every), NUM_QUERIES):
        block = every[start : start + NUM_QUERIES] @ every.T
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = -torch.inf
        best = block.topk(count)
        rows[start : start + len(block)], cosines[start : start + len(block)] = best.indices, best.values
        observe(start + len(block))
    return rows, cosines


def redundancy(
    unit_NC: NDArray[np.float32], groups_N: NDArray[np.integer], units_N: NDArray[np.integer]
) -> NDArray[np.float32]:
    """For each picture the highest cosine with a picture of another unit of its group; NaN where there is none."""
    highest = np.full(len(unit_NC), np.nan, np.float32)
    for members in _members(groups_N):
        of_group, units = torch.from_numpy(unit_NC[members]), torch.from_numpy(units_N[members])
        for start in range(0, len(members), NUM_QUERIES):
            block = of_group[start : start + NUM_QUERIES] @ of_group.T
            block[units[start : start + NUM_QUERIES, None] == units] = -torch.inf
            most = block.amax(1).numpy()
            highest[members[start : start + NUM_QUERIES]] = np.where(np.isfinite(most), most, np.nan)
    return highest


def spread(unit_NC: NDArray[np.float32], units_N: NDArray[np.integer]) -> NDArray[np.float32]:
    """For each picture how much the pictures of its unit differ: the mean of 1 - cosine over their pairs; NaN where
    there is one picture alone."""
    differ = np.full(len(unit_NC), np.nan, np.float32)
    for members in _members(units_N):
        if (num := len(members)) > 1:
            # The squared length of a sum of unit vectors is their number plus twice the cosines of all pairs.
            cosines = (np.square(unit_NC[members].sum(0, dtype=np.float64)).sum() - num) / (num * (num - 1))
            differ[members] = max(0.0, 1 - cosines)
    return differ


def _members(numbers_N: NDArray[np.integer]) -> Sequence[NDArray[np.intp]]:
    """The places of each number."""
    order = np.argsort(numbers_N, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(numbers_N[order])) + 1)


def on_map(
    unit_NC: NDArray[np.float32], neighbours_NK: NDArray[np.int32], cosines_NK: NDArray[np.float32]
) -> NDArray[np.float32]:
    """A place for each picture, (N, 2) in [0, 1], near those of its neighbours (UMAP, McInnes et al. 2018).

    The same on any number of cores. Both axes have the same scale.

    Args:
        neighbours_NK, cosines_NK: as `nearest` returns them, NUM_NEIGHBOURS each, for at least FEWEST_ON_MAP pictures.
    """
    import umap  # compiles for some seconds

    # That places cannot be found for later pictures, which nobody asks for.
    warnings.filterwarnings("ignore", "precomputed_knn", UserWarning, module="umap")
    itself = np.arange(len(unit_NC), dtype=np.int32)[:, None]
    rows = np.concatenate([itself, neighbours_NK], 1)
    distances = np.concatenate([np.zeros_like(itself, np.float32), np.maximum(1 - cosines_NK, 0)], 1)
    mapper = umap.UMAP(
        n_neighbors=NUM_NEIGHBOURS + 1,
        metric="cosine",
        init="pca",  # the spectral start may fail, and then is random
        random_state=MAP_SEED,
        n_jobs=1,
        precomputed_knn=(rows, distances, None),
    )
    places = mapper.fit_transform(unit_NC)
    low, high = places.min(0), places.max(0)
    return ((places - (low + high) / 2) / (high - low).max() + 0.5).astype(np.float32)


def check_map_library() -> None:
    """Raises: DgnError if it is not installed."""
    if find_spec("umap") is None:
        raise DgnError("the map needs umap-learn: pip install 'dgn[map]', or leave the map out with --no-map")
