"""What a configuration costs, counted without running it: variables, operations, bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from dgn import discriminator as discriminators
from dgn.generator import PICTURE_PX, generate
from dgn.recipes import RenderConfig
from dgn.render import DTYPES, architecture_of
from dgn.targets import Mode

COPIES = {"adamax": 4, "sgd": 3}  # weights, gradient, and the optimiser's moments, float32 each


@dataclass(frozen=True)
class Cost:
    """Of one target in one mode. Operations count a multiply-add as two, forward and backward, matrix products and
    convolutions only, one view per update unless `num_views` says more."""

    width: float
    num_trainable: int
    num_updates: int
    num_views: int
    generator_ops_per_update: int
    discriminator_ops_per_view: int
    state_bytes: int
    generator_map_bytes: int
    discriminator_map_bytes_per_view: int

    @property
    def ops_per_update(self) -> int:
        return self.generator_ops_per_update + self.num_views * self.discriminator_ops_per_view

    @property
    def bytes_per_target(self) -> int:
        """What a target adds to a device's memory while it is optimised: its state and the maps kept for gradients."""
        return self.state_bytes + self.generator_map_bytes + self.num_views * self.discriminator_map_bytes_per_view


def cost(config: RenderConfig, mode: Mode, network: str, layer: str | None = None) -> Cost:
    """Counts one target's cost against a layer of a network (its classes' where none is given)."""
    recipe, architecture = config.recipe(mode), architecture_of(config, mode)
    discriminator_ops, discriminator_map_bytes = _discriminator_cost(network, layer, DTYPES[config.precision])
    return Cost(
        width=recipe.width,
        num_trainable=architecture.num_trainable,
        num_updates=recipe.num_updates,
        num_views=max(1, recipe.num_views),
        generator_ops_per_update=_generator_ops(config, mode),
        discriminator_ops_per_view=discriminator_ops,
        state_bytes=4 * COPIES[recipe.optimiser] * architecture.num_trainable,  # 84 MB untrained at width 1
        generator_map_bytes=_generator_map_bytes(config, mode),
        discriminator_map_bytes_per_view=discriminator_map_bytes,
    )


def _generator_map_bytes(config: RenderConfig, mode: Mode) -> int:
    """G's maps that one target's backward pass needs: each convolution's output three times (conv, ReLU, norm)."""
    architecture, total, px = architecture_of(config, mode), 0, 5
    for conv in architecture.convs:
        px = 2 * px - conv.kernel_px + 1 if conv.is_after_upsample else px
        total += 3 * conv.out_channels * px * px
    return total * DTYPES[config.precision].itemsize


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


def _discriminator_cost(network: str, layer: str | None, dtype: torch.dtype) -> tuple[int, int]:
    """Of one view: operations forward and backward, and bytes of the maps that the backward pass needs."""
    layout = discriminators.layout(network)
    layer = layer or layout.class_layer
    with torch.device("meta"):
        state = discriminators.bare_network(network).to("meta").state_dict()
        frozen = discriminators.FrozenWeights(network, state, "", "meta")
        model = discriminators.Discriminator(frozen, "meta", dtype)
        weights = [*model.model.state_dict().values(), *model._as_deep_as((layer,)).state_dict().values()]
        own = {tensor.untyped_storage()._cdata for tensor in weights}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        picture = torch.empty(1, 3, PICTURE_PX, PICTURE_PX, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                response = model.responses(picture, [layer])[layer]
            response.sum().backward()
    return int(counter.get_total_flops()), sum(kept.values())
