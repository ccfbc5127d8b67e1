"""G, the generator: Table 2 of the paper as pure functions of one target's weights.

Everything of a target is its own: weights, feature vector, normalisation statistics. So G is written for ONE target and
mapped over the batch (`generate_batch`); that no target feels its neighbours holds by construction. On a GPU
`stacked.generate` does the same for all of them at once.

Shapes: N targets, C channels, O output channels, H height, W width, K length of the feature vector.
Weights of a target: `alpha` (K,), then per convolution i `conv{i}.weight` (O, C, k, k), `conv{i}.bias` (O,),
`norm{i}.gamma` (O,), `norm{i}.beta` (O,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgn import winograd
from dgn.targets import Mode

Weights = Mapping[str, Tensor]
Normalise = Callable[[Tensor, Weights, int], Tensor]
Convolve = Callable[[Tensor, Weights, int, "Conv"], Tensor]

PICTURE_PX = 224  # VGG-16's input, Table 2's output
FEATURE_PX = 5  # Table 2: the feature vector is reshaped to 128 x 5 x 5
NORM_EPS = 1e-3  # Keras' BatchNormalization at the time of the notebooks
# Table 2 prints 3x3 for stage 5; only 4x4 ends at 224 px and at Table 1's count of 5,240,841 variables.
STAGES = ((512, 2), (256, 3), (256, 3), (128, 3), (128, 4))  # (channels, kernel), two convolutions each
UPSAMPLED_WORK = 300_000  # channels in times out times pixels a side, from which on `_algorithm` pays


@dataclass(frozen=True)
class Conv:
    """One convolution of G, followed by ReLU (or not) and per-picture normalisation, in that order."""

    in_channels: int
    out_channels: int
    kernel_px: int
    is_after_upsample: bool  # 'valid' on the nearest x2 upsampled map; otherwise 'same'
    has_relu: bool = True


@dataclass(frozen=True)
class Architecture:
    """G's layers for one mode. `width` scales every channel count but the three of the picture (paper: 1).

    `has_last_relu`: whether the untrained G ends in a ReLU, as the paper's does; the pretrained G never does.
    """

    mode: Mode
    width: float = 1.0
    has_last_relu: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.width <= 4:
            raise ValueError(
                f"generator width {self.width}: expected a factor above 0 and up to 4 (the paper's G is 1)"
            )

    def channels(self, full: int) -> int:
        return max(1, round(full * self.width))

    @property
    def feature_channels(self) -> int:
        return self.channels(128)

    @property
    def num_features(self) -> int:
        """K, 3,200 at width 1."""
        return self.feature_channels * FEATURE_PX**2

    @property
    def convs(self) -> tuple[Conv, ...]:
        convs, incoming = [], self.feature_channels
        for full, kernel_px in STAGES:
            out = self.channels(full)
            convs += [Conv(incoming, out, kernel_px, True), Conv(out, out, kernel_px, False)]
            incoming = out
        if self.mode == "untrained":
            convs.append(Conv(incoming, 3, 3, True, has_relu=self.has_last_relu))
        else:
            c64 = self.channels(64)
            convs += [Conv(incoming, c64, 3, True), Conv(c64, c64, 3, False), Conv(c64, 3, 3, False, has_relu=False)]
        return tuple(convs)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight of G with its shape, `alpha` first."""
        shapes: dict[str, tuple[int, ...]] = {"alpha": (self.num_features,)}
        for i, conv in enumerate(self.convs):
            o, c, k = conv.out_channels, conv.in_channels, conv.kernel_px
            shapes |= {f"conv{i}.weight": (o, c, k, k), f"conv{i}.bias": (o,)}
            shapes |= {f"norm{i}.gamma": (o,), f"norm{i}.beta": (o,)}
        return shapes

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of what is optimised per target: all of G untrained, `alpha` alone pretrained (paper, 4.1 and 4.2)."""
        return tuple(self.shapes()) if self.mode == "untrained" else ("alpha",)

    @property
    def num_trainable(self) -> int:
        """Trainable variables of one target (Table 1: 5,240,841 and 3,200)."""
        shapes = self.shapes()
        return sum(math.prod(shapes[name]) for name in self.trainable)

    @property
    def picture_gamma(self) -> str:
        """Name of the scales of the three picture channels, Eq. 3's gamma."""
        return f"norm{len(self.convs) - 1}.gamma"


