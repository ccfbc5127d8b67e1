"""Small harms to saved pictures, to ask whether they still say the same afterwards.

Each takes N pictures and gives as many: RGB, uint8, (N, 3, H, W), on the CPU. What comes out is 8-bit again, as a file
that a person was sent would be.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from dgn.moves import move

JPEG_QUALITY = 50
BLUR_SIGMA_PX = 2.0
BLUR_REACH_PX = 8  # four sigma: what lies beyond is less than a rounding
CROP_SHARE = 0.8  # of each side, about the centre
TURN_DEG = 10.0  # about the centre, as a person sees it counter-clockwise


def jpeg(pictures_N3HW: Tensor) -> Tensor:
    """Through a JPEG of quality 50, its colours at half the resolution as Pillow and most programs write them."""
    return torch.stack([_through_jpeg(picture) for picture in pictures_N3HW])


def _through_jpeg(picture_3HW: Tensor) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(picture_3HW.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)


def blur(pictures_N3HW: Tensor) -> Tensor:
    """A Gaussian of sigma 2 px, mirrored at the border."""
    return vision.gaussian_blur(pictures_N3HW, [2 * BLUR_REACH_PX + 1] * 2, [BLUR_SIGMA_PX] * 2)


def crop(pictures_N3HW: Tensor) -> Tensor:
    """The central 80 % of each side, enlarged to the whole, bilinear."""
    return _mapped(pictures_N3HW, [[CROP_SHARE, 0, 0], [0, CROP_SHARE, 0]])


def turn(pictures_N3HW: Tensor) -> Tensor:
    """By 10 degrees, bilinear. The corners are filled by mirroring at the border, as in the moves that the pictures are
    made with: one colour there would put edges into the picture that nobody asked about."""
    cos, sin = math.cos(math.radians(TURN_DEG)), math.sin(math.radians(TURN_DEG))
    return _mapped(pictures_N3HW, [[cos, -sin, 0], [sin, cos, 0]])


def _mapped(pictures_N3HW: Tensor, map_23: list[list[float]]) -> Tensor:
    """`map_23` leads from a place in the new picture to one in the old, both in [-1, 1]."""
    maps_NV23 = torch.tensor(map_23).expand(len(pictures_N3HW), 1, 2, 3)
    return move(pictures_N3HW.float(), maps_NV23).round().clamp(0, 255).to(torch.uint8)


DISTORTIONS: dict[str, Callable[[Tensor], Tensor]] = {"jpeg": jpeg, "blur": blur, "crop": crop, "turn": turn}
