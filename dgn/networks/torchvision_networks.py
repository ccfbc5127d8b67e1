"""torchvision's classifiers: builders, preprocessing, labels, downloads, and weights files with the keys of old."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from unittest.mock import patch
from urllib.error import URLError

from torch import Tensor, nn
from torchvision import models
from torchvision.models import VisionTransformer, WeightsEnum

from dgn.errors import WeightsMissing
from dgn.networks.network import NamedBuilder, Network


class TorchvisionBuilder(NamedBuilder):
    """Builds a network with random weights; with other classes than the published weights have if asked for."""

    def __call__(self) -> nn.Module:
        own = self.arguments
        # These two were trained with another normalisation and apply the difference in their forward pass.
        if self.name in ("inception_v3", "googlenet"):
            own |= {"init_weights": False, "transform_input": True}
        if models.get_model_builder(self.name).__annotations__["return"] is VisionTransformer:
            own["image_size"] = self._published().meta["min_size"][0]
        return models.get_model(self.name, weights=None, **own)

    def converted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A published file's weights under today's names, as torchvision's own builder reads it.

        DenseNet's builder renames keys, for instance. A file that the builder refuses comes back as it is.
        """
        with patch.object(WeightsEnum, "get_state_dict", lambda *_, **__: state), suppress(RuntimeError, ValueError):
            return models.get_model(self.name, weights=self._published()).state_dict()
        return state

    def download(self) -> dict[str, Tensor]:
        """The published weights. Raises: WeightsMissing without internet."""
        try:
            return self._published().get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError) as error:
            raise WeightsMissing(f"torchvision's download failed ({error})") from error

    def _published(self) -> Any:
        return models.get_model_weights(self.name).DEFAULT


def torchvision_names() -> list[str]:
    """torchvision's classifiers."""
    return models.list_models(module=models)


def imagenet_labels() -> tuple[str, ...]:
    """The labels of ImageNet's 1000 classes, in the usual order."""
    return tuple(models.VGG16_Weights.DEFAULT.meta["categories"])


def torchvision_network(name: str) -> Network:
    """One of torchvision's classifiers, described by its published weights and their own transforms."""
    published = models.get_model_weights(name).DEFAULT
    transforms = published.transforms()
    return Network(
        TorchvisionBuilder(name),
        size=transforms.crop_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        labels=tuple(published.meta["categories"]),
        name=name,
    )
