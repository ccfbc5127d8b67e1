"""The generator as pure functions of one target's weights, in stock PyTorch.

Everything belongs to one target: weights, feature vector, normalisation statistics. So the generator is written for
ONE target and mapped over a batch (`engine.Engine.draw`), and no target can affect another.

Shapes: N targets, C channels, O output channels, H height, W width, k kernel, K length of the feature vector.
Weights are named as in `Architecture.shapes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dgn.method.architecture import FEATURE_PX, PICTURE_PX, Architecture, Conv, Weights
from dgn.method.lapped import LappedTransform

Normalise = Callable[[Tensor, Weights, int], Tensor]  # (x, weights, i) -> the i-th normalisation of x
Convolve = Callable[[Tensor, Weights, int, Conv], Tensor]  # (x, weights, i, conv) -> relu(conv(x)), the i-th

NORM_EPS = 1e-3  # the default of Keras' BatchNormalization when the notebooks were written


def initial_weights(architecture: Architecture, stream: torch.Generator) -> dict[str, Tensor]:
    """A random start for one target, float32 on the CPU, drawn from the target's own stream.

    Glorot-uniform kernels, zero biases, gamma 1, beta 0: the defaults of Keras, which the notebooks use. So is alpha's
    start: Keras 1 took sqrt(K) for both fans of a locally connected kernel.
    """
    weights = {}
    for name, shape in architecture.shapes().items():
        if name == "alpha":
            bound = math.sqrt(3 / math.sqrt(shape[0]))
            weights[name] = torch.empty(shape).uniform_(-bound, bound, generator=stream)
        elif name.endswith(".weight"):
            out, incoming, k, _ = shape
            bound = math.sqrt(6 / (k * k * (incoming + out)))
            weights[name] = torch.empty(shape).uniform_(-bound, bound, generator=stream)
        else:
            weights[name] = torch.full(shape, 1.0 if name.endswith(".gamma") else 0.0)
    return weights


def convolve(x: Tensor, weights: Weights, i: int, conv: Conv) -> Tensor:
    """The i-th convolution and its ReLU: (N, C, H, W) -> (N, O, H', W')."""
    weight_OCkk = weights[f"conv{i}.weight"].to(x.dtype, memory_format=torch.channels_last)
    bias_O = weights[f"conv{i}.bias"].to(x.dtype)
    y = (conv_after_upsample if conv.is_after_upsample else conv_same)(x, weight_OCkk, bias_O)
    return F.relu(y) if conv.has_relu else y


def generate(architecture: Architecture, weights: Weights, features_K: Tensor, convolve: Convolve = convolve) -> Tensor:
    """One target's raw picture, (3, 224, 224): unbounded. Of convolutions each channel has zero mean and unit variance
    before its gamma and beta.

    Computed in the features' dtype. The convolutions' normalisation uses this picture's own statistics. Paper: Table 2.
    """
    return generate_shared(architecture, weights, features_K[None], own_statistics, convolve).squeeze(0)


def generate_shared(
    architecture: Architecture,
    weights: Weights,
    features_NK: Tensor,
    normalise: Normalise,
    convolve: Convolve = convolve,
) -> Tensor:
    """The whole generator on N feature vectors that share their weights: (N, 3, 224, 224). Windows are computed in
    float32 or wider."""
    if architecture.generator == "windows":
        transform = LappedTransform.of(weights)
        return transform.decode(features_NK.to(transform.colours_3.dtype), PICTURE_PX)
    x = _as_channels_last(features_NK, architecture.feature_channels)
    for i, conv in enumerate(architecture.convs):
        x = normalise(convolve(x, weights, i, conv), weights, i)
    return x


def own_statistics(x: Tensor, weights: Weights, i: int) -> Tensor:
    """Each picture's channels, normalised over that picture alone. A `Normalise`."""
    gamma, beta = weights[f"norm{i}.gamma"], weights[f"norm{i}.beta"]
    one = [F.batch_norm(part, None, None, gamma, beta, training=True, eps=NORM_EPS) for part in x.split(1)]
    return one[0] if len(one) == 1 else torch.cat(one)


