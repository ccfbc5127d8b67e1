"""Small distortions of saved pictures, to test whether a network still sees the same afterwards.

Each takes and returns N pictures: RGB, uint8, (N, 3, H, W), on the CPU. The result is 8-bit again, like a saved file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from dgn.method.moves import move

JPEG_QUALITY = 50
BLUR_SIGMA_PX = 2.0
BLUR_REACH_PX = 8  # four sigma, beyond which the weights are smaller than the rounding
CROP_SHARE = 0.8  # of each side, about the centre
TURN_DEG = 10.0  # about the centre, counter-clockwise as a person sees it


def jpeg(pictures_N3HW: Tensor) -> Tensor:
    """Compresses by JPEG at quality 50, with colours at half the resolution, as most programs do.

    By Pillow, because torchvision deprecates its own, which gives the same bytes.
    """
    return torch.stack([_jpeg(vision.to_pil_image(picture_3HW)) for picture_3HW in pictures_N3HW])


def _jpeg(picture: Image.Image) -> Tensor:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return vision.pil_to_tensor(Image.open(buffer))


def blur(pictures_N3HW: Tensor) -> Tensor:
    """Blurs by a Gaussian with sigma 2 px, mirrored at the border."""
    return vision.gaussian_blur(pictures_N3HW, [2 * BLUR_REACH_PX + 1] * 2, [BLUR_SIGMA_PX] * 2)


def crop(pictures_N3HW: Tensor) -> Tensor:
    """Enlarges the central 80 % of each side to the whole picture, bilinearly."""
    return _mapped(pictures_N3HW, [[CROP_SHARE, 0, 0], [0, CROP_SHARE, 0]])


def turn(pictures_N3HW: Tensor) -> Tensor:
    """Rotates by 10 degrees, bilinearly.

    Corners are filled by mirroring, as in the moved views of the optimisation, because a plain colour would add edges.
    """
    cos, sin = math.cos(math.radians(TURN_DEG)), math.sin(math.radians(TURN_DEG))
    return _mapped(pictures_N3HW, [[cos, -sin, 0], [sin, cos, 0]])


def _mapped(pictures_N3HW: Tensor, map_23: list[list[float]]) -> Tensor:
    """Pictures resampled by `map_23`, from places in the new picture to places in the old one, both in [-1, 1]."""
    maps_NV23 = torch.tensor(map_23).expand(len(pictures_N3HW), 1, 2, 3)
    return move(pictures_N3HW.float(), maps_NV23).round().clamp(0, 255).to(torch.uint8)


DISTORTIONS: dict[str, Callable[[Tensor], Tensor]] = {"jpeg": jpeg, "blur": blur, "crop": crop, "turn": turn}
# Kept with every judgement.
PARAMETERS = {
    "jpeg_quality": JPEG_QUALITY, "blur_sigma_px": BLUR_SIGMA_PX, "crop_share": CROP_SHARE, "turn_deg": TURN_DEG,
}  # fmt: skip
