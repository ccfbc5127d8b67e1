"""Tensors as Ray's object store shares them: an array that is read from it lies in the machine's memory once.

Of a tensor every process that reads gets a copy of its own (Ray 2.60).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor


class Stored(NamedTuple):
    """A tensor's bytes, in its own order: that of its axes, or with the channels last."""

    dtype: torch.dtype
    shape: tuple[int, ...]  # in that order
    is_channels_last: bool
    data: NDArray[Any]


def as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, Stored]:
    """The tensors' bytes."""
    return {name: _stored(tensor.detach().cpu()) for name, tensor in tensors.items()}


def _stored(tensor: Tensor) -> Stored:
    is_channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    ordered = (tensor.movedim(1, -1) if is_channels_last else tensor).contiguous()
    return Stored(tensor.dtype, tuple(ordered.shape), is_channels_last, ordered.flatten().view(torch.uint8).numpy())


def as_tensors(arrays: Mapping[str, Stored], may_write: bool = False) -> dict[str, Tensor]:
    """The tensors again. Whoever writes into those that are shared ends its process.

    Args:
        may_write: they are copies.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        shared = {name: _tensor(stored) for name, stored in arrays.items()}
    return {name: tensor.clone() for name, tensor in shared.items()} if may_write else shared


def _tensor(stored: Stored) -> Tensor:
    tensor = torch.from_numpy(stored.data).view(stored.dtype).view(stored.shape)
    return tensor.movedim(-1, 1) if stored.is_channels_last else tensor
