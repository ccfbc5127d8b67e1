"""Directions in the space of a layer's units: principal components, concept vectors, features of an autoencoder."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgn.errors import TargetError
from dgn.targets import Directions, Measure, of_length_1
from dgn.text import in_one_line

NamedVector = tuple[str, NDArray[Any]]
MEASURES: tuple[Measure, ...] = ("cosine", "dot")


def with_absolute_path(spec: str) -> str:
    """A target's text, with the whole path of its file if it is a direction's."""
    kind, _, rest = spec.partition(":")
    layer, colon, file = rest.partition(":")
    return f"{kind}:{layer}:{Path(file).expanduser().absolute()}" if kind == "direction" and colon else spec


def read_directions(file: str, layer: str, num_units: int, spec: str) -> tuple[Measure, dict[bytes, NamedVector]]:
    """What is made large, and the vectors in a NumPy file with their names, by a hash of their directions.

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
    except Exception as error:  # whatever the parsers raise that NumPy hands a damaged file to
        raise TargetError(
            f"cannot read the direction in '{spec}': {in_one_line(error)}; expected a .npy file"
        ) from error
    is_array = isinstance(vectors, np.ndarray) and vectors.ndim in (1, 2) and vectors.dtype.kind in "fiu"
    if not is_array or vectors.shape[-1] != num_units or not vectors.size:
        found = f"an array of shape {vectors.shape}" if isinstance(vectors, np.ndarray) else "several arrays"
        raise TargetError(
            f"'{spec}' holds {found}: expected {num_units} numbers, one per unit of {layer}, or rows of them"
        )
    stem = re.sub(r"[^A-Za-z0-9_.]+", "_", path.stem)[:40]
    rows = np.atleast_2d(vectors)
    names = [stem] if vectors.ndim == 1 else [f"{stem}-{n:05d}" for n in range(len(rows))]
    directions: dict[bytes, NamedVector] = {}
    for name, row in zip(names, rows, strict=True):
        length = np.linalg.norm(row.astype(np.float64))
        if not 0 < length < np.inf:
            raise TargetError(f"{name} in '{spec}' has the length {length:g}: expected finite numbers, not all 0")
        key = hashlib.sha256((of_length_1(row) + 0.0).tobytes()).digest()  # the sum makes 0 of -0
        if key in directions:
            raise TargetError(f"{name} and {directions[key][0]} in '{spec}' are the same direction: leave one out")
        directions[key] = name, row
    return measure, directions


def stacked(layer: str, directions: dict[bytes, NamedVector]) -> Directions:
    """Vectors of one layer as one array."""
    names, vectors = zip(*directions.values(), strict=True)
    return Directions(layer, names, np.stack(vectors))
