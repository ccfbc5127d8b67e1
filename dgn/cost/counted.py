"""What a configuration costs, counted without running it: variables, operations, bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from dgn.method.batch import architecture_of
from dgn.method.generator import generate
from dgn.method.precision import DTYPES
from dgn.method.recipes import RenderConfig
from dgn.networks.drawable import without_weights
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.network import Network
from dgn.targets import Mode

COPIES = {"adamax": 4, "sgd": 3}  # weights, gradient, and the optimiser's moments; float32 each


@dataclass(frozen=True)
class Cost:
    """The cost of one target in one mode.

    Operations are those of matrix products and convolutions, forward and backward; a multiply-add counts as two. They
    are for one view per update unless `num_views` is higher.
    """

    width: float
    num_trainable: int
    num_updates: int
    num_half_size_updates: int  # those among them in which the classifier sees pictures of half its size
    num_views: int
    generator_ops_per_update: int
    classifier_ops_per_view: int
    classifier_ops_per_half_size_view: int
    state_bytes: int
    generator_map_bytes: int
    classifier_map_bytes_per_view: int

    @property
    def ops_per_update(self) -> int:
        """Those of an update at the whole size."""
        return self.generator_ops_per_update + self.num_views * self.classifier_ops_per_view

    @property
    def ops_per_picture(self) -> int:
        saved = self.classifier_ops_per_view - self.classifier_ops_per_half_size_view
        return self.num_updates * self.ops_per_update - self.num_half_size_updates * self.num_views * saved

    @property
    def bytes_per_target(self) -> int:
        """What a target adds to a device's memory while it is optimised: its state and the maps kept for gradients."""
        return self.state_bytes + self.generator_map_bytes + self.num_views * self.classifier_map_bytes_per_view


def count_cost(config: RenderConfig, mode: Mode, network: Network, layer: str | None = None) -> Cost:
    """The cost of one target in a layer of a network; in the layer of its classes if none is given.

    Raises: DgnError if the network does not run in the precision, or passes no gradient to its pictures.
    """
    recipe, architecture = config.recipe(mode), architecture_of(config, mode)
    whole, half = _classifier_costs(network, layer, DTYPES[config.precision])
    if not (half and recipe.num_half):
        recipe = recipe.at_whole_size()
    return Cost(
        width=recipe.width,
        num_trainable=architecture.num_trainable,
        num_updates=recipe.num_updates,
        num_half_size_updates=recipe.num_half,
        num_views=max(1, recipe.num_views),
        generator_ops_per_update=_generator_ops(config, mode),
        classifier_ops_per_view=whole.ops,
        classifier_ops_per_half_size_view=(half or whole).ops,
        state_bytes=4 * COPIES[recipe.optimiser] * architecture.num_trainable,  # 84 MB untrained at width 1
        generator_map_bytes=_generator_map_bytes(config, mode),
        classifier_map_bytes_per_view=whole.map_bytes,
    )


def _generator_map_bytes(config: RenderConfig, mode: Mode) -> int:
    """The generator's maps that one target's backward pass needs: each convolution's output three times (convolution,
    ReLU, normalisation). Windows are linear and keep none."""
    maps = architecture_of(config, mode).convs_with_px()
    return DTYPES[config.precision].itemsize * sum(3 * conv.out_channels * conv.out_px(px) ** 2 for conv, px in maps)


def _generator_ops(config: RenderConfig, mode: Mode) -> int:
    architecture = architecture_of(config, mode)
    with torch.device("meta"):
        weights = {
            name: torch.empty(shape, requires_grad=name in architecture.trainable)
            for name, shape in architecture.shapes().items()
        }
        features = weights["alpha"] * torch.ones(architecture.num_features)
        with FlopCounterMode(display=False) as counter:
            generate(architecture, weights, features).sum().backward()
    return int(counter.get_total_flops())


class _ViewCost(NamedTuple):
    """What one view costs in the classifier."""

    ops: int  # forward and backward
    map_bytes: int  # of the maps that the backward pass needs


def _classifier_costs(network: Network, layer: str | None, dtype: torch.dtype) -> tuple[_ViewCost, _ViewCost | None]:
    """The costs of a view of the network's own size and of one of half of it, if classes are sought in such views."""
    layer = layer or network.layers.classes()
    classifier = without_weights(network, dtype)
    with torch.device(classifier.engine.device):
        half_px = classifier.half_px([layer])
        whole = _view_cost(classifier, layer, network.size)
        return whole, _view_cost(classifier, layer, half_px) if half_px else None


def _view_cost(classifier: FrozenNetwork, layer: str, px: int) -> _ViewCost:
    weights = [*classifier.model.state_dict().values(), *classifier.cut_behind((layer,)).state_dict().values()]
    own = {tensor.untyped_storage()._cdata for tensor in weights}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    picture = torch.zeros(1, 3, px, px, requires_grad=True)
    with classifier.running(1), FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            response = classifier.responses(picture, [layer])[layer]
        classifier.expect_gradients({layer: response})
        response.sum().backward()
    return _ViewCost(int(counter.get_total_flops()), sum(kept.values()))
