"""The colour axes of photographs. The standard recipes draw along them, and the autoencoder learns along them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of ImageNet's photographs, RGB in [0, 1]; torchvision's networks subtract it
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMINANCE = (0.299, 0.587, 0.114)
# Principal axes of the colour covariance of 900 ImageNet photographs (RGB in [0, 1]), each scaled by its standard
# deviation: luminance, red against blue, green against magenta. Rows are R, G, B. Measured for this project.
PHOTO_AXES = ((0.239, 0.089, 0.024), (0.245, 0.0, -0.049), (0.248, -0.085, 0.025))


def from_axes(components_N3HW: Tensor) -> Tensor:
    """Luminance and two colour differences, each with variance 1 over photographs -> RGB, (N, 3, H, W); values in
    [0, 1] can be displayed."""
    return _mixed(PHOTO_AXES, components_N3HW) + _mean(components_N3HW)


def to_axes(rgb_N3HW: Tensor) -> Tensor:
    """The inverse of `from_axes`."""
    inverse = torch.linalg.inv(torch.tensor(PHOTO_AXES, dtype=torch.float64)).tolist()
    return _mixed(tuple(map(tuple, inverse)), rgb_N3HW - _mean(rgb_N3HW))


def grey(rgb_N3HW: Tensor) -> Tensor:
    """Luminance of RGB, (N, 1, H, W), with the weights that Pillow's grey pictures have (ITU-R BT.601)."""
    return _mixed((LUMINANCE,), rgb_N3HW)


def displayable(components_N3HW: Tensor) -> Tensor:
    """RGB within (0, 1) from components around grey: like `from_axes`, through a sigmoid with slope 1 at grey.

    Differs from the paper: there the three channels are the colours themselves. Those drift to saturated primaries that
    no second network recognises (measured, docs/method.md).
    """
    return torch.sigmoid(4 * _mixed(PHOTO_AXES, components_N3HW))


def _mixed(matrix_33: tuple[tuple[float, ...], ...], x_N3HW: Tensor) -> Tensor:
    return torch.einsum("ij,njhw->nihw", _constant(matrix_33, x_N3HW.dtype, x_N3HW.device), x_N3HW)


def _mean(like: Tensor) -> Tensor:
    return _constant(IMAGENET_MEAN, like.dtype, like.device)[:, None, None]


@lru_cache
def _constant(values: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)  # cached: a CUDA graph cannot replay a copy from the CPU
