"""Between the generator and the classifier: pictures at the classifier's size, and views of them moved at random."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dgn.method.recipes import Moves


def resized(images_NCHW: Tensor, px: int) -> Tensor:
    """The pictures with another side: bilinear, smoothed before they get smaller. Keeps values within their range."""
    return F.interpolate(images_NCHW, (px, px), mode="bilinear", antialias=True, align_corners=False)


def draw_uniforms(moves: Moves, num_views: int, stream: torch.Generator) -> Tensor:
    """The random numbers behind V views of one picture, (V, 10), or (V, 4) if the views keep the picture's colours. In
    [0, 1), float32 on the CPU."""
    return torch.rand(num_views, 10 if moves.has_colours else 4, generator=stream)


def affine_maps(moves: Moves, uniforms_VR: Tensor) -> Tensor:
    """Affine maps (V, 2, 3) from a view's coordinates in [-1, 1] to the picture's. Leading axes are kept."""
    u = uniforms_VR[..., :4]
    scale = moves.scale_min + (moves.scale_max - moves.scale_min) * u[..., 0]
    angle = math.radians(moves.turn_deg) * (2 * u[..., 1] - 1)
    shift_x, shift_y = (2 * moves.shift * (2 * u[..., 2:] - 1)).unbind(-1)  # a side spans 2 in these coordinates
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    return torch.stack([cos, -sin, shift_x, sin, cos, shift_y], -1).unflatten(-1, (2, 3))


def colour_maps(moves: Moves, uniforms_VR: Tensor) -> Tensor:
    """Gain and offset of each of a view's colour channels, (V, 2, 3). Leading axes are kept."""
    gain, offset = (2 * uniforms_VR[..., 4:].unflatten(-1, (2, 3)) - 1).unbind(-2)
    return torch.stack([torch.exp(moves.colour_gain * gain), moves.colour_offset * offset], -2)


def recolour(views_N3HW: Tensor, colours_NV23: Tensor) -> Tensor:
    """The views with gain, about the middle of the range, and offset: (N * V, 3, H, W). Values may leave [0, 1]."""
    gain, offset = colours_NV23.flatten(0, 1)[..., None, None].unbind(1)
    return torch.addcmul(offset + (1 - gain) / 2, views_N3HW, gain)


def move(images_N3HW: Tensor, maps_NV23: Tensor) -> Tensor:
    """V views of each of N pictures, (N * V, 3, H, W), all views of a target together. Bilinear; reflected at the
    border."""
    n, v = maps_NV23.shape[:2]
    views = images_N3HW.repeat_interleave(v, 0)
    grid = F.affine_grid(maps_NV23.reshape(n * v, 2, 3), list(views.shape), align_corners=False)
    return F.grid_sample(views, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