def initial_weights(architecture: Architecture, stream: torch.Generator) -> dict[str, Tensor]:
    """A fresh random start for one target, float32 on the CPU, drawn from that target's own stream.

    Glorot-uniform kernels, zero biases, gamma 1, beta 0: Keras' defaults, which the notebooks use. So is alpha's start:
    Keras 1 took sqrt(K) for both fans of a locally connected kernel.
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


def plain(x: Tensor, weights: Weights, i: int, conv: Conv) -> Tensor:
    """The i-th convolution and its ReLU: (N, C, H, W) -> (N, O, H', W')."""
    weight_OCkk = weights[f"conv{i}.weight"].to(x.dtype, memory_format=torch.channels_last)
    bias_O = weights[f"conv{i}.bias"].to(x.dtype)
    y = (conv_after_upsample if conv.is_after_upsample else conv_same)(x, weight_OCkk, bias_O)
    return F.relu(y) if conv.has_relu else y


def quick(x: Tensor, weights: Weights, i: int, conv: Conv) -> Tensor:
    """The same in fewer multiplications, where that takes a CPU less time."""
    weight_OCkk, bias_O = weights[f"conv{i}.weight"], weights[f"conv{i}.bias"]
    algorithm = _algorithm(conv, x.shape[-1], not weight_OCkk.requires_grad)
    if algorithm is None:
        return plain(x, weights, i, conv)
    made = [name for name in weights if name.startswith(f"conv{i}.kernel")]  # by `prepared`
    kernels = [weights[name] for name in made] or algorithm.kernels(weight_OCkk, x.dtype)
    return winograd.Convolution.apply(x, bias_O, algorithm, conv.has_relu, *kernels)


def _algorithm(conv: Conv, px: int, is_frozen: bool) -> winograd.Algorithm | None:
    """By measurement (docs/performance.md): below these sizes the sums cost more than the products that they save."""
    c, o, k = conv.in_channels, conv.out_channels, conv.kernel_px
    if conv.is_after_upsample:
        return winograd.UPSAMPLED[k] if o > 3 and (k == 4 or c * o * px > UPSAMPLED_WORK) else None
    if k == 3:
        return winograd.SAME_3 if is_frozen and winograd.pays(c, o, px) else None
    return winograd.SAME_4 if k == 4 and winograd.pays(c, o, px) else None


def prepared(architecture: Architecture, frozen: Weights, dtype: torch.dtype, is_winograd: bool) -> dict[str, Tensor]:
    """A decoder's weights as all updates of a batch multiply them: kernels in G's dtype, and those of `quick`."""
    weights, px = dict(frozen), FEATURE_PX
    for i, conv in enumerate(architecture.convs):
        weight_OCkk = frozen[f"conv{i}.weight"]
        algorithm = _algorithm(conv, px, is_frozen=True) if is_winograd else None
        for n, kernel in enumerate(algorithm.kernels(weight_OCkk, dtype) if algorithm else []):
            weights[f"conv{i}.kernel{n}"] = kernel
        weights[f"conv{i}.weight"] = weight_OCkk.to(dtype, memory_format=torch.channels_last)
        px = 2 * px - conv.kernel_px + 1 if conv.is_after_upsample else px
    return weights


def generate(architecture: Architecture, weights: Weights, features_K: Tensor, convolve: Convolve = plain) -> Tensor:
    """One target's picture as G leaves it: (3, 224, 224), unbounded, zero mean and unit variance before gamma and beta.

    The features' dtype is the one that G computes in; the normalisation's statistics are this picture's own.
    Paper: Table 2.
    """
    return layers(architecture, weights, features_K[None], own_statistics, convolve).squeeze(0)


def own_statistics(x: Tensor, weights: Weights, i: int) -> Tensor:
    """Each picture's channels normalised over that picture."""
    gamma, beta = weights[f"norm{i}.gamma"], weights[f"norm{i}.beta"]
    one = [F.batch_norm(part, None, None, gamma, beta, training=True, eps=NORM_EPS) for part in x.split(1)]
    return one[0] if len(one) == 1 else torch.cat(one)


def running_averages(x: Tensor, weights: Weights, i: int, is_training: bool = False) -> Tensor:
    """A decoder's normalisation: with the running averages of its training, the same for every picture; while it is
    trained, with the batch's statistics, which move the averages."""
    mean, var, gamma, beta = (weights[f"norm{i}.{name}"] for name in ("mean", "var", "gamma", "beta"))
    return F.batch_norm(x, mean, var, gamma, beta, training=is_training, eps=NORM_EPS)


def layers(
    architecture: Architecture,
    weights: Weights,
    features_NK: Tensor,
    normalise: Normalise,
    convolve: Convolve = plain,
) -> Tensor:
    """All of G on features that share their weights: (N, 3, 224, 224). `normalise(x, weights, i)` is the i-th norm."""
    x = _as_channels_last(features_NK, architecture.feature_channels)
    for i, conv in enumerate(architecture.convs):
        x = normalise(convolve(x, weights, i, conv), weights, i)
    return x


