"""The denoising autoencoder whose decoder is the pretrained generator. Paper: 4.2 and Figure 3; layers: the notebooks.

Pictures are (N, 3, 224, 224) along the colour axes of photographs, each with variance 1 (`colours.py`).
Shapes: N pictures, K length of the code (3,200 at width 1), C, O channels, k kernel.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from dgn.method.architecture import PICTURE_PX, Architecture
from dgn.method.colours import from_axes, to_axes
from dgn.method.generator import NORM_EPS, generate_shared, running_averages

ENCODER_CHANNELS = (32, 64, 128, 256, 512)
NUM_HIDDEN = 2048
FIRST_CONTRAST = 0.5  # of pictures before training; photographs have about 1, their mean has 0
MIDDLE = 0.7  # share of a kernel's initial weights on its middle taps
POOLED_PX = 3  # what is left of 224 px after five stages, each two valid 3x3 convolutions and a halving


class _Norm(nn.Module):
    """The variables of one normalisation of the generator, under the names of `generator.running_averages`."""

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))


@torch.no_grad()
def _look_linear(
    layer: nn.Conv2d | nn.Linear,
    weight_OCkk: Tensor,
    stream: torch.Generator,
    *,
    has_pairs_in: bool = True,
    has_pairs_out: bool = True,
    middle: float = MIDDLE,
) -> None:
    """Sets a layer's weight to a random orthogonal map and its biases to 0.

    Channels before a ReLU come in pairs of opposite sign, one of which always lets the signal through. So the whole
    network starts out linear (Balduzzi et al., "The Shattered Gradients Problem", 2017). Without that its pictures
    hardly depend on the code, because each of thirteen ReLUs and normalisations loses some of it (docs/experiments.md).

    Args:
        weight_OCkk: the layer's weight, or a view of it.
        middle: share of the kernel that lies on its middle taps; the rest is spread over all of them.
    """
    out, incoming, k, _ = weight_OCkk.shape
    half_out = math.ceil(out / 2) if has_pairs_out else out
    half_in = math.ceil(incoming / 2) if has_pairs_in else incoming
    is_middle = ((torch.arange(k) - (k - 1) / 2).abs() < 1).float()
    taps = is_middle / is_middle.sum()
    focused = nn.init.orthogonal_(torch.empty(half_out, half_in), generator=stream)
    spread = nn.init.orthogonal_(torch.empty(half_out, half_in * k * k), generator=stream)
    kernel = middle * focused[:, :, None, None] * torch.outer(taps, taps)
    kernel = kernel + (1 - middle) * spread.unflatten(1, (half_in, k, k))
    if has_pairs_out:
        kernel = torch.cat([kernel, -kernel])
    if has_pairs_in:
        kernel = torch.cat([kernel, -kernel], dim=1)
    weight_OCkk.copy_(kernel[:out, :incoming])
    assert layer.bias is not None
    layer.bias.zero_()


class Decoder(nn.Module):
    """The pretrained generator as a module: codes (N, K) -> pictures. In training it uses the batch's statistics."""

    def __init__(self, architecture: Architecture, stream: torch.Generator):
        super().__init__()
        self.architecture = architecture
        for i, conv in enumerate(architecture.convs):
            module = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_px)
            _look_linear(module, module.weight, stream, has_pairs_in=i > 0, has_pairs_out=conv.has_relu)
            self.add_module(f"conv{i}", module)
            self.add_module(f"norm{i}", _Norm(conv.out_channels))
        nn.init.constant_(self.get_parameter(architecture.picture_gamma), FIRST_CONTRAST)

    @property
    def last_norm(self) -> nn.Module:
        """The normalisation of the picture itself."""
        return self.get_submodule(f"norm{len(self.architecture.convs) - 1}")

    def forward(self, code_NK: Tensor) -> Tensor:
        weights = dict(self.named_parameters()) | dict(self.named_buffers())
        return generate_shared(
            self.architecture, weights, code_NK, partial(running_averages, is_training=self.training)
        )