def running_averages(x: Tensor, weights: Weights, i: int, is_training: bool = False) -> Tensor:
    """A decoder's normalisation: by the running averages of its training, the same for every picture. While the decoder
    is trained, by the batch's statistics, which update the averages."""
    mean, var, gamma, beta = (weights[f"norm{i}.{name}"] for name in ("mean", "var", "gamma", "beta"))
    return F.batch_norm(x, mean, var, gamma, beta, training=is_training, eps=NORM_EPS)


def conv_same(x: Tensor, weight_OCkk: Tensor, bias_O: Tensor) -> Tensor:
    """A 'same' convolution of (N, C, H, W), padded as TensorFlow does: even kernels get the odd row and column last."""
    k = weight_OCkk.shape[-1]
    if k % 2:
        return F.conv2d(x, weight_OCkk, bias_O, padding=k // 2)
    before, after = (k - 1) // 2, k // 2
    return F.conv2d(F.pad(x, (before, after, before, after)), weight_OCkk, bias_O)


def conv_after_upsample(x: Tensor, weight_OCkk: Tensor, bias_O: Tensor) -> Tensor:
    """A 'valid' convolution of the nearest x2 upsampled (N, C, H, W): (N, O, 2H-k+1, 2W-k+1), without upsampling.

    Output pixel p reads source pixels (p + j) // 2. So even and odd rows are each a smaller convolution of the source
    whose taps are sums of the kernel's: exactly the same result for 2.25 (3x3) to 2.56 (4x4) times fewer operations.
    """
    k = weight_OCkk.shape[-1]
    if k % 2 == 0:  # the last odd row and column read one row beyond the source; they are cropped below
        x = F.pad(x, (0, 1, 0, 1))
    if k < 4:  # both phases have k // 2 + 1 taps, or fit into them: one convolution with 4 x O outputs is fastest
        taps = _phase_taps(k, weight_OCkk.dtype, weight_OCkk.device)
        phases = torch.einsum("psj,qti,ocji->opqcst", taps, taps, weight_OCkk)
        y = F.pixel_shuffle(F.conv2d(x, phases.flatten(0, 2), bias_O.repeat_interleave(4)), 2)
    else:
        y = _interleave_phases(x, weight_OCkk, bias_O)
    return y if k % 2 else y[:, :, :-1, :-1]


def _interleave_phases(x: Tensor, weight_OCkk: Tensor, bias_O: Tensor) -> Tensor:
    """The 4x4 case. Its phases have 2 and 3 taps, so four convolutions (25 taps) beat one (36 taps)."""
    k = weight_OCkk.shape[-1]
    taps = _phase_taps(k, weight_OCkk.dtype, weight_OCkk.device)
    out_px = x.shape[-1] - k // 2
    rows = []
    for p in range(2):
        num_s = (p + k - 1) // 2 + 1
        columns = []
        for q in range(2):
            num_t = (q + k - 1) // 2 + 1
            weight = torch.einsum("sj,ti,ocji->ocst", taps[p, :num_s], taps[q, :num_t], weight_OCkk)
            window = x[:, :, : out_px + num_s - 1, : out_px + num_t - 1]
            columns.append(F.conv2d(window, weight, bias_O).permute(0, 2, 3, 1))
        rows.append(torch.stack(columns, dim=3))
    phases = torch.stack(rows, dim=2)  # (N, H, 2, W, 2, O)
    return phases.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


@lru_cache
def _phase_taps(kernel_px: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2, taps, k) of zeros and ones: which kernel rows fall on which source row, for even and odd output rows."""
    taps = torch.zeros(2, kernel_px // 2 + 1, kernel_px, dtype=dtype, device="cpu")
    for p in range(2):
        for j in range(kernel_px):
            taps[p, (p + j) // 2, j] = 1
    return taps.to(device)


def _as_channels_last(features_NK: Tensor, channels: int) -> Tensor:
    """(N, K) -> (N, C, 5, 5), channels last in memory: 1.8 times faster on a CPU, and convolutions keep the order."""
    pixels = features_NK.reshape(-1, channels, FEATURE_PX**2).transpose(1, 2).contiguous()
    return pixels.reshape(-1, FEATURE_PX, FEATURE_PX, channels).permute(0, 3, 1, 2)
