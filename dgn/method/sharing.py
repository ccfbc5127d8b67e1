"""Tensors as Ray's object store shares them: an array that is read from it lies in the machine's memory once.

Of a tensor every process that reads gets a copy of its own (Ray 2.60).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = Mapping[str, tuple[torch.dtype, tuple[int, ...], "NDArray[Any]"]]


def as_arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    """The tensors' bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.flatten().view(torch.uint8).numpy())
        for name, tensor in plain.items()
    }


def as_tensors(arrays: Arrays, may_write: bool = False) -> dict[str, Tensor]:
    """The tensors again. Whoever writes into those that are shared ends its process.

    Args:
        may_write: they are copies.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        shared = {
            name: torch.from_numpy(array).view(dtype).view(shape) for name, (dtype, shape, array) in arrays.items()
        }
    return {name: tensor.clone() for name, tensor in shared.items()} if may_write else shared