class Autoencoder(nn.Module):
    """Noisy pictures -> reconstructions.

    Each stage of the encoder is twice (valid 3x3 convolution, ReLU, batch norm), then max-pooling. After the stages
    come a dense layer of 2,048 with ReLU and a linear dense layer of K.

    Args:
        width: factor on every channel count except the three of the picture.
    """

    def __init__(self, width: float, seed: int):
        super().__init__()
        self.architecture = Architecture("pretrained", width)
        stream = torch.Generator().manual_seed(seed)
        stages: list[nn.Module] = []
        incoming = 3
        for full in ENCODER_CHANNELS:
            out = self.architecture.channels(full)
            for channels in (incoming, out):
                stages += [nn.Conv2d(channels, out, 3), nn.ReLU(), nn.BatchNorm2d(out, eps=NORM_EPS)]
            stages.append(nn.MaxPool2d(2))
            incoming = out
        hidden = self.architecture.channels(NUM_HIDDEN)
        self.encoder = nn.Sequential(
            *stages,
            nn.Flatten(),
            nn.Linear(incoming * POOLED_PX**2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, self.architecture.num_features),
        )
        convs = [module for module in self.encoder if isinstance(module, nn.Conv2d)]
        for conv in convs:
            _look_linear(conv, conv.weight, stream, has_pairs_in=conv is not convs[0])
        dense, code = (module for module in self.encoder if isinstance(module, nn.Linear))
        _look_linear(dense, dense.weight.unflatten(1, (incoming, POOLED_PX, POOLED_PX)), stream, middle=0.0)
        _look_linear(code, code.weight[:, :, None, None], stream, has_pairs_out=False)
        self.decoder = Decoder(self.architecture, stream)

    def forward(self, noisy_N3HW: Tensor) -> Tensor:
        return self.decoder(self.encoder(noisy_N3HW))


def along_axes(photographs_NHW3: Tensor) -> Tensor:
    """8-bit RGB (N, H, W, 3) -> what the autoencoder sees: (N, 3, H, W), float32, channels last in memory."""
    return to_axes(photographs_NHW3.permute(0, 3, 1, 2) / 255).contiguous(memory_format=torch.channels_last)


def displayed(pictures_N3HW: Tensor) -> Tensor:
    """The inverse of `along_axes`: 8-bit RGB (N, H, W, 3), clamped to what a screen can show."""
    colours = from_axes(pictures_N3HW.float()).permute(0, 2, 3, 1)
    return (colours.clamp(0, 1) * 255).round().to(torch.uint8)


def crop_and_flip(photographs_NHW3: Tensor, stream: torch.Generator) -> Tensor:
    """Augmentation: a random 224 px window of each photograph, mirrored or not."""
    side = photographs_NHW3.shape[1]
    offsets = torch.randint(side - PICTURE_PX + 1, (len(photographs_NHW3), 2), generator=stream).tolist()
    is_mirrored = torch.randint(2, (len(photographs_NHW3),), generator=stream).tolist()
    windows = [
        photograph[top : top + PICTURE_PX, left : left + PICTURE_PX].flip(1 if mirrored else ())
        for photograph, (top, left), mirrored in zip(photographs_NHW3, offsets, is_mirrored, strict=True)
    ]
    return torch.stack(windows)


def central_crop(photographs_NHW3: Tensor) -> Tensor:
    margin = (photographs_NHW3.shape[1] - PICTURE_PX) // 2
    return photographs_NHW3[:, margin : margin + PICTURE_PX, margin : margin + PICTURE_PX]


def add_noise(clean_N3HW: Tensor, sigma: float, stream: torch.Generator) -> Tensor:
    """The pictures with Gaussian noise, which is drawn on the CPU so that every device sees the same."""
    noise = torch.randn(clean_N3HW.shape, generator=stream).to(clean_N3HW.device)
    return clean_N3HW + sigma * noise.to(memory_format=torch.channels_last)
