"""The generator's layers (paper: Table 2) and the shapes of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from dgn.method import lapped
from dgn.method.recipes import Generator
from dgn.targets import Mode

Weights = Mapping[str, Tensor]  # by name, see `Architecture.shapes`

PICTURE_PX = 224  # side of the generator's output (Table 2) and of VGG-16's input
FEATURE_PX = 5  # the feature vector is reshaped to 128 x 5 x 5 (Table 2)
# Table 2 prints 3x3 for stage 5. Only 4x4 ends at 224 px and at Table 1's count of 5,240,841 variables.
STAGES = ((512, 2), (256, 3), (256, 3), (128, 3), (128, 4))  # (channels, kernel), two convolutions each


def out_px(px: int, kernel_px: int, is_after_upsample: bool) -> int:
    """Side of a convolution's output for an input of side `px`; see `Conv`."""
    return 2 * px - kernel_px + 1 if is_after_upsample else px


@dataclass(frozen=True)
class Conv:
    """One convolution of the generator. A ReLU (or none) and a per-picture normalisation follow, in that order."""

    in_channels: int
    out_channels: int
    kernel_px: int
    is_after_upsample: bool  # 'valid', on the map upsampled x2 by nearest neighbour; otherwise 'same'
    has_relu: bool = True

    def out_px(self, px: int) -> int:
        """Side of the output for an input of side `px`."""
        return out_px(px, self.kernel_px, self.is_after_upsample)


@dataclass(frozen=True)
class Architecture:
    """The generator's layers in one mode.

    Args:
        width: factor on every channel count except the three of the picture; the paper's generator is 1.
        has_last_relu: whether the untrained generator ends in a ReLU, as the paper's does. The pretrained one never
            does.
        generator: of the pretrained mode; the untrained one's are convolutions.
        code_shape: of one picture's code, for a generator of the user's, whose weights are its module's affair.

    Raises: ValueError for a width outside (0, 4].
    """

    mode: Mode
    width: float = 1.0
    has_last_relu: bool = True
    generator: Generator = "convolutions"
    code_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.width <= 4:
            raise ValueError(f"generator width {self.width}: expected more than 0 and at most 4 (the paper's is 1)")

    def channels(self, full: int) -> int:
        """A channel count at this width, from the paper's."""
        return max(1, round(full * self.width))

    @property
    def feature_channels(self) -> int:
        """Of convolutions' feature vector."""
        return self.channels(128)

    @property
    def window_channels(self) -> tuple[int, ...]:
        """Axes of each band of windows."""
        return tuple(self.channels(band.channels) for band in lapped.BANDS)

    @property
    def num_features(self) -> int:
        """K, the length of the feature vector: 3,200 at width 1, of windows 8,800."""
        if self.generator == "own":
            return math.prod(self.code_shape)
        if self.generator == "windows":
            return sum(
                channels * band.places for band, channels in zip(lapped.BANDS, self.window_channels, strict=True)
            )
        return self.feature_channels * FEATURE_PX**2

    @property
    def convs(self) -> tuple[Conv, ...]:
        """All convolutions, first to last; other generators have none."""
        if self.generator != "convolutions":
            return ()
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

    def convs_with_px(self) -> Iterator[tuple[Conv, int]]:
        """Each convolution with the side of the map that it reads."""
        px = FEATURE_PX
        for conv in self.convs:
            yield conv, px
            px = conv.out_px(px)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight's name and shape: `alpha` (K,), then per convolution i `conv{i}.weight` (O, C, k, k) and
        `conv{i}.bias` (O,), and of its normalisation `norm{i}.gamma` (O,) and `norm{i}.beta` (O,). Windows have
        `windows{i}.axes` (C, 3, s, s) per band, and `windows.colours` (3,)."""
        shapes: dict[str, tuple[int, ...]] = {"alpha": (self.num_features,)}
        if self.generator == "windows":
            shapes["windows.colours"] = (3,)
            for i, (band, channels) in enumerate(zip(lapped.BANDS, self.window_channels, strict=True)):
                shapes[lapped.axes_name(i)] = (channels, *band.axis_shape)
        for i, conv in enumerate(self.convs):
            o, c, k = conv.out_channels, conv.in_channels, conv.kernel_px
            shapes |= {f"conv{i}.weight": (o, c, k, k), f"conv{i}.bias": (o,)}
            shapes |= {f"norm{i}.gamma": (o,), f"norm{i}.beta": (o,)}
        return shapes

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the weights that are optimised per target: all when untrained, `alpha` alone when pretrained.

        Paper: 4.1 and 4.2.
        """
        return tuple(self.shapes()) if self.mode == "untrained" else ("alpha",)

    @property
    def num_trainable(self) -> int:
        """Trainable variables of one target. Paper: Table 1, 5,240,841 and 3,200."""
        shapes = self.shapes()
        return sum(math.prod(shapes[name]) for name in self.trainable)

    @property
    def picture_gamma(self) -> str:
        """Name of the scales of the three picture channels. Paper: gamma of Eq. 3."""
        return f"norm{len(self.convs) - 1}.gamma"
