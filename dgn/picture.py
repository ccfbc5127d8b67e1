"""From a rendered tensor to a saved picture, and back to numbers by another way.

What counts is what a person and a second program can open: scores come from the decoded 8-bit PNG, through the whole
network with a hook (`Discriminator.scores`), never from the tensors of the optimisation loop.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dgn.discriminator import Discriminator
from dgn.errors import DgnError, in_one_line
from dgn.generator import PICTURE_PX
from dgn.render import RenderResult
from dgn.targets import Target

THUMBNAIL_PX = 96
MAX_PX = 4096  # a side of a picture that is decoded; a few bytes of PNG can claim a billion pixels
NUM_TOP = 5


def encode_png(picture_3HW: Tensor) -> bytes:
    """RGB in [0, 1] -> PNG bytes, 8 bits a channel, rounded to nearest."""
    # In NumPy, whose arithmetic starts no threads: a second team of them beside the one that renders slows that down.
    rgb_HW3 = np.rint(picture_3HW.numpy().clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb_HW3)).save(buffer, format="PNG")
    return buffer.getvalue()


def decode(data: bytes) -> NDArray[np.uint8]:
    """PNG bytes -> (H, W, 3) uint8 RGB.

    Raises: DgnError where they are no whole PNG, or one far larger than G's pictures.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if max(image.size) <= MAX_PX:
                return np.asarray(image.convert("RGB"))
            size = f"{image.width} x {image.height} px"
    except UnidentifiedImageError as error:
        raise DgnError("a picture of the run is no PNG") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: of a broken chunk
        raise DgnError(f"a picture of the run is no whole PNG: {in_one_line(error)}") from error
    raise DgnError(f"a picture of the run is {size}: expected {PICTURE_PX} x {PICTURE_PX}")


def encode_thumbnail(png: bytes) -> bytes:
    """WebP, 96 px, of a saved picture."""
    buffer = io.BytesIO()
    image = Image.fromarray(decode(png)).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    image.save(buffer, format="WEBP", quality=80)
    return buffer.getvalue()


@dataclass(frozen=True)
class TopUnit:
    unit: int
    label: str | None
    activation: float


@dataclass(frozen=True)
class Scores:
    """How D sees a saved picture.

    activation: of the target, after the ReLU, averaged over space for a map. rank: 1 when no unit outside the target
    is higher than the target's weakest wanted unit in its layer. probability: softmax of the network's own output for
    the target's classes (summed), None for targets in other layers. others_sum: Eq. 2's, without lambda.
    """

    activation: float
    rank: int
    probability: float | None
    top5: tuple[TopUnit, ...]
    others_sum: float


def rescore(pngs: Sequence[bytes], targets: Sequence[Target], discriminator: Discriminator) -> list[Scores]:
    """Scores of saved pictures, each by its own target. D should be the float32 one. Raises: DgnError."""
    return score(stacked(pngs) / 255, targets, discriminator)


def stacked(pngs: Sequence[bytes]) -> Tensor:
    """Saved pictures as (N, 3, 224, 224) uint8, RGB. Raises: DgnError where one is none of G's."""
    pictures = [decode(png) for png in pngs]
    for picture in pictures:
        if picture.shape[:2] != (PICTURE_PX, PICTURE_PX):
            raise DgnError(f"a picture of the run is {picture.shape[1]} x {picture.shape[0]} px: expected {PICTURE_PX}")
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def score(images_N3HW: Tensor, targets: Sequence[Target], discriminator: Discriminator) -> list[Scores]:
    """Scores of pictures in [0, 1], saved or not."""
    layers = dict.fromkeys(layer for target in targets for layer in target.layers)
    units: dict[str, NDArray[np.float32]] = {}
    probabilities = np.empty(0)
    for layer in layers:
        response, logits = discriminator.scores(images_N3HW, layer)
        units[layer] = _mean_over_space(response.cpu().numpy())
        shifted = np.exp(logits.cpu().double().numpy() - logits.cpu().double().numpy().max(1, keepdims=True))
        probabilities = shifted / shifted.sum(1, keepdims=True)
    return [
        _score(target, {layer: units[layer][n] for layer in target.layers}, probabilities[n], discriminator)
        for n, target in enumerate(targets)
    ]


def _mean_over_space(response: NDArray[np.float32]) -> NDArray[np.float32]:
    """Signed where a layer has no map, so that ranks tell silent units apart; after the ReLU where it has one."""
    if response.ndim == 2:
        return response
    axes = (1,) if response.ndim == 3 else (2, 3)
    return np.maximum(response, 0).mean(axis=axes, dtype=np.float64).astype(np.float32)


def _score(
    target: Target,
    units: dict[str, NDArray[np.float32]],
    probability: NDArray[np.float64],
    discriminator: Discriminator,
) -> Scores:
    layout = discriminator.layout
    activation, others, rank = 0.0, 0.0, 1
    for layer, values in units.items():
        own = {u.unit: u.weight for u in target.units if u.layer == layer}
        positive = np.maximum(values, 0)
        activation += sum(weight * float(positive[unit]) for unit, weight in own.items())
        is_other = np.ones(len(values), dtype=bool)
        is_other[list(own)] = False
        others += float(positive[is_other].sum(dtype=np.float64))
        wanted = [values[unit] for unit, weight in own.items() if weight > 0]
        if wanted:
            rank = max(rank, 1 + int((values[is_other] > min(wanted)).sum()))
    first = units[target.layer]
    is_class = target.layers == (layout.class_layer,)
    top = np.argsort(-first, kind="stable")[:NUM_TOP]
    return Scores(
        activation=activation,
        rank=rank,
        probability=float(sum(probability[u.unit] for u in target.units)) if is_class else None,
        top5=tuple(TopUnit(int(u), layout.labels[u] if is_class else None, float(first[u])) for u in top),
        others_sum=others,
    )


def judge(result: RenderResult, scores: Scores | None, class_layer: str) -> tuple[str, str | None]:
    """(status, reason) of a target: an outcome is a value, whatever happened, and never takes its batch down.

    `nonfinite`: no picture. `dead`: the unit is silent on the saved picture. `not_converged`: a class that does not
    rank first on the saved picture, or another unit that is not above where it started. `ok`: all others.
    """
    if scores is None:
        return "nonfinite", "the picture has values that are not finite: try another seed or a lower learning rate"
    target = result.target
    if scores.activation <= 0 and all(unit.weight > 0 for unit in target.units):
        return "dead", f"the activation is 0 on the saved picture after {result.num_updates} updates"
    if class_layer in target.layers and scores.rank > 1:
        best = scores.top5[0]
        return "not_converged", f"rank {scores.rank} on the saved picture: {best.label or best.unit} is first"
    start = result.activation_curve[0]
    if scores.activation < start:
        return "not_converged", f"the activation fell from {start:.4g} to {scores.activation:.4g}"
    return "ok", None
