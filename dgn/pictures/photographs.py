"""Photographs in any common file format -> upright 8-bit RGB squares, for training and as examples."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dgn.errors import DgnError

SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SQUARE_PX = 256  # kept of a photograph; training crops 224 px of it
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # whatever the file's name says; Pillow's EPS runs Ghostscript
MAX_PIXELS = 89_478_485  # 268 MB decoded; above this Pillow warns of decompression bombs


class UnreadablePhotograph(DgnError):
    """Truncated, not a picture, or too large."""


def load_photograph(data: bytes, px: int = SQUARE_PX) -> NDArray[np.uint8]:
    """The photograph's central square, (px, px, 3) uint8 RGB, turned as its EXIF orientation says.

    Grey, palette, CMYK and 16-bit pictures become RGB; transparent areas become white.

    Raises: UnreadablePhotograph.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadablePhotograph(f"{image.width} x {image.height} px, at most {MAX_PIXELS / 1e6:.0f} million")
            image.draft("RGB", (2 * px, 2 * px))  # JPEG: decoded at a fraction of its size
            upright = ImageOps.exif_transpose(image)
            square = ImageOps.fit(_as_rgb(upright), (px, px), Image.Resampling.LANCZOS)
    except UnreadablePhotograph:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadablePhotograph(f"too large, at most {MAX_PIXELS / 1e6:.0f} million pixels") from error
    except UnidentifiedImageError as error:
        raise UnreadablePhotograph("not a picture of a known format") from error
    except Exception as error:  # Pillow's plugins raise anything on broken files; one of them must not end the survey
        raise UnreadablePhotograph(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return np.asarray(square)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits in one channel; convert("L") would clip them at 255
        values = np.asarray(image, dtype=np.float64)
        return Image.fromarray((values / max(65535.0, values.max()) * 255).round().astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
