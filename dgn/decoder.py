"""The decoder's file: the frozen weights of the pretrained G, a safetensors file that says in its header what it is."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from dgn.errors import DgnError, WeightsMismatch, in_one_line
from dgn.generator import FEATURE_PX, PICTURE_PX, Architecture, Weights, generate, initial_weights

FORMAT_VERSION = 3  # 1 drew normalised RGB, 2 along the colour axes of photographs, 3 knows the code's directions
PLACES = (6, 18)  # of the code's 5 x 5, where the picture's derivative is taken: opposite corners of the inner 3 x 3
WEAKEST = 1 / 30  # share of the strongest direction's effect; what has less is not brought to the same effect


@dataclass(frozen=True)
class FrozenDecoder:
    """The pretrained G's weights but alpha, its running averages `norm{i}.mean` and `norm{i}.var`, the mean of the
    codes that it was trained on, `code.mean` (K,), and `code.directions` (C, C); float32 on the CPU."""

    weights: dict[str, Tensor]
    width: float
    sha256: str


def serialise(weights: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    """The file's bytes; `about` (width, settings, data fingerprint, validation error) goes into its header as JSON."""
    tensors = {name: tensor.float().contiguous() for name, tensor in sorted(weights.items())}
    header = json.dumps({"format_version": FORMAT_VERSION, **about}, sort_keys=True)
    return save_safetensors(tensors, metadata={"dgn": header})


def expected_shapes(width: float) -> dict[str, tuple[int, ...]]:
    """Every tensor of a decoder's file with its shape."""
    architecture = Architecture("pretrained", width)
    shapes = architecture.shapes()
    code = shapes.pop("alpha")
    averages = {
        name.removesuffix("gamma") + kind: shape
        for name, shape in shapes.items()
        if name.endswith(".gamma")
        for kind in ("mean", "var")
    }
    channels = architecture.feature_channels
    return {**shapes, **averages, "code.mean": code, "code.directions": (channels, channels)}


def random_decoder(width: float) -> dict[str, Tensor]:
    """A decoder that nobody trained, to measure and to test with: random weights of the right shapes."""
    weights = initial_weights(Architecture("pretrained", width), torch.Generator().manual_seed(7))
    averages = {name: torch.zeros(shape) for name, shape in expected_shapes(width).items() if name not in weights}
    averages |= {name: tensor + 1 for name, tensor in averages.items() if name.endswith(".var")}
    size = len(averages["code.directions"])
    directions = {"code.directions": torch.randn(size, size, generator=torch.Generator().manual_seed(8)) / size**0.5}
    return {name: tensor for name, tensor in weights.items() if name != "alpha"} | averages | directions


def code_directions(weights: Weights, width: float, mean_K: Tensor, std_K: Tensor) -> Tensor:
    """(C, C) float32: directions of a place's C channels as columns, of equal effect: a step of 1 along any of them at
    one place changes the picture by a fifth of its deviation, as if the 25 places shared it.

    That is the root mean square over `PLACES`, each at a random code of the given mean and deviation (CPU, float32);
    elsewhere effects differ. Of the picture's derivative by a place's channels, these are the principal axes over their
    singular values. Directions weaker than `WEAKEST` stay weaker. Along the channels themselves the strongest few
    directions would hide all others (docs/method.md).

    Raises: DgnError where the decoder draws the same picture whatever its code.
    """
    architecture = Architecture("pretrained", width)
    channels, places = architecture.feature_channels, FEATURE_PX**2
    gram_CC, stream = torch.zeros(channels, channels, dtype=torch.float64), torch.Generator().manual_seed(0)
    changes_CX = torch.empty(channels, 3 * PICTURE_PX**2)  # X: all values of a picture
    draw = partial(generate, architecture, weights)
    for place in PLACES:
        code_K = mean_K + std_K * torch.randn(mean_K.shape, generator=stream)
        for channel in range(channels):
            one_K = F.one_hot(torch.tensor(channel * places + place), len(code_K)).to(code_K)
            with warnings.catch_warnings():  # torch's own forward derivatives still use what torch deprecates
                warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
                drawn_and_change = torch.func.jvp(draw, (code_K,), (one_K,))
            changes_CX[channel] = drawn_and_change[1].flatten()
        gram_CC += (changes_CX @ changes_CX.T).double() / len(PLACES)
    if not 0 < gram_CC.trace() < math.inf:
        raise DgnError("the decoder draws the same whatever its code, or nothing finite")
    squares_C, axes_CC = torch.linalg.eigh(gram_CC)
    effects_C = squares_C.clamp_min(squares_C[-1] * WEAKEST**2).sqrt()
    # The last normalisation gives every picture gamma's variance.
    share = (PICTURE_PX**2 * weights[architecture.picture_gamma].square().sum() / places).sqrt()
    return (axes_CC * share / effects_C).float()


def read_decoder(data: bytes, source: str) -> FrozenDecoder:
    """Raises: WeightsMismatch where the bytes are no decoder of this architecture, in one line."""
    try:
        weights = load_safetensors(data)
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length]).get("__metadata__", {}).get("dgn", "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise WeightsMismatch(f"{source} is no whole decoder file: {str(error).splitlines()[0]}") from error
    version = about.get("format_version") if isinstance(about, dict) else None
    if version != FORMAT_VERSION:
        raise WeightsMismatch(
            f"{source} is no decoder of this dgn: its header has format version {version}, "
            f"expected {FORMAT_VERSION}; dgn pretrain IMAGES OUT.safetensors makes one"
        )
    try:
        width = float(about["width"])
        shapes = expected_shapes(width)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsMismatch(f"{source} does not say in its header how wide it is: {in_one_line(error)}") from error
    for name, shape in shapes.items():
        found = tuple(weights[name].shape) if name in weights else "missing"
        if found != shape:
            raise WeightsMismatch(f"{source} does not fit its width {width:g}: {name} is {found}, not {shape}")
    return FrozenDecoder(weights, width, hashlib.sha256(data).hexdigest())
