"""The standard pretrained generator: a sum of overlapping windows, whose contents photographs determine.

The picture is drawn at 80 px and enlarged. Each of the code's 4 x 4 places has a window of 40 px, 20 px from the next,
with sine weights whose squares add up to one over neighbouring windows, except at the picture's edges (a lapped
transform; Malvar, "Signal Processing with Lapped Transforms", 1992). A place's numbers in the code are amounts of the
principal axes of photographs' windows. So pictures are linear in the code, and over all places of photographs its
channels are uncorrelated.

Shapes: N pictures, C channels of the code, P = 16 places, K = C P, s side of a window, S side of the small picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

PLACES = 4  # along each side
STEP = 20  # from one window to the next
SIDE = 2 * STEP  # of a window
SMALL_PX = PLACES * STEP  # 80
CHANNELS = 300  # of a code of 4,800 numbers; the paper's has 3,200
AXES_SHAPE = (3, SIDE, SIDE)


@dataclass(frozen=True)
class LappedTransform:
    """Codes -> pictures, and back without loss but for fine details and the axes that are left out.

    axes_C3ss: orthonormal, the strongest first. colours_3: mean of photographs along the colour axes.
    """

    axes_C3ss: Tensor
    colours_3: Tensor

    def encode(self, pictures_N3HW: Tensor) -> Tensor:
        """Pictures along the colour axes -> codes (N, K). What lies beyond a picture's edge is its reflection."""
        small = _shrunk(pictures_N3HW) - self.colours_3[:, None, None]
        return (self._weighted() @ F.unfold(_surrounded(small), SIDE, stride=STEP)).flatten(1)

    def decode(self, code_NK: Tensor, px: int) -> Tensor:
        """Codes -> pictures along the colour axes, (N, 3, px, px)."""
        axes = self._weighted()
        windows_NDP = axes.T @ code_NK.unflatten(1, (len(axes), -1))
        small = _overlapped(windows_NDP) / _squares(axes)
        large = F.interpolate(small, size=(px, px), mode="bicubic", align_corners=False)
        return large + self.colours_3[:, None, None]

    def reconstruct(self, pictures_N3HW: Tensor) -> Tensor:
        """Pictures (N, 3, H, H) along the colour axes, encoded and decoded."""
        return self.decode(self.encode(pictures_N3HW), pictures_N3HW.shape[-1])

    def _weighted(self) -> Tensor:
        """The axes with the windows' weights, (C, D)."""
        return (self.axes_C3ss * _sine_weights(self.axes_C3ss)).flatten(1)


def _sine_weights(like: Tensor) -> Tensor:
    """Of a window's pixels, (s, s), with `like`'s dtype and on its device."""
    sine = torch.sin(math.pi * (torch.arange(SIDE, dtype=torch.float64, device=like.device) + 0.5) / SIDE)
    return torch.outer(sine, sine).to(like.dtype)


def _overlapped(windows_NDP: Tensor) -> Tensor:
    """Windows at their places, added up: (N, D / s s, S, S)."""
    whole = F.fold(windows_NDP, (SMALL_PX + STEP,) * 2, SIDE, stride=STEP)
    return whole[..., STEP // 2 : -STEP // 2, STEP // 2 : -STEP // 2]


def _squares(like: Tensor) -> Tensor:
    """Sums of the squared weights at each pixel, (1, 1, S, S): 1 but at the edges, which fewer windows cover."""
    return _overlapped(_sine_weights(like).square().reshape(1, -1, 1).expand(-1, -1, PLACES**2))


def _shrunk(pictures_N3HW: Tensor) -> Tensor:
    return F.interpolate(pictures_N3HW, size=(SMALL_PX, SMALL_PX), mode="area")


def _surrounded(small_N3SS: Tensor) -> Tensor:
    return F.pad(small_N3SS, (STEP // 2,) * 4, mode="reflect")


@dataclass(frozen=True)
class Sums:
    """What the transform needs to know of photographs; the sums of two sets add up to those of both.

    small_3SS: the sum of the small pictures. products_DD: of the products of their weighted windows' pixels, D = 3 s s.
    """

    count: int
    small_3SS: NDArray[np.float64]
    products_DD: NDArray[np.floating]

    @classmethod
    def of(cls, pictures_N3HW: Tensor) -> Sums:
        """Of pictures along the colour axes."""
        small = _shrunk(pictures_N3HW)
        flat = _flat_windows(small)
        return cls(len(small), small.double().sum(0).numpy(), (flat.T @ flat).numpy())

    def __add__(self, other: Sums) -> Sums:
        products_DD = np.add(self.products_DD, other.products_DD, dtype=np.float64)
        return Sums(self.count + other.count, self.small_3SS + other.small_3SS, products_DD)


def _flat_windows(small_N3SS: Tensor) -> Tensor:
    """All weighted windows, (N P, D)."""
    windows_NDP = F.unfold(_surrounded(small_N3SS), SIDE, stride=STEP)
    weights_D = _sine_weights(small_N3SS).expand(AXES_SHAPE).reshape(-1, 1)
    return (windows_NDP * weights_D).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class Fitted:
    """A transform with the mean of photographs' codes, and the root mean squares of their channels over all places."""

    transform: LappedTransform
    mean_K: Tensor
    deviations_C: Tensor


def fitted(sums: Sums, channels: int) -> Fitted:
    """The transform along the strongest principal axes of photographs and their mirror images."""
    small = torch.from_numpy(sums.small_3SS) / sums.count
    small = (small + small.flip(2)) / 2
    colours_3 = small.mean((1, 2))
    products = torch.from_numpy(sums.products_DD).double().unflatten(0, AXES_SHAPE).unflatten(3, AXES_SHAPE)
    products_DD = ((products + products.flip(2, 5)) / 2).flatten(3).flatten(0, 2) / sums.count
    # The windows around the mean colours, from those around zero.
    total_D = _flat_windows(small[None]).sum(0)
    plain_D = _flat_windows(colours_3[:, None, None].expand(1, -1, SMALL_PX, SMALL_PX))
    cross_DD = torch.outer(total_D, plain_D[0])
    covariance_DD = (products_DD - cross_DD - cross_DD.T + plain_D.T @ plain_D) / PLACES**2
    squares, axes = torch.linalg.eigh(covariance_DD)
    transform = LappedTransform(
        axes[:, -channels:].flip(1).T.unflatten(1, AXES_SHAPE).float().contiguous(), colours_3.float()
    )
    # Axes along which photographs hardly vary get a tiny deviation instead of rounding errors.
    deviations = squares[-channels:].flip(0).clamp_min(1e-8 * squares[-1]).sqrt().float()
    return Fitted(transform, transform.encode(small[None].float())[0], deviations)
