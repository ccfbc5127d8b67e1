"""torchvision's classifiers: builders, preprocessing, labels, downloads, and weights files with the keys of old."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from unittest.mock import patch
from urllib.error import URLError

from torch import Tensor, nn

from dgn.errors import WeightsMissing
from dgn.networks.network import NamedBuilder, Network


def _models() -> Any:
    """torchvision's module of networks, imported where one is asked for: that takes longer than to import PyTorch."""
    from torchvision import models

    return models


class TorchvisionBuilder(NamedBuilder):
    """Builds a network with random weights; with other classes than the published weights have if asked for."""

    def __call__(self) -> nn.Module:
        own, models = self.arguments, _models()
        # These two were trained with another normalisation and apply the difference in their forward pass.
        if self.name in ("inception_v3", "googlenet"):
            own |= {"init_weights": False, "transform_input": True}
        if models.get_model_builder(self.name).__annotations__["return"] is models.VisionTransformer:
            own["image_size"] = self._published().meta["min_size"][0]
        return models.get_model(self.name, weights=None, **own)

    def converted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A published file's weights under today's names, as torchvision's own builder reads it.

        DenseNet's builder renames keys, for instance. A file that the builder refuses comes back as it is.
        """
        models = _models()
        given = patch.object(models.WeightsEnum, "get_state_dict", lambda *_, **__: state)
        with given, suppress(RuntimeError, ValueError):
            return models.get_model(self.name, weights=self._published()).state_dict()
        return state

    def download(self) -> dict[str, Tensor]:
        """The published weights. Raises: WeightsMissing without internet."""
        try:
            return self._published().get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError) as error:
            raise WeightsMissing(f"torchvision's download failed ({error})") from error

    def _published(self) -> Any:
        return _models().get_model_weights(self.name).DEFAULT


def torchvision_names() -> list[str]:
    """torchvision's classifiers."""
    models = _models()
    return models.list_models(module=models)


def imagenet_labels() -> tuple[str, ...]:
    """The labels of ImageNet's 1000 classes, in the usual order."""
    return tuple(_models().VGG16_Weights.DEFAULT.meta["categories"])


def torchvision_network(name: str) -> Network:
    """One of torchvision's classifiers, described by its published weights and their own transforms."""
    published = _models().get_model_weights(name).DEFAULT
    transforms = published.transforms()
    return Network(
        TorchvisionBuilder(name),
        size=transforms.crop_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        labels=tuple(published.meta["categories"]),
        name=name,
    )
