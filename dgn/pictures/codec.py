"""Pictures as 8-bit arrays, PNG files and thumbnails."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dgn.errors import DgnError
from dgn.text import in_one_line

if TYPE_CHECKING:
    from torch import Tensor

THUMBNAIL_PX = 96
MAX_PX = 4096  # a side of a picture that is decoded, because a PNG of a few bytes can claim a billion pixels


def quantised(picture_3HW: Tensor) -> NDArray[np.uint8]:
    """RGB in [0, 1], on the CPU -> (H, W, 3) uint8, rounded to nearest: exactly what is saved.

    In NumPy, which starts no threads: a second team of threads beside the one that renders slows that one down.
    """
    rgb_HW3 = np.rint(picture_3HW.numpy().clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(rgb_HW3)


def encode_png(picture_HW3: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 RGB -> the bytes of a PNG file, which is lossless; a grey one if all pixels are grey."""
    buffer = io.BytesIO()
    is_grey = bool((picture_HW3 == picture_HW3[..., :1]).all())
    Image.fromarray(picture_HW3[..., 0] if is_grey else picture_HW3).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """The bytes of a PNG file -> (H, W, 3) uint8 RGB.

    Raises: DgnError if they are not a whole PNG, or one with a side of more than 4096 px.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if max(image.size) <= MAX_PX:
                return np.asarray(image.convert("RGB"))
            size = f"{image.width} x {image.height} px"
    except UnidentifiedImageError as error:
        raise DgnError("not a PNG file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: a broken chunk
        raise DgnError(f"not a whole PNG file: {in_one_line(error)}") from error
    raise DgnError(f"it is {size}: expected at most {MAX_PX} px per side")


def encode_thumbnail(picture_HW3: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 RGB -> a WebP file of 96 x 96 px."""
    buffer = io.BytesIO()
    image = Image.fromarray(picture_HW3).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    image.save(buffer, format="WEBP", quality=80)
    return buffer.getvalue()


def as_tensor(pictures_HW3: Sequence[NDArray[np.uint8]]) -> Tensor:
    """N pictures, (H, W, 3) uint8 each -> (N, 3, H, W) uint8."""
    import torch

    return torch.from_numpy(np.stack(pictures_HW3)).permute(0, 3, 1, 2)
