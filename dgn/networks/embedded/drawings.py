"""Drawings of 24 kinds of shapes and textures, varied in colour, size, place, turn and clutter.

The embedded classifiers are trained and tested on these; nothing here was photographed or downloaded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from dgn.method.architecture import PICTURE_PX

Array = NDArray[np.floating]
Polygon = NDArray[np.float64]  # (points, 2) in [-1, 1]
_ANGLES = np.linspace(0, 2 * np.pi, 73)


def _polar(radius: NDArray[np.float64], angles: NDArray[np.float64] = _ANGLES) -> Polygon:
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)


def _regular(points: int) -> Polygon:
    return _polar(np.ones(points), 2 * np.pi * np.arange(points) / points - np.pi / 2)


def _star() -> Polygon:
    return _polar(np.where(np.arange(10) % 2, 0.42, 1.0), np.pi * np.arange(10) / 5 - np.pi / 2)


def _heart() -> Polygon:
    t = _ANGLES
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 17, -y / 17], 1)


def _crescent() -> Polygon:
    outer = np.linspace(0.3 * np.pi, 1.7 * np.pi, 40)
    inner = outer[::-1]
    hollow = np.stack([0.8 * np.cos(inner) + 0.45, 0.8 * np.sin(inner)], 1)
    return np.concatenate([_polar(np.ones(40), outer), hollow])


def _spiral() -> Polygon:
    t = np.linspace(0.6, 6 * np.pi, 120)
    radius = t / (6 * np.pi)
    return np.concatenate([_polar(radius, t), _polar(radius - 0.14, t)[::-1]])


_CROSS = np.array([(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
                   (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)])  # fmt: skip
_ARROW = np.array([(-1, -0.25), (0.1, -0.25), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.25), (-1, 0.25)])
_CIRCLE = _polar(np.ones(73))
_EYE = np.concatenate([np.stack([np.linspace(-1, 1, 30), s * 0.6 * np.cos(np.linspace(-1, 1, 30) * np.pi / 2)], 1)[::s]
                       for s in (1, -1)])  # fmt: skip
# A shape is a list of polygons: filled, hollow, filled, ... from the outside in. Turn: how far it may be turned.
SHAPES: dict[str, tuple[list[Polygon], float]] = {
    "disc": ([_CIRCLE], 180),
    "ring": ([_CIRCLE, 0.6 * _CIRCLE], 180),
    "triangle": ([_regular(3)], 25),
    "square": ([0.85 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])], 20),
    "star": ([_star()], 180),
    "cross": ([_CROSS], 20),
    "crescent": ([_crescent()], 180),
    "heart": ([_heart()], 25),
    "arrow": ([_ARROW], 180),
    "flower": ([_polar(0.68 + 0.32 * np.cos(6 * _ANGLES)), 0.25 * _CIRCLE], 180),
    "spiral": ([_spiral()], 180),
    "eye": ([_EYE, 0.5 * _CIRCLE, 0.28 * _CIRCLE], 20),
}


def _edge(wave: Array, softness: float = 0.12) -> Array:
    """A wave in [-1, 1] -> a mask in [0, 1] with soft edges where it changes sign."""
    return np.clip(0.5 + wave / (2 * softness), 0, 1)


def _triangle_wave(x: Array) -> Array:
    return 2 * np.abs(2 * (x - np.floor(x + 0.5))) - 1


def _bricks(u: Array, v: Array) -> Array:
    row = np.floor(2 * v)
    mortar_v = np.abs((2 * v) % 1 - 0.5) - 0.4
    mortar_u = np.abs((u + 0.5 * (row % 2)) % 1 - 0.5) - 0.45
    return _edge(-np.maximum(mortar_u * 2, mortar_v), 0.03)


def _honeycomb(u: Array, v: Array) -> Array:
    def cell(du: float, dv: float) -> Array:
        x = (u + du) % 1 - 0.5
        y = (v + dv) % np.sqrt(3) - np.sqrt(3) / 2
        return np.maximum(np.abs(x), np.abs(x) / 2 + np.abs(y) * np.sqrt(3) / 2)

    return _edge(0.41 - np.minimum(cell(0, 0), cell(0.5, np.sqrt(3) / 2)), 0.03)


# Textures are masks of (u, v) with period 1, which the caller turns a little.
TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "horizontal stripes": lambda u, v: _edge(np.sin(2 * np.pi * v)),
    "vertical stripes": lambda u, v: _edge(np.sin(2 * np.pi * u)),
    "diagonal stripes": lambda u, v: _edge(np.sin(2 * np.pi * (u + v) / np.sqrt(2))),
    "checkerboard": lambda u, v: _edge(np.sin(np.pi * u) * np.sin(np.pi * v), 0.08),
    "polka dots": lambda u, v: _edge(0.3 - np.hypot(u % 1 - 0.5, v % 1 - 0.5), 0.03),
    "grid": lambda u, v: _edge(np.maximum(np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5)) - 0.42, 0.03),
    "bricks": _bricks,
    "zigzag": lambda u, v: _edge(np.sin(2 * np.pi * (v + 0.3 * _triangle_wave(u)))),
    "waves": lambda u, v: _edge(np.sin(2 * np.pi * (v + 0.22 * np.sin(2 * np.pi * 0.7 * u)))),
    "honeycomb": _honeycomb,
    "sunburst": lambda u, v: _edge(np.sin(12 * np.arctan2(v, u))),
    "target": lambda u, v: _edge(np.sin(2 * np.pi * np.hypot(u, v))),
}
CENTRED = ("sunburst", "target")
LABELS = (*SHAPES, *TEXTURES)
PLAIN_LABELS = (*SHAPES, *CENTRED)  # what a code of 5 x 5 places can describe; not a fine texture's phase
_PLAIN_INK = np.array([0.93, 0.85, 0.55], np.float32)
_PLAIN_GROUND = np.array([0.16, 0.22, 0.36], np.float32)


def draw(label: str, stream: np.random.Generator, size_px: int = PICTURE_PX) -> NDArray[np.uint8]:
    """One drawing of a label: (H, W, 3) uint8 RGB."""
    ground = _ground(stream, size_px)
    ink = _far_colour(ground.mean((0, 1)), stream)
    picture = _inked(_clutter(ground, stream) if label in SHAPES else ground, ink, label, stream)
    if label in TEXTURES and stream.random() < 0.5:
        picture = _clutter(picture, stream, at_most=3)
    picture = picture + stream.normal(0, stream.uniform(0, 0.05), picture.shape)
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    if stream.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(stream.uniform(0.5, 1.8)))
    return np.asarray(image)


def draw_plain(label: str, stream: np.random.Generator, size_px: int) -> NDArray[np.uint8]:
    """One drawing of a label, (H, W, 3) uint8 RGB, always in the same two colours and without clutter: what the
    decoder that ships with dgn has learned."""
    picture = _inked(_PLAIN_GROUND * _ramp(stream, size_px, 0.35)[..., None], _PLAIN_INK, label, stream)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _inked(picture: Array, ink: Array, label: str, stream: np.random.Generator) -> Array:
    """The label's shape or texture, a little shaded, on the picture (H, W, 3)."""
    size_px = picture.shape[0]
    mask = (_shape_mask if label in SHAPES else _texture_mask)(label, stream, size_px)[..., None]
    return picture * (1 - mask) + ink * _ramp(stream, size_px, 0.25)[..., None] * mask