def generate_batch(
    architecture: Architecture, own: Weights, shared: Weights, features_NK: Tensor, is_winograd: bool = True
) -> Tensor:
    """`generate` for N targets: (N, 3, 224, 224). `own` holds stacked weights (N, ...), `shared` the frozen ones.

    Frozen weights go through convolutions of N pictures. Weights of one's own: on a CPU in a loop over the targets,
    since there a grouped convolution is no faster than its parts (measured) and one at a time keeps caches warm; on a
    GPU through `stacked`, but in float64, in which tests compare. `is_winograd`: `quick` on a CPU.
    """
    convolve = quick if is_winograd and not features_NK.is_cuda else plain
    if "conv0.weight" not in own:
        if not features_NK.is_cuda:
            return layers(architecture, shared, features_NK, own_statistics, convolve)
        from dgn import stacked  # Triton comes with PyTorch's builds for GPUs alone

        return layers(architecture, shared, features_NK, stacked.shared_statistics)
    if features_NK.is_cuda and features_NK.dtype != torch.float64:
        from dgn import stacked

        return stacked.generate(architecture, own, features_NK)
    unbound = {name: _Unbound.apply(tensor) for name, tensor in own.items()}
    return torch.stack([
        generate(architecture, {name: parts[n] for name, parts in unbound.items()}, features_K, convolve)
        for n, features_K in enumerate(features_NK.unbind())
    ])  # fmt: skip


class _Unbound(torch.autograd.Function):
    """`stacked.unbind()`, but for a gradient with the memory order of `stacked`: the optimiser need not copy it."""

    @staticmethod
    def forward(ctx: Any, stacked: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(stacked)
        return stacked.unbind()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        whole = torch.empty_like(ctx.saved_tensors[0])
        for part, grad in zip(whole, grads, strict=True):
            part.copy_(grad)
        return whole


def conv_same(x: Tensor, weight_OCkk: Tensor, bias_O: Tensor) -> Tensor:
    """'Same' convolution of (N, C, H, W) as TensorFlow pads it: even kernels get the odd row and column after."""
    k = weight_OCkk.shape[-1]
    if k % 2:
        return F.conv2d(x, weight_OCkk, bias_O, padding=k // 2)
    before, after = (k - 1) // 2, k // 2
    return F.conv2d(F.pad(x, (before, after, before, after)), weight_OCkk, bias_O)


def conv_after_upsample(x: Tensor, weight_OCkk: Tensor, bias_O: Tensor) -> Tensor:
    """'Valid' convolution of the nearest x2 upsampled (N, C, H, W): (N, O, 2H-k+1, 2W-k+1), without upsampling.

    Pixel p of the output sees source pixels (p + j) // 2, so even and odd rows are each a smaller convolution of the
    source with summed taps: 2.25 (3x3) to 2.56 (4x4) times fewer operations, exactly.
    """
    k = weight_OCkk.shape[-1]
    if k % 2 == 0:  # the last odd row and column read one row beyond the source; they are cropped again below
        x = F.pad(x, (0, 1, 0, 1))
    if k < 4:  # both phases have k // 2 + 1 taps (or fit them): one convolution with 4 x O outputs is fastest
        taps = _phase_taps(k, weight_OCkk.dtype, weight_OCkk.device)
        phases = torch.einsum("psj,qti,ocji->opqcst", taps, taps, weight_OCkk)
        y = F.pixel_shuffle(F.conv2d(x, phases.flatten(0, 2), bias_O.repeat_interleave(4)), 2)
    else:
        y = _interleave_phases(x, weight_OCkk, bias_O)
    return y if k % 2 else y[:, :, :-1, :-1]


def _interleave_phases(x: Tensor, weight_OCkk: Tensor, bias_O: Tensor) -> Tensor:
    """The 4x4 case: phases of 2 and 3 taps, so four convolutions (25 taps) beat one (36 taps)."""
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
    """(2, taps, k) of 0 and 1: which of the k kernel rows fall on which source row, for even and odd output rows."""
    taps = torch.zeros(2, kernel_px // 2 + 1, kernel_px, dtype=dtype, device="cpu")
    for p in range(2):
        for j in range(kernel_px):
            taps[p, (p + j) // 2, j] = 1
    return taps.to(device)


def _as_channels_last(features_NK: Tensor, channels: int) -> Tensor:
    """(N, K) -> (N, C, 5, 5) laid out channels-last, 1.8 times faster on a CPU; convolutions keep the layout."""
    pixels = features_NK.reshape(-1, channels, FEATURE_PX**2).transpose(1, 2).contiguous()
    return pixels.reshape(-1, FEATURE_PX, FEATURE_PX, channels).permute(0, 3, 1, 2)
