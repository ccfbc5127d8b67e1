"""What ships with dgn: two small classifiers of drawings, and two decoders.

The classifiers have VGG-16's layers at an eighth of its width. They stand in for it if nothing can be downloaded and
know 24 kinds of drawn shapes and textures, nothing else. `vgg16-mini-b` is for second opinions: another seed, other
drawings. `tools/train_embedded.py` trained them. The decoder `drawings` knows plain drawings in two colours, a quarter
as many axes as usual; `photographs` is for real networks. `make decoders` makes them again (docs/decoder.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from dgn.networks.embedded.drawings import LABELS

NETWORKS = ("vgg16-mini", "vgg16-mini-b")
DECODERS = ("drawings", "photographs")
SIZE_PX = 224  # of the pictures that the classifiers read
WIDTHS = (8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M")  # VGG-16's, divided by 8
NUM_HIDDEN = 512  # 4096 / 8
POOLED_PX = 3  # VGG-16 pools to 7 x 7; 3 x 3 keeps the file below 2 MB
INPUT_POOL = 2  # pictures are averaged to 112 x 112 px first: a quarter of the work, and drawings lose nothing
__all__ = ["DECODERS", "LABELS", "NETWORKS", "SIZE_PX", "EmbeddedBuilder", "build", "weights_path"]


class VGG(nn.Module):
    """torchvision's VGG at these sizes, without torchvision, which takes longer to import than PyTorch."""

    def __init__(self, features: nn.Sequential):
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(POOLED_PX)
        self.classifier = nn.Sequential(
            nn.Linear(64 * POOLED_PX**2, NUM_HIDDEN), nn.ReLU(), nn.Dropout(),
            nn.Linear(NUM_HIDDEN, NUM_HIDDEN), nn.ReLU(), nn.Dropout(),
            nn.Linear(NUM_HIDDEN, len(LABELS)),
        )  # fmt: skip

    def forward(self, images_N3HW: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(images_N3HW)).flatten(1))


def build(batch_norm: bool = False) -> nn.Module:
    """The network with random weights: (N, 3, 224, 224), normalised as torchvision does -> (N, classes) logits.

    Args:
        batch_norm: for training only; the weights that ship have it folded into the convolutions.
    """
    layers: list[nn.Module] = [nn.AvgPool2d(INPUT_POOL)]
    num_channels = 3
    for width in WIDTHS:
        if isinstance(width, int):
            norm = [nn.BatchNorm2d(width)] if batch_norm else []
            layers += [nn.Conv2d(num_channels, width, 3, padding=1), *norm, nn.ReLU(inplace=True)]
            num_channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return VGG(nn.Sequential(*layers))


def weights_path(name: str) -> Path:
    """The weights file of one of NETWORKS, or DECODERS."""
    return Path(__file__).parent / f"{name}.safetensors"


@dataclass(frozen=True)
class EmbeddedBuilder:
    """Builds one of NETWORKS with random weights."""

    is_plain: ClassVar[bool] = True  # does nothing but make parameters
    name: str

    def __call__(self) -> nn.Module:
        return build()

    def weights_path(self) -> Path:
        """The file of its weights."""
        return weights_path(self.name)
