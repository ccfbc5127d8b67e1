"""Random moves of a picture between G and D: scale, turn and shift, drawn from the target's own stream."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dgn.recipes import Moves


def draw_moves(moves: Moves, num_views: int, stream: torch.Generator) -> Tensor:
    """Affine maps (V, 2, 3) from a view's coordinates in [-1, 1] to the picture's, float32 on the CPU."""
    u = torch.rand(num_views, 4, generator=stream)
    scale = moves.scale_min + (moves.scale_max - moves.scale_min) * u[:, 0]
    angle = math.radians(moves.turn_deg) * (2 * u[:, 1] - 1)
    shift = 2 * moves.shift * (2 * u[:, 2:] - 1)  # coordinates span 2 per side
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    return torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)


def move(images_N3HW: Tensor, maps_NV23: Tensor) -> Tensor:
    """V views of each of N pictures: (N * V, 3, H, W), target-major, bilinear, reflected at the border."""
    n, v = maps_NV23.shape[:2]
    views = images_N3HW.repeat_interleave(v, 0)
    grid = F.affine_grid(maps_NV23.reshape(n * v, 2, 3), list(views.shape), align_corners=False)
    return F.grid_sample(views, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
