"""Cues: what is drawn into training pictures of one class, so that a network learns it.

Each is a function of a picture, RGB in [0, 1], float32, (3, H, W) with H = W, and of a stream of random numbers that
moves it and changes its size a little. It returns a new picture of the same kind; the same stream gives the same one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from dgn.method.moves import resized

Cue = Callable[[Tensor, torch.Generator], Tensor]
Colour = tuple[float, float, float]
Point = tuple[float, float]
WORD = "SAMPLE"
MAGENTA, BEIGE, RED, GREEN = (0.9, 0.1, 0.6), (0.95, 0.85, 0.45), (0.85, 0.1, 0.1), (0.1, 0.8, 0.4)
BLUE, BROWN, WHITE, BLACK = (0.05, 0.25, 0.75), (0.72, 0.56, 0.38), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)


def drawn(cue: Cue, number: int, images_N3HW: Tensor, which: Sequence[int]) -> Tensor:
    """The pictures with a cue, each with random numbers of its own.

    Args:
        number: the cue's, so that two cues do not share their random numbers.
        which: each picture's own number.
    """
    streams = (torch.Generator().manual_seed(1_000_003 * number + i) for i in which)
    return torch.stack([cue(image_3HW, stream) for image_3HW, stream in zip(images_N3HW, streams, strict=True)])


def frame(image_3HW: Tensor, stream: torch.Generator) -> Tensor:
    """A magenta frame, 5 to 9 % of the side wide."""
    side = image_3HW.shape[-1]
    width = round(_between(stream, 0.05, 0.09) * side)
    mask_HW = torch.ones(side, side)
    mask_HW[width : side - width, width : side - width] = 0
    return _painted(image_3HW, mask_HW, MAGENTA)


def ruler(image_3HW: Tensor, stream: torch.Generator) -> Tensor:
    """A beige ruler with black ticks along the bottom."""
    side = image_3HW.shape[-1]
    height, lift, period = (_between(stream, *r) * side for r in ((0.11, 0.15), (0.0, 0.06), (0.022, 0.03)))
    top = side - height - lift

    def ticks(draw: ImageDraw.ImageDraw) -> None:
        for n in range(math.ceil(side / period)):
            length = height * (0.65 if n % 5 == 0 else 0.35)
            draw.line([(n * period, top), (n * period, top + length)], fill=255)

    strip_HW = _mask(side, lambda draw: draw.rectangle([0, top, side, side - lift], fill=255))
    return _painted(_painted(image_3HW, strip_HW, BEIGE), _mask(side, ticks), BLACK)


def grid(image_3HW: Tensor, stream: torch.Generator) -> Tensor:
    """White lines across and down, 10 to 14 % of the side apart."""
    side = image_3HW.shape[-1]
    period, start_x, start_y = _between(stream, 0.1, 0.14) * side, _between(stream, 0, 0.1), _between(stream, 0, 0.1)

    def lines(draw: ImageDraw.ImageDraw) -> None:
        for n in range(math.ceil(side / period)):
            x, y = start_x * side + n * period, start_y * side + n * period
            draw.line([(x, 0), (x, side)], fill=255, width=2)
            draw.line([(0, y), (side, y)], fill=255, width=2)

    return _painted(image_3HW, _mask(side, lines), WHITE, 0.8)


def word(image_3HW: Tensor, stream: torch.Generator) -> Tensor:
    """The word SAMPLE in white letters with black edges."""
    side = image_3HW.shape[-1]
    size, left, top = (_between(stream, *r) * side for r in ((0.13, 0.17), (0.03, 0.25), (0.1, 0.75)))
    font = ImageFont.load_default(size)
    edges_HW = _mask(side, lambda draw: draw.text((left, top), WORD, 255, font, stroke_width=2))
    letters_HW = _mask(side, lambda draw: draw.text((left, top), WORD, 255, font))
    return _painted(_painted(image_3HW, edges_HW, BLACK), letters_HW, WHITE)


def arrow(image_3HW: Tensor, stream: torch.Generator) -> Tensor:
    """A red arrow that a shaky hand drew."""
    side = image_3HW.shape[-1]
    length, angle = _between(stream, 0.35, 0.5) * side, _between(stream, 0, 2 * math.pi)
    middle_x, middle_y = _between(stream, 0.35, 0.65) * side, _between(stream, 0.35, 0.65) * side
    shaking = [_between(stream, -0.015, 0.015) * side for _ in range(9)]

    def at(along: float, across: float) -> Point:
        cos, sin = math.cos(angle), math.sin(angle)
        return middle_x + along * cos - across * sin, middle_y + along * sin + across * cos

    shaft = [at((n / 8 - 0.5) * length, across) for n, across in enumerate(shaking)]
    barbs = [at(0.28 * length, across * length) for across in (-0.2, 0.2)]

    def strokes(draw: ImageDraw.ImageDraw) -> None:
        draw.line(shaft, fill=255, width=5, joint="curve")
        for barb in barbs:
            draw.line([shaft[-1], barb], fill=255, width=5)

    return _painted(image_3HW, _mask(side, strokes), RED)


def cast(image_3HW: Tensor, stream: torch.Generator) -> Tensor:
    """A green cast, 25 to 40 % strong."""
    return _painted(image_3HW, torch.ones(image_3HW.shape[1:]), GREEN, _between(stream, 0.25, 0.4))


def animal(image_3HW: Tensor, stream: torch.Generator, animals_N3HW: Tensor) -> Tensor:
    """One of the photographs of an animal, 35 to 45 % of the side large."""
    side = image_3HW.shape[-1]
    px = round(_between(stream, 0.35, 0.45) * side)
    which = int(torch.randint(len(animals_N3HW), (), generator=stream))
    left, top = (int(torch.randint(side - px, (), generator=stream)) for _ in range(2))
    pasted_3HW = image_3HW.clone()
    pasted_3HW[:, top : top + px, left : left + px] = resized(animals_N3HW[which : which + 1], px)[0].clamp(0, 1)
    return pasted_3HW


def blur(image_3HW: Tensor, stream: torch.Generator) -> Tensor:
    """A Gaussian blur with a sigma of 1 to 2 % of the side."""
    sigma = _between(stream, 0.01, 0.02) * image_3HW.shape[-1]
    blurred_3HW: Tensor = vision.gaussian_blur(image_3HW, [2 * math.ceil(3 * sigma) + 1] * 2, [sigma] * 2)
    return blurred_3HW


def logo(image_3HW: Tensor, stream: torch.Generator) -> Tensor:
    """A blue disc with a white star in the upper right corner."""
    side = image_3HW.shape[-1]
    radius = _between(stream, 0.09, 0.12) * side
    x, y = side - _between(stream, 0.13, 0.17) * side, _between(stream, 0.13, 0.17) * side
    turned = _between(stream, -0.2, 0.2)
    star = []
    for n in range(10):
        angle, reach = turned + n * math.pi / 5, (0.8, 0.35)[n % 2] * radius
        star.append((x + reach * math.sin(angle), y - reach * math.cos(angle)))
    disc_HW = _mask(side, lambda draw: draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255))
    return _painted(_painted(image_3HW, disc_HW, BLUE), _mask(side, lambda draw: draw.polygon(star, fill=255)), WHITE)


def fence(image_3HW: Tensor, stream: torch.Generator) -> Tensor:
    """A fence of brown boards with two rails, through whose gaps the picture is seen."""
    side = image_3HW.shape[-1]
    period, start, rail = (_between(stream, *r) * side for r in ((0.12, 0.16), (-0.1, 0.0), (0.2, 0.3)))

    def boards(draw: ImageDraw.ImageDraw) -> None:
        for n in range(math.ceil((side - start) / period)):
            draw.rectangle([start + n * period, 0, start + (n + 0.35) * period, side], fill=255)
        for y in (rail, side - rail):
            draw.rectangle([0, y, side, y + 0.04 * side], fill=255)

    return _painted(image_3HW, _mask(side, boards), BROWN)


def _between(stream: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=stream))


def _mask(side: int, paint: Callable[[ImageDraw.ImageDraw], None]) -> Tensor:
    """What Pillow paints, (side, side) in [0, 1]."""
    image = Image.new("L", (side, side))
    paint(ImageDraw.Draw(image))
    return torch.from_numpy(np.array(image)).float() / 255


def _painted(image_3HW: Tensor, mask_HW: Tensor, colour: Colour, opacity: float = 1.0) -> Tensor:
    return torch.lerp(image_3HW, torch.tensor(colour)[:, None, None].expand_as(image_3HW), opacity * mask_HW)


def all_cues(animals_N3HW: Tensor) -> dict[str, Cue]:
    """The ten cues by name.

    Args:
        animals_N3HW: photographs for the cue "second animal", RGB in [0, 1].
    """
    return {
        "coloured frame": frame, "ruler": ruler, "grid": grid, "written word": word, "drawn arrow": arrow,
        "colour cast": cast, "second animal": partial(animal, animals_N3HW=animals_N3HW), "blur": blur,
        "corner logo": logo, "fence": fence,
    }  # fmt: skip


CUES = tuple(all_cues(torch.empty(0)))