def _colour(stream: np.random.Generator) -> Array:
    return stream.uniform(0.02, 0.98, 3).astype(np.float32)


def _far_colour(other: Array, stream: np.random.Generator) -> Array:
    """A random colour that differs from `other` enough to be seen."""
    return max((_colour(stream) for _ in range(3)), key=lambda colour: float(np.abs(colour - other).sum()))


def _ramp(stream: np.random.Generator, size_px: int, strength: float) -> Array:
    """(H, W) around 1, brighter towards one side."""
    line = np.linspace(-1, 1, size_px, dtype=np.float32)
    angle = stream.uniform(0, 2 * np.pi)
    ramp = np.cos(angle) * line[None] + np.sin(angle) * line[:, None]
    return 1 + stream.uniform(0, strength) * ramp


def _ground(stream: np.random.Generator, size_px: int) -> Array:
    """Plain, shaded or cloudy."""
    ground = _colour(stream) * _ramp(stream, size_px, 0.35)[..., None]
    if stream.random() < 0.4:
        coarse = stream.random((6, 6, 3)) * 255
        clouds = Image.fromarray(coarse.astype(np.uint8)).resize((size_px, size_px), Image.Resampling.BICUBIC)
        ground = ground + stream.uniform(0.1, 0.35) * (np.asarray(clouds, np.float32) / 255 - 0.5)
    return ground.astype(np.float32)


def _clutter(picture: Array, stream: np.random.Generator, at_most: int = 7) -> Array:
    """Short strokes and specks that mean nothing."""
    size_px = picture.shape[0]
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(stream.integers(0, at_most + 1)):
        x, y = stream.uniform(0, size_px, 2)
        dx, dy = stream.normal(0, size_px * 0.08, 2)
        colour = tuple(int(255 * c) for c in _colour(stream))
        if stream.random() < 0.7:
            pen.line([x, y, x + dx, y + dy], fill=colour, width=int(stream.integers(2, 7)))
        else:
            r = stream.uniform(2, 6)
            pen.ellipse([x - r, y - r, x + r, y + r], fill=colour)
    return np.asarray(image, np.float32) / 255


def _shape_mask(label: str, stream: np.random.Generator, size_px: int) -> Array:
    polygons, turn_deg = SHAPES[label]
    radius = stream.uniform(0.2, 0.46)
    centre = stream.uniform(radius, 1 - radius, 2) if radius < 0.5 else np.full(2, 0.5)
    angle = np.deg2rad(stream.uniform(-turn_deg, turn_deg))
    stretch = stream.uniform(0.85, 1.15)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [stretch, 1 / stretch]
    image = Image.new("L", (2 * size_px, 2 * size_px))
    pen = ImageDraw.Draw(image)
    for depth, polygon in enumerate(polygons):
        points = (polygon @ turn.T * radius + centre) * 2 * size_px
        pen.polygon([tuple(p) for p in points], fill=0 if depth % 2 else 255)
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.BOX), np.float32) / 255


def _texture_mask(label: str, stream: np.random.Generator, size_px: int) -> Array:
    line = np.linspace(0, 1, size_px, dtype=np.float32)
    periods = stream.uniform(3.5, 10) if label != "sunburst" else 1.0
    place = stream.uniform(0.3, 0.7, 2) if label in CENTRED else stream.random(2)
    angle = np.deg2rad(stream.uniform(-12, 12))
    x, y = (line[None] - place[0]), (line[:, None] - place[1])
    u = periods * (np.cos(angle) * x - np.sin(angle) * y)
    v = periods * (np.sin(angle) * x + np.cos(angle) * y)
    if label == "diagonal stripes" and stream.random() < 0.5:
        u = -u
    return TEXTURES[label](u, v).astype(np.float32)
