"""The colour axes of photographs, in which the standard generators draw and the autoencoder learns."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dgn.discriminator import IMAGENET_MEAN

# Principal axes of the colour covariance of 900 ImageNet photographs (RGB in [0, 1]), each scaled by its standard
# deviation: luminance, red against blue, green against magenta. Rows are R, G, B. Measured for this project.
PHOTO_AXES = ((0.239, 0.089, 0.024), (0.245, 0.0, -0.049), (0.248, -0.085, 0.025))


def from_axes(components_N3HW: Tensor) -> Tensor:
    """Luminance and two colour differences, each of variance 1 over photographs -> RGB, (N, 3, H, W), [0, 1] shown."""
    return _mixed(PHOTO_AXES, components_N3HW) + _mean(components_N3HW)


def to_axes(rgb_N3HW: Tensor) -> Tensor:
    """The way back from RGB in [0, 1]."""
    inverse = torch.linalg.inv(torch.tensor(PHOTO_AXES, dtype=torch.float64)).tolist()
    return _mixed(tuple(map(tuple, inverse)), rgb_N3HW - _mean(rgb_N3HW))


def displayable(components_N3HW: Tensor) -> Tensor:
    """`from_axes` around grey and within (0, 1), by a sigmoid of slope 1 there: for pictures that no photograph taught.

    Differs from the paper: its three channels are the colours themselves, which drift to saturated primaries that no
    second network recognises (measured in docs/method.md).
    """
    return torch.sigmoid(4 * _mixed(PHOTO_AXES, components_N3HW))


def _mixed(matrix_33: tuple[tuple[float, ...], ...], x_N3HW: Tensor) -> Tensor:
    return torch.einsum("ij,njhw->nihw", _constant(matrix_33, x_N3HW.dtype, x_N3HW.device), x_N3HW)


def _mean(like: Tensor) -> Tensor:
    return _constant(IMAGENET_MEAN, like.dtype, like.device)[:, None, None]


@lru_cache
def _constant(values: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)  # kept, because a copy from the CPU cannot be replayed
