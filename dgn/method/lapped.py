"""The standard pretrained generator: a sum of overlapping windows, whose contents photographs determine.

Windows of several sizes draw a picture together, band by band, from coarse to fine. A band draws a small picture that
is enlarged. Neighbouring windows overlap by half, with sine weights whose squares add up to one, except at the
picture's edges (a lapped transform; Malvar, "Signal Processing with Lapped Transforms", 1992). A place's numbers in the
code are amounts of the principal axes of what the coarser bands leave of photographs' windows. So pictures are linear
in the code, and over all places of photographs a band's channels are uncorrelated.

Shapes: N pictures, C channels of a band, P its places, s side of its windows, D = 3 s s, S side of its small picture,
K length of the code: C P of each band, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Band:
    """Windows of one size.

    Args:
        across: windows along each side of the picture.
        step: from one window to the next, in pixels of the small picture.
        channels: axes at width 1.
    """

    across: int
    step: int
    channels: int

    @property
    def places(self) -> int:
        return self.across**2

    @property
    def small_px(self) -> int:
        """S."""
        return self.across * self.step

    @property
    def axis_shape(self) -> tuple[int, int, int]:
        """(3, s, s)."""
        return 3, 2 * self.step, 2 * self.step

    def windows(self, small_N3SS: Tensor) -> Tensor:
        """All weighted windows, (N, D, P). What lies beyond the picture's edge is its reflection."""
        surrounded = F.pad(small_N3SS, (self.step // 2,) * 4, mode="reflect")
        return F.unfold(surrounded, 2 * self.step, stride=self.step) * self.weights(small_N3SS).reshape(-1, 1)

    def overlapped(self, windows_NDP: Tensor) -> Tensor:
        """The small pictures of weighted windows, (N, 3, S, S)."""
        weighted_NDP = windows_NDP * self.weights(windows_NDP).reshape(-1, 1)
        return self._added(weighted_NDP) / _squares(self, windows_NDP.dtype, windows_NDP.device)

    def shrunk(self, pictures_N3HW: Tensor) -> Tensor:
        """(N, 3, S, S)."""
        return F.interpolate(pictures_N3HW, size=(self.small_px, self.small_px), mode="area")

    def weights(self, like: Tensor) -> Tensor:
        """Of a window's pixels, (3, s, s), with `like`'s dtype and on its device."""
        return _sine_weights(self, like.dtype, like.device)

    def _added(self, windows_NDP: Tensor) -> Tensor:
        whole = F.fold(windows_NDP, (self.small_px + self.step,) * 2, 2 * self.step, stride=self.step)
        beyond = self.step // 2
        return whole[..., beyond:-beyond, beyond:-beyond]


def axes_name(band: int) -> str:
    """Of a band's axes among the weights of a decoder."""
    return f"windows{band}.axes"


BANDS = (Band(4, 20, 150), Band(8, 20, 100))  # coarse to fine


@lru_cache
def _sine_weights(band: Band, dtype: torch.dtype, device: torch.device) -> Tensor:
    side = 2 * band.step
    sine = torch.sin(math.pi * (torch.arange(side, dtype=torch.float64, device=device) + 0.5) / side)
    return torch.outer(sine, sine).expand(band.axis_shape).to(dtype)


@lru_cache
def _squares(band: Band, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sums of the squared weights at each pixel, (1, 3, S, S): 1 but at the edges, which fewer windows cover."""
    squares_D1 = _sine_weights(band, dtype, device).square().reshape(1, -1, 1)
    return band._added(squares_D1.expand(-1, -1, band.places))


@dataclass(frozen=True)
class LappedTransform:
    """Codes -> pictures, and back without loss but for fine details and the axes that are left out.

    axes: of the bands from coarse to fine, orthonormal, the strongest first: (C, 3, s, s) each. Some bands may be left
    out at the end. colours_3: mean of photographs along the colour axes.
    """

    axes: tuple[Tensor, ...]
    colours_3: Tensor

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> LappedTransform:
        """From the weights of a decoder, see `Architecture.shapes`."""
        return cls(tuple(weights[axes_name(i)] for i in range(len(BANDS))), weights["windows.colours"])

    def encode(self, pictures_N3HW: Tensor) -> Tensor:
        """Pictures along the colour axes -> codes (N, K)."""
        return self._split(pictures_N3HW)[0]

    def rest(self, pictures_N3HW: Tensor) -> Tensor:
        """What the bands leave of pictures along the colour axes: (N, 3, H, W)."""
        return self._split(pictures_N3HW)[1]

    def _split(self, pictures_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        rest, codes = pictures_N3HW - self.colours_3[:, None, None], []
        for band, axes_C3ss in zip(BANDS, self.axes, strict=False):
            axes_CD = axes_C3ss.flatten(1)
            code_NCP = axes_CD @ band.windows(band.shrunk(rest))
            rest = rest - _enlarged(band.overlapped(axes_CD.T @ code_NCP), rest.shape[-1])
            codes.append(code_NCP.flatten(1))
        return torch.cat(codes, 1), rest

    def decode(self, code_NK: Tensor, px: int) -> Tensor:
        """Codes -> pictures along the colour axes, (N, 3, px, px)."""
        sizes = [len(axes) * band.places for band, axes in zip(BANDS, self.axes, strict=False)]
        pictures = self.colours_3[:, None, None].expand(1, -1, px, px)
        for band, axes_C3ss, code in zip(BANDS, self.axes, code_NK.split(sizes, 1), strict=False):
            small = band.overlapped(axes_C3ss.flatten(1).T @ code.unflatten(1, (-1, band.places)))
            pictures = pictures + _enlarged(small, px)
        return pictures

    def reconstruct(self, pictures_N3HW: Tensor) -> Tensor:
        """Pictures (N, 3, H, H) along the colour axes, encoded and decoded."""
        return self.decode(self.encode(pictures_N3HW), pictures_N3HW.shape[-1])


def _enlarged(small_N3SS: Tensor, px: int) -> Tensor:
    return F.interpolate(small_N3SS, size=(px, px), mode="bicubic", align_corners=False)


@dataclass(frozen=True)
class Fitted:
    """A transform with the mean of photographs' codes, and the root mean square of each number around zero, over all
    places of its band; (K,) both."""

    transform: LappedTransform
    mean_K: Tensor
    deviations_K: Tensor

    def starts(self, pictures_N3HW: Tensor) -> Tensor:
        """Where the codes of pictures along the colour axes lie in the first band, in deviations: (N, C P)."""
        first = LappedTransform(self.transform.axes[:1], self.transform.colours_3).encode(pictures_N3HW)
        count = first.shape[1]
        return (first - self.mean_K[:count]) / self.deviations_K[:count]

    @property
    def band(self) -> Band:
        """The next to be fitted."""
        return BANDS[len(self.transform.axes)]


@dataclass(frozen=True)
class Sums:
    """What fitting a band needs to know of photographs; the sums of two sets add up to those of both.

    small_3SS: the sum of the small pictures. products_DD: of the products of their weighted windows' pixels.
    """

    band: Band
    count: int
    small_3SS: NDArray[np.float64]
    products_DD: NDArray[np.floating]

    @classmethod
    def of(cls, pictures_N3HW: Tensor, before: Fitted | None = None) -> Sums:
        """Of pictures along the colour axes, or of what the bands before leave of them."""
        band = before.band if before else BANDS[0]
        small = band.shrunk(before.transform.rest(pictures_N3HW) if before else pictures_N3HW)
        flat_ND = band.windows(small).transpose(1, 2).flatten(0, 1)
        return cls(band, len(small), small.double().sum(0).numpy(), (flat_ND.T @ flat_ND).numpy())

    def __add__(self, other: Sums) -> Sums:
        products_DD = np.add(self.products_DD, other.products_DD, dtype=np.float64)
        return Sums(self.band, self.count + other.count, self.small_3SS + other.small_3SS, products_DD)


def fitted(sums: Sums, channels: int, before: Fitted | None = None) -> Fitted:
    """A band along the strongest principal axes of photographs and their mirror images, behind those before."""
    band = sums.band
    small = torch.from_numpy(sums.small_3SS) / sums.count
    small = (small + small.flip(2)) / 2
    products = torch.from_numpy(sums.products_DD).double().unflatten(0, band.axis_shape).unflatten(3, band.axis_shape)
    products_DD = ((products + products.flip(2, 5)) / 2).flatten(3).flatten(0, 2) / sums.count
    # The windows around the mean colours, from those around zero. What bands leave of photographs has none.
    colours_3 = torch.zeros(3).double() if before else small.mean((1, 2))
    around = small - colours_3[:, None, None]
    plain_D = band.windows(colours_3[:, None, None].expand(1, -1, *small.shape[1:]))[0, :, 0]
    cross_DD = torch.outer(band.windows(small[None])[0].sum(1), plain_D)
    around_DD = products_DD - cross_DD - cross_DD.T + band.places * torch.outer(plain_D, plain_D)
    squares_C, axes_CD = _strongest(around_DD / band.places, band.axis_shape, channels)
    axes_CD = axes_CD.float()
    mean_CP = axes_CD @ band.windows(around[None].float())[0]
    # Axes along which photographs hardly vary get a tiny deviation instead of rounding errors.
    deviations_C = squares_C.clamp_min(1e-8 * squares_C[0]).sqrt().float()
    deviations_K = deviations_C.repeat_interleave(band.places)
    axes = axes_CD.unflatten(1, band.axis_shape)
    if before is None:
        return Fitted(LappedTransform((axes,), colours_3.float()), mean_CP.flatten(), deviations_K)
    transform = LappedTransform((*before.transform.axes, axes), before.transform.colours_3)
    both = (before.mean_K, mean_CP.flatten()), (before.deviations_K, deviations_K)
    return Fitted(transform, *map(torch.cat, both))


def _strongest(covariance_DD: Tensor, axis_shape: tuple[int, int, int], count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues (C), falling, and their eigenvectors (C, D), of windows and their mirror images.

    Each eigenvector is its own mirror image, or that with the other sign, so the left halves of both kinds are the
    eigenvectors of two matrices of half the size, which take a quarter of the time.
    """
    half = axis_shape[2] // 2
    left = covariance_DD.unflatten(0, axis_shape).unflatten(3, axis_shape)[:, :, :half]
    same, mirrored = (part.flatten(3).flatten(0, 2) for part in (left[..., :half], left[..., half:].flip(5)))
    squares, axes = [], []
    for sign in (1, -1):
        values, halves = torch.linalg.eigh(same + sign * mirrored)
        halves_C3sh = halves.T[-count:].unflatten(1, (*axis_shape[:2], half))
        squares.append(values[-count:])
        axes.append(torch.cat([halves_C3sh, sign * halves_C3sh.flip(3)], 3) / math.sqrt(2))
    squares_C, order_C = torch.cat(squares).sort(descending=True)
    return squares_C[:count], torch.cat(axes)[order_C[:count]].flatten(1)
