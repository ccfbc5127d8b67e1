"""The code of the standard decoder: what photographs show in windows that overlap.

Each of the code's places sees a window of 128 px, 64 px from the next, with sine weights whose squares add up to one
over neighbouring windows (a lapped transform; Malvar, "Signal Processing with Lapped Transforms", 1992). Its numbers
are the window's components along the principal axes of photographs' windows, each divided by its standard deviation.
So every number of the code has a variance of about 1 over photographs, the channels of a place are uncorrelated, and
pictures are linear in the code.

Shapes: N pictures, C channels of the code, h, w its places: h places decode to H = 64 h - 96 px (5 to 224, 3 to 96).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLACE_PX = 64  # from one place of the code to the next: what the generator's stages and crops make of one
WINDOW_PX = 2 * PLACE_PX
MARGIN_PX = 80  # from a picture's edge to the outer edge of its first window; the first place lies 16 px outside
SMALL_PX = 32  # side at which windows are analysed; 128 axes hold no finer details


class LappedTransform(nn.Module):
    """Pictures -> codes, and back without loss but for the components that are left out.

    Args:
        axes_C3ss: orthonormal principal axes of weighted windows, s = `SMALL_PX`.
        deviations_C: standard deviations of the components.
        colours_3: mean of photographs along the colour axes.
    """

    axes: Tensor
    deviations: Tensor
    colours: Tensor

    def __init__(self, axes_C3ss: Tensor, deviations_C: Tensor, colours_3: Tensor):
        super().__init__()
        self.register_buffer("axes", axes_C3ss)
        self.register_buffer("deviations", deviations_C)
        self.register_buffer("colours", colours_3)

    @classmethod
    def empty(cls, channels: int) -> LappedTransform:
        """To load the buffers of another into."""
        return cls(torch.zeros(channels, 3, SMALL_PX, SMALL_PX), torch.ones(channels), torch.zeros(3))

    def encode(self, surrounded_N3HW: Tensor) -> Tensor:
        """Pictures with `MARGIN_PX` more on each side, along the colour axes -> codes (N, C, h, w)."""
        kernel = self._windows() / self.deviations[:, None, None, None]
        windows = (surrounded_N3HW - self.colours[:, None, None]).unfold(2, WINDOW_PX, PLACE_PX)
        windows = windows.unfold(3, WINDOW_PX, PLACE_PX).permute(0, 2, 3, 1, 4, 5)  # (N, h, w, 3, 128, 128)
        return (windows.flatten(3) @ kernel.flatten(1).T).permute(0, 3, 1, 2)

    def decode(self, code_NChw: Tensor) -> Tensor:
        """The sum of the axes that a code stands for: pictures without margins, (N, 3, H, W)."""
        kernel = self._windows() * self.deviations[:, None, None, None]
        pictures = F.conv_transpose2d(code_NChw, kernel, stride=PLACE_PX)
        return pictures[..., MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX] + self.colours[:, None, None]

    def _windows(self) -> Tensor:
        """The axes at full size with their weights, (C, 3, 128, 128); without the weights each has norm 1."""
        large = F.interpolate(self.axes, size=(WINDOW_PX, WINDOW_PX), mode="bicubic", align_corners=False)
        return large / large.flatten(1).norm(dim=1)[:, None, None, None] * _weights(WINDOW_PX).to(large)


def _weights(side: int) -> Tensor:
    """Sine weights of a window, (side, side)."""
    sine = torch.sin(math.pi * (torch.arange(side) + 0.5) / side)
    return torch.outer(sine, sine)


@torch.no_grad()
def principal_transform(windows: Iterable[Tensor], channels: int) -> LappedTransform:
    """The transform along the strongest axes of photographs' windows.

    Args:
        windows: batches (N, 3, 128, 128) along the colour axes, from anywhere in photographs.
    """
    size = 3 * SMALL_PX**2
    products, colours, count = torch.zeros(size, size, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0
    weights_ss = _weights(SMALL_PX)
    shrunk = [F.interpolate(batch.float().cpu(), size=(SMALL_PX, SMALL_PX), mode="area") for batch in windows]
    for batch in shrunk:
        colours, count = colours + batch.mean((2, 3)).sum(0), count + len(batch)
    colours = colours / max(1, count)
    for batch in shrunk:
        flat = ((batch - colours.float()[:, None, None]) * weights_ss).flatten(1)
        products += (flat.T @ flat).double()
    squares, axes = torch.linalg.eigh(products / max(1, count))
    strongest = squares[-channels:].flip(0).clamp_min(squares[-1] * 1e-8)
    axes_C3ss = axes[:, -channels:].flip(1).T.unflatten(1, (3, SMALL_PX, SMALL_PX))
    # Small windows have a 16th of the values, and their components so much smaller deviations.
    deviations = strongest.sqrt() * (WINDOW_PX / SMALL_PX)
    return LappedTransform(axes_C3ss.float().contiguous(), deviations.float(), colours.float())
