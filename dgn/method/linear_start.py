"""The decoder's start in the standard recipe: the linear map of its code's transform, found layer by layer.

As in `autoencoder.look_linear`, channels before a ReLU come in pairs of opposite sign, so that the network is linear at
first: a pair carries one signal. Each layer's signals are what the transform's picture shows around a place of that
layer's map, on a lattice of points; a layer's kernel is the least-squares map to them from the signals before.

Shapes: N pictures, C, O channels, H, W the map, k kernel.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgn.method.architecture import Conv
from dgn.method.autoencoder import Decoder
from dgn.method.generator import NORM_EPS, convolve, running_averages
from dgn.method.lapped import MARGIN_PX, PLACE_PX, WINDOW_PX, LappedTransform

NUM_POINTS = 30_000  # places of a map from which a layer's kernel is found
RIDGE = 1e-4  # of the mean square of a layer's inputs
OVERLAP = 1.1  # least side of a lattice, in distances between the map's places
SPARE_SCALE = 0.3  # of a random orthogonal start, for channels that carry no signal yet; nothing reads them at first


@torch.no_grad()
def start_linear(decoder: Decoder, transform: LappedTransform, surrounded_N3HW: Tensor, seed: int = 0) -> None:
    """Sets the decoder's weights so that it draws nearly what the transform does.

    Args:
        surrounded_N3HW: photographs as the transform encodes them; a few dozen of the generator's size.
    """
    stream = torch.Generator().manual_seed(seed)
    code = transform.encode(surrounded_N3HW)
    pictures = transform.decode(code) - transform.colours[:, None, None]
    signals, pitch, first = code, float(PLACE_PX), WINDOW_PX / 2 - MARGIN_PX
    convs = decoder.architecture.convs
    for i, conv in enumerate(convs):
        if conv.is_after_upsample:
            pitch, first = pitch / 2, first - pitch / 4 + (conv.kernel_px - 1) * pitch / 4
        read = _read(signals, conv)
        side = read.shape[-1] - conv.kernel_px + 1
        wanted = _around(pictures, side, pitch, first, conv.out_channels // 2) if conv.has_relu else pictures
        kernel = _least_squares(read, wanted, conv.kernel_px, stream)
        _set_signals(decoder.get_submodule(f"conv{i}"), kernel, is_first=i == 0, has_pairs_out=conv.has_relu)
        signals = F.conv2d(read, kernel)
    _calibrate(decoder, code, transform.colours)


def _read(signals: Tensor, conv: Conv) -> Tensor:
    """What a convolution reads: the map upsampled, or padded as `generator.conv_same` does."""
    if conv.is_after_upsample:
        return F.interpolate(signals, scale_factor=2, mode="nearest")
    before, after = (conv.kernel_px - 1) // 2, conv.kernel_px // 2
    return F.pad(signals, (before, after, before, after))


def _around(pictures_N3HW: Tensor, side: int, pitch: float, first: float, at_most: int) -> Tensor:
    """What pictures show around each place of a map: (N, O, side, side), O at most so many.

    Args:
        pitch: px between the map's places.
        first: position of the first place in px from the picture's edge.
    """
    px = pictures_N3HW.shape[-1]
    m = max(1, math.isqrt(at_most // 3))  # points along each side of the lattice
    spacing = 1
    while m * spacing < OVERLAP * pitch and spacing < PLACE_PX // 2:
        spacing *= 2
    smooth = F.interpolate(pictures_N3HW, size=(px // spacing, px // spacing), mode="area")
    smooth = F.interpolate(smooth, size=(px, px), mode="bilinear", align_corners=False)
    places = first + pitch * torch.arange(side)
    points = (places[:, None] + spacing * (torch.arange(m) - (m - 1) / 2)).flatten() / px * 2 - 1
    grid = torch.stack(torch.meshgrid(points, points, indexing="ij")[::-1], dim=-1)
    drawn = F.grid_sample(
        smooth, grid.expand(len(smooth), -1, -1, -1), padding_mode="reflection", align_corners=False
    ).unflatten(3, (side, m))
    lattice = drawn.unflatten(2, (side, m)).permute(0, 1, 3, 5, 2, 4)  # (N, 3, m, m, side, side)
    return lattice.flatten(1, 3)[:, :at_most]


def _least_squares(read_NCHW: Tensor, wanted_NOHW: Tensor, kernel_px: int, stream: torch.Generator) -> Tensor:
    """The kernel (O, C, k, k) whose valid convolution of `read` comes closest to `wanted`."""
    n, o, height, width = wanted_NOHW.shape
    chosen = torch.randperm(n * height * width, generator=stream)[:NUM_POINTS]
    picture, row, column = chosen // (height * width), chosen // width % height, chosen % width
    patches = read_NCHW.unfold(2, kernel_px, 1).unfold(3, kernel_px, 1)[picture, :, row, column].flatten(1)
    products = patches.T @ patches
    products.diagonal().add_(RIDGE * products.diagonal().mean())
    solved = torch.linalg.solve(products, patches.T @ wanted_NOHW[picture, :, row, column])
    return solved.T.reshape(o, -1, kernel_px, kernel_px)


def _set_signals(module: nn.Module, kernel: Tensor, is_first: bool, has_pairs_out: bool) -> None:
    """Writes a map of signals into a convolution over channels in pairs: the first half of them, then their opposites.
    What it leaves keeps a share of its random start, but nothing reads channels without a signal."""
    assert isinstance(module, nn.Conv2d)
    weight, (o, c) = module.weight, kernel.shape[:2]
    half_out, half_in = weight.shape[0] // 2, weight.shape[1] // 2
    spare = weight * SPARE_SCALE
    weight.zero_()
    if has_pairs_out:
        for start in (0, half_out):
            weight[start + o : start + half_out] = spare[start + o : start + half_out]
    for out_start, out_sign in ((0, 1), (half_out, -1)) if has_pairs_out else ((0, 1),):
        for in_start, in_sign in ((0, 1),) if is_first else ((0, 1), (half_in, -1)):
            weight[out_start : out_start + o, in_start : in_start + c] = out_sign * in_sign * kernel


def _calibrate(decoder: Decoder, code: Tensor, colours_3: Tensor) -> None:
    """Sets every normalisation to change nothing: its averages to what it sees, scales and shifts to undo them."""
    weights = dict(decoder.named_parameters()) | dict(decoder.named_buffers())
    x, convs = code, decoder.architecture.convs
    for i, conv in enumerate(convs):
        x = convolve(x, weights, i, conv)
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        for name, values in (("mean", mean), ("var", var), ("gamma", (var + NORM_EPS).sqrt()), ("beta", mean)):
            weights[f"norm{i}.{name}"].copy_(values)
        x = running_averages(x, weights, i)
    weights[f"norm{len(convs) - 1}.beta"].add_(colours_3)
