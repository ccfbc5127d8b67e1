"""Random moves of a picture between G and D: scale, turn and shift, drawn from the target's own stream."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dgn.recipes import Moves


def draw_moves(moves: Moves, num_views: int, stream: torch.Generator) -> Tensor:
    """Affine maps (V, 2, 3) from a view's coordinates in [-1, 1] to the picture's, float32 on the CPU."""
    return affine_maps(moves, uniforms(num_views, stream))


def uniforms(num_views: int, stream: torch.Generator) -> Tensor:
    """What the maps of V views are made of, (V, 4) in [0, 1)."""
    return torch.rand(num_views, 4, generator=stream)


def affine_maps(moves: Moves, uniforms_V4: Tensor) -> Tensor:
    """The maps of V views, (V, 2, 3), of N targets at once where there are leading axes."""
    u = uniforms_V4
    scale = moves.scale_min + (moves.scale_max - moves.scale_min) * u[..., 0]
    angle = math.radians(moves.turn_deg) * (2 * u[..., 1] - 1)
    shift_x, shift_y = (2 * moves.shift * (2 * u[..., 2:] - 1)).unbind(-1)  # coordinates span 2 per side
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    return torch.stack([cos, -sin, shift_x, sin, cos, shift_y], -1).unflatten(-1, (2, 3))


def move(images_N3HW: Tensor, maps_NV23: Tensor) -> Tensor:
    """V views of each of N pictures: (N * V, 3, H, W), target-major, bilinear, reflected at the border."""
    n, v = maps_NV23.shape[:2]
    views = images_N3HW.repeat_interleave(v, 0)
    grid = F.affine_grid(maps_NV23.reshape(n * v, 2, 3), list(views.shape), align_corners=False)
    return F.grid_sample(views, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
