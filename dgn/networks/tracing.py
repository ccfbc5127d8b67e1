"""A network's layers and units, found by running it once on PyTorch's meta device: no weights, no arithmetic."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import torch
from torch import Tensor, nn
from torchvision.models import VGG

from dgn.errors import DgnError
from dgn.method.architecture import PICTURE_PX
from dgn.networks.layers import Layers
from dgn.networks.registry import bare_network, class_labels


@lru_cache
def layers_of(network: str) -> Layers:
    """What `dgn.layers` returns, cached. Raises: DgnError as it does."""
    with torch.device("meta"):
        model = bare_network(network).to("meta").eval()
        names = {module: name for name, module in model.named_modules() if name}
        units: dict[str, int] = {}
        convolutions: list[str] = []
        weighted: list[str] = []
        calls = Counter[str]()

        def note(module: nn.Module, _: object, output: object) -> None:
            if isinstance(output, Tensor) and 2 <= output.ndim <= 4:
                name = names[module]
                calls[name] += 1
                units[name] = output.shape[-1 if output.ndim == 3 else 1]
                if isinstance(module, nn.Conv2d):
                    convolutions.append(name)
                if isinstance(module, nn.Conv2d | nn.Linear):
                    weighted.append(name)

        for module in names:
            module.register_forward_hook(note)
        with torch.no_grad():
            model(torch.empty(1, 3, PICTURE_PX, PICTURE_PX))
    units = {name: count for name, count in units.items() if calls[name] == 1}
    aliases = _vgg_names(model)
    labels = class_labels(network)
    class_layer = weighted[-1]
    if units[class_layer] != len(labels):
        raise DgnError(
            f"{network}: its last layer {class_layer} has {units[class_layer]} units for {len(labels)} labels"
        )
    return Layers(
        network=network,
        units={aliases.get(name, name): count for name, count in units.items()},
        class_layer=aliases.get(class_layer, class_layer),
        filter_layers=tuple(aliases.get(name, name) for name in convolutions if name != class_layer),
        labels=labels,
        aliases=aliases,
    )


def _vgg_names(model: nn.Module) -> dict[str, str]:
    """Dotted name -> conv{block}_{i} or fc{i} for torchvision's VGG family; empty for other networks."""
    if not isinstance(model, VGG):
        return {}
    aliases, block, i = {}, 1, 0
    for index, module in enumerate(model.features):
        if isinstance(module, nn.Conv2d):
            i += 1
            aliases[f"features.{index}"] = f"conv{block}_{i}"
        elif isinstance(module, nn.MaxPool2d):
            block, i = block + 1, 0
    linear = [index for index, module in enumerate(model.classifier) if isinstance(module, nn.Linear)]
    return aliases | {f"classifier.{index}": f"fc{block + n}" for n, index in enumerate(linear)}
