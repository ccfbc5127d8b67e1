"""The denoising autoencoder whose decoder is the pretrained G (paper, 4.2 and Figure 3; layers by the notebooks).

Pictures are RGB normalised by ImageNet's mean and standard deviation, (N, 3, 224, 224). K: length of the code, 3,200 at
width 1.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from dgn.discriminator import IMAGENET_MEAN, IMAGENET_STD
from dgn.generator import NORM_EPS, PICTURE_PX, Architecture, initial_weights, layers, running_averages

ENCODER_CHANNELS = (32, 64, 128, 256, 512)
NUM_HIDDEN = 2048
FIRST_CONTRAST = 0.2  # of the pictures before any step: near the mean picture, and Adam moves a scale but slowly
POOLED_PX = 3  # 224 px after five times two valid 3x3 convolutions and a halving


class _Norm(nn.Module):
    """The variables of one normalisation of G, under the names that `dgn.generator` uses."""

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))


class Decoder(nn.Module):
    """The pretrained G as a module: codes (N, K) -> pictures. While it is trained, statistics are the batch's."""

    def __init__(self, architecture: Architecture, stream: torch.Generator):
        super().__init__()
        self.architecture = architecture
        for i, conv in enumerate(architecture.convs):
            self.add_module(f"conv{i}", nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_px))
            self.add_module(f"norm{i}", _Norm(conv.out_channels))
        start = {name: tensor for name, tensor in initial_weights(architecture, stream).items() if name != "alpha"}
        start[architecture.picture_gamma].fill_(FIRST_CONTRAST)
        self.load_state_dict(start, strict=False)  # the running averages keep their own start

    def forward(self, code_NK: Tensor) -> Tensor:
        weights = dict(self.named_parameters()) | dict(self.named_buffers())
        return layers(self.architecture, weights, code_NK, partial(running_averages, is_training=self.training))


class Autoencoder(nn.Module):
    """Noisy pictures -> (reconstructions, codes (N, K)).

    `width` scales every channel count but the three of the picture. Each stage of the encoder is twice (valid 3x3
    convolution, ReLU, batch norm), then max-pooling; then dense 2,048 with ReLU and dense K, linear.
    """

    def __init__(self, width: float, seed: int):
        super().__init__()
        self.architecture = Architecture("pretrained", width)
        torch.manual_seed(seed)
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
        self.decoder = Decoder(self.architecture, torch.Generator().manual_seed(seed))

    def forward(self, noisy_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        code_NK = self.encoder(noisy_N3HW)
        return self.decoder(code_NK), code_NK


def normalised(photos_NHW3: Tensor) -> Tensor:
    """8-bit RGB (N, H, W, 3) -> what the autoencoder sees, (N, 3, H, W), float32, channels-last in memory."""
    mean, std = (torch.tensor(values, device=photos_NHW3.device) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((photos_NHW3 - mean) / std).permute(0, 3, 1, 2)


def displayed(pictures_N3HW: Tensor) -> Tensor:
    """The way back: 8-bit RGB (N, H, W, 3), clamped to what a screen can show."""
    mean, std = (torch.tensor(values, device=pictures_N3HW.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    colours = pictures_N3HW.float().permute(0, 2, 3, 1) * std + mean
    return (colours.clamp(0, 1) * 255).round().to(torch.uint8)


def crop_and_flip(photos_NHW3: Tensor, stream: torch.Generator) -> Tensor:
    """Augmentation: each photograph's own random 224 px window, mirrored or not."""
    side = photos_NHW3.shape[1]
    offsets = torch.randint(side - PICTURE_PX + 1, (len(photos_NHW3), 2), generator=stream).tolist()
    is_mirrored = torch.randint(2, (len(photos_NHW3),), generator=stream).tolist()
    windows = [
        photo[top : top + PICTURE_PX, left : left + PICTURE_PX].flip(1 if mirrored else ())
        for photo, (top, left), mirrored in zip(photos_NHW3, offsets, is_mirrored, strict=True)
    ]
    return torch.stack(windows)


def central_crop(photos_NHW3: Tensor) -> Tensor:
    margin = (photos_NHW3.shape[1] - PICTURE_PX) // 2
    return photos_NHW3[:, margin : margin + PICTURE_PX, margin : margin + PICTURE_PX]


def add_noise(clean_N3HW: Tensor, sigma: float, stream: torch.Generator) -> Tensor:
    """Gaussian noise, drawn on the CPU so that every device sees the same."""
    noise = torch.randn(clean_N3HW.shape, generator=stream).to(clean_N3HW.device)
    return clean_N3HW + sigma * noise.to(memory_format=torch.channels_last)
