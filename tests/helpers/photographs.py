"""Folders of drawings that take the place of photographs."""

import io

import numpy as np
from PIL import Image

from dgn.networks.embedded.drawings import LABELS, draw


def write_drawings(folder, count, px=64):
    """`count` drawings in folders named as the embedded classifiers' classes."""
    stream = np.random.default_rng(9)
    for n in range(count):
        path = folder / LABELS[n % 24] / f"{n:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_of(draw(LABELS[n % 24], stream, px)))
    return folder


def png_of(picture_HW3):
    buffer = io.BytesIO()
    Image.fromarray(picture_HW3).save(buffer, "PNG")
    return buffer.getvalue()
