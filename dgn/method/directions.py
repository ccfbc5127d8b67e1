"""Directions of equal effect in the pretrained generator's code, along which its targets are optimised."""

from __future__ import annotations

import math
import warnings
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dgn.errors import DgnError
from dgn.method.architecture import FEATURE_PX, PICTURE_PX, Architecture, Weights
from dgn.method.generator import generate

POSITIONS = (6, 18)  # of the code's 5 x 5, at which derivatives are taken: opposite corners of the inner 3 x 3
WEAKEST = 1 / 30  # share of the strongest direction's effect; weaker directions are not scaled up further


def code_directions(weights: Weights, width: float, mean_K: Tensor, std_K: Tensor) -> Tensor:
    """Directions of equal effect in the channels of one place of the code, as columns: (C, C) float32.

    A step of 1 along any of them changes the picture by a fifth of its standard deviation, as if the 25 places of the
    code shared it. They are the principal axes of the picture's derivative with respect to a place's channels, divided
    by their singular values: the root mean square over `POSITIONS`, each at a random code with the given mean and
    deviation. Directions weaker than `WEAKEST` stay weaker. Along the channels themselves, the few strongest directions
    would hide all others (docs/experiments.md). Runs on the CPU in float32.

    Raises: DgnError if the decoder draws the same picture whatever its code.
    """
    architecture = Architecture("pretrained", width)
    channels, places = architecture.feature_channels, FEATURE_PX**2
    gram_CC, stream = torch.zeros(channels, channels, dtype=torch.float64), torch.Generator().manual_seed(0)
    changes_CX = torch.empty(channels, 3 * PICTURE_PX**2)  # X: all values of a picture
    draw = partial(generate, architecture, weights)
    for place in POSITIONS:
        code_K = mean_K + std_K * torch.randn(mean_K.shape, generator=stream)
        for channel in range(channels):
            one_K = F.one_hot(torch.tensor(channel * places + place), len(code_K)).to(code_K)
            with warnings.catch_warnings():  # torch's forward derivatives use functions that torch deprecates
                warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
                drawn_and_change = torch.func.jvp(draw, (code_K,), (one_K,))
            changes_CX[channel] = drawn_and_change[1].flatten()
        gram_CC += (changes_CX @ changes_CX.T).double() / len(POSITIONS)
    if not 0 < gram_CC.trace() < math.inf:
        raise DgnError("the decoder draws the same picture whatever its code, or values that are not finite")
    squares_C, axes_CC = torch.linalg.eigh(gram_CC)
    effects_C = squares_C.clamp_min(squares_C[-1] * WEAKEST**2).sqrt()
    # The last normalisation gives every picture the variance gamma squared.
    share = (PICTURE_PX**2 * weights[architecture.picture_gamma].square().sum() / places).sqrt()
    return (axes_CC * share / effects_C).float()
