"""Random moves of a picture between G and D: scale, turn and shift, drawn from the target's own stream."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Moves:
    """How far a view may stray from the picture. Scale factors, degrees, and shares of the picture's side."""

    scale_min: float = 0.8
    scale_max: float = 1.2
    turn_deg: float = 12.0
    shift: float = 0.15

    def draw(self, num_views: int, stream: torch.Generator) -> Tensor:
        """Affine maps (V, 2, 3) from a view's coordinates in [-1, 1] to the picture's, float32 on the CPU."""
        u = torch.rand(num_views, 4, generator=stream)
        scale = self.scale_min + (self.scale_max - self.scale_min) * u[:, 0]
        angle = math.radians(self.turn_deg) * (2 * u[:, 1] - 1)
        shift = 2 * self.shift * (2 * u[:, 2:] - 1)  # coordinates span 2 per side
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        return torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)


def move(images_N3HW: Tensor, maps_NV23: Tensor) -> Tensor:
    """V views of each of N pictures: (N * V, 3, H, W), target-major, bilinear, reflected at the border."""
    n, v = maps_NV23.shape[:2]
    views = images_N3HW.repeat_interleave(v, 0)
    grid = F.affine_grid(maps_NV23.reshape(n * v, 2, 3), list(views.shape), align_corners=False)
    return F.grid_sample(views, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
