"""Directions in the space of a layer's units: principal components, concept vectors, features of an autoencoder."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dgn.errors import TargetError
from dgn.targets import Group, Measure, WeightedUnit
from dgn.text import in_one_line

MEASURES: tuple[Measure, ...] = ("cosine", "dot")


def with_absolute_path(spec: str) -> str:
    """A target's text, with the whole path of its file if it is a direction's."""
    kind, _, rest = spec.partition(":")
    layer, colon, file = rest.partition(":")
    return f"{kind}:{layer}:{Path(file).expanduser().absolute()}" if kind == "direction" and colon else spec


def read_directions(file: str, layer: str, num_units: int, spec: str) -> tuple[Measure, dict[Group, str]]:
    """The vectors in a NumPy file with their names, and what is made large.

    Args:
        file: `FILE.npy`, `FILE.npy:cosine` (the same) or `FILE.npy:dot`: one vector, or a row for each.
        num_units: of the layer; a vector has as many numbers.
        spec: for messages.

    Raises: TargetError.
    """
    measure: Measure = "cosine"
    for known in MEASURES:
        if file.endswith(f":{known}"):
            file, measure = file.removesuffix(f":{known}"), known
    path = Path(file).expanduser()
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TargetError(
            f"cannot read the direction in '{spec}': {in_one_line(error)}; expected a .npy file"
        ) from error
    is_array = isinstance(vectors, np.ndarray) and vectors.ndim in (1, 2) and vectors.dtype.kind in "fiu"
    if not is_array or vectors.shape[-1] != num_units or not vectors.size:
        found = f"an array of shape {vectors.shape}" if isinstance(vectors, np.ndarray) else "several arrays"
        raise TargetError(
            f"'{spec}' holds {found}: expected {num_units} numbers, one per unit of {layer}, or rows of them"
        )
    rows = np.atleast_2d(vectors).astype(np.float64)
    stem = re.sub(r"[^A-Za-z0-9_.]+", "_", path.stem)[:40]
    names = [stem] if vectors.ndim == 1 else [f"{stem}-{n:05d}" for n in range(len(rows))]
    directions: dict[Group, str] = {}
    for name, row in zip(names, rows, strict=True):
        length = np.linalg.norm(row)
        if not 0 < length < np.inf:
            raise TargetError(f"{name} in '{spec}' has the length {length:g}: expected finite numbers, not all 0")
        units = tuple(WeightedUnit(layer, int(n), float(row[n] / length)) for n in np.flatnonzero(row))
        if units in directions:
            raise TargetError(f"{name} and {directions[units]} in '{spec}' are the same direction: leave one out")
        directions[units] = name
    return measure, directions
