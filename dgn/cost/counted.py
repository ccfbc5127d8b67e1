"""What a configuration costs, counted without running it: variables, operations, bytes."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dgn.method.architecture import Weights
from dgn.method.batch import architecture_of
from dgn.method.generator import generate
from dgn.method.precision import DTYPES
from dgn.method.recipes import RenderConfig
from dgn.networks.drawable import without_weights
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.network import Network
from dgn.targets import Mode

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

# Of a worker on a CPU, fitted to VGG-16, MobileNetV2 and EfficientNet-Lite0. With other networks and presets too, the
# sum is 0.90 to 1.13 of what was measured (docs/performance.md, "A worker's memory").
IMPORTS_BYTES = 470e6  # imports, a loaded network without its weights, and what saving leaves behind
WORKSPACES = 4.35  # what a convolution takes while it runs, in sizes of its input and output
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
    convolution_bytes: int  # input and output of the largest convolution but for 1x1 and depthwise ones
    own_weight_bytes: int  # of weights that a worker does not share with others

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

    @property
    def cpu_worker_bytes(self) -> float:
        """A worker's private memory on a CPU at its peak, which takes one target of a batch after another.

        Weights that a machine's workers share are not in it.
        """
        return IMPORTS_BYTES + self.own_weight_bytes + self.bytes_per_target + WORKSPACES * self.convolution_bytes


def count_cost(
    config: RenderConfig,
    mode: Mode,
    network: Network,
    layer: str | None = None,
    decoder: Weights | nn.Module | None = None,
) -> Cost:
    """The cost of one target in a layer of a network; in the layer of its classes if none is given.

    Args:
        decoder: as in `batch.start_batch`; a generator of the user's is run to count it.

    Raises: DgnError if the network does not run in the precision, or passes no gradient to its pictures.
    """
    recipe, architecture = config.recipe(mode), architecture_of(config, mode)
    num_views = max(1, recipe.num_views)
    generator = _generator_cost(config, mode, decoder)
    whole, half = _classifier_costs(network, layer, DTYPES[config.precision])
    if not (half and recipe.num_half):
        recipe = recipe.at_whole_size()
    return Cost(
        width=recipe.width,
        num_trainable=architecture.num_trainable,
        num_updates=recipe.num_updates,
        num_half_size_updates=recipe.num_half,
        num_views=num_views,
        generator_ops_per_update=generator.ops,
        classifier_ops_per_view=whole.ops,
        classifier_ops_per_half_size_view=(half or whole).ops,
        state_bytes=4 * COPIES[recipe.optimiser] * architecture.num_trainable,  # 84 MB untrained at width 1
        generator_map_bytes=generator.map_bytes,
        classifier_map_bytes_per_view=whole.map_bytes,
        convolution_bytes=max(generator.convolution_bytes, num_views * whole.convolution_bytes),
        own_weight_bytes=generator.own_weight_bytes + whole.own_weight_bytes,
    )


class _RunCost(NamedTuple):
    """What running the generator or the classifier on one picture costs."""

    ops: int  # forward and backward
    map_bytes: int  # of the maps that the backward pass needs
    convolution_bytes: int
    own_weight_bytes: int = 0


def _generator_cost(config: RenderConfig, mode: Mode, decoder: Weights | nn.Module | None) -> _RunCost:
    architecture = architecture_of(config, mode)
    if mode == "pretrained" and isinstance(decoder, nn.Module):
        weights = [*decoder.parameters(), *decoder.buffers()]
        like = weights[0] if weights else torch.zeros(1)
        code = torch.zeros(1, *architecture.code_shape, device=like.device, requires_grad=True)
        cost = _run_cost(lambda: decoder(code), {tensor.untyped_storage()._cdata for tensor in weights})
        return cost._replace(own_weight_bytes=2 * sum(weight.nbytes for weight in weights))  # as built, and in use
    with torch.device("meta"):
        own = {
            name: torch.empty(shape, requires_grad=name in architecture.trainable)
            for name, shape in architecture.shapes().items()
        }
        features = own["alpha"] * torch.ones(architecture.num_features)
        with operation_counter() as counter:
            generate(architecture, own, features).sum().backward()
    itemsize = DTYPES[config.precision].itemsize
    convs = list(architecture.convs_with_px())
    # Each convolution's output three times (convolution, ReLU, normalisation). Windows are linear and keep none.
    num_kept = sum(3 * conv.out_channels * conv.out_px(px) ** 2 for conv, px in convs)
    largest = max(((conv.in_channels + conv.out_channels) * conv.out_px(px) ** 2 for conv, px in convs), default=0)
    return _RunCost(int(counter.get_total_flops()), itemsize * num_kept, itemsize * largest)


def _classifier_costs(network: Network, layer: str | None, dtype: torch.dtype) -> tuple[_RunCost, _RunCost | None]:
    """The costs of a view of the network's own size and of one of half of it, if classes are sought in such views."""
    layer = layer or network.layers.classes()
    classifier = without_weights(network, dtype)
    with torch.device(classifier.engine.device):
        half_px = classifier.half_px([layer])
        whole = _view_cost(classifier, layer, network.size)
        return whole, _view_cost(classifier, layer, half_px) if half_px else None


def _view_cost(classifier: FrozenNetwork, layer: str, px: int) -> _RunCost:
    loaded, cut = (_storages(module) for module in (classifier.model, classifier.cut_behind((layer,))))
    changed = sum(num_bytes for storage, num_bytes in cut.items() if storage not in loaded)  # by folded batch norms
    # A user's code may write into its weights, so it gets a copy in float32, and rounds that.
    num_copies = (
        0 if getattr(classifier.network.model, "is_plain", False) else 1 if classifier.dtype.itemsize == 4 else 3
    )
    own = changed + num_copies * sum(loaded.values())
    picture = torch.zeros(1, 3, px, px, requires_grad=True)

    def see() -> Tensor:
        response = classifier.responses(picture, [layer])[layer]
        classifier.expect_gradients({layer: response})
        return response

    with classifier.running(1):
        return _run_cost(see, {**loaded, **cut})._replace(own_weight_bytes=own)


def _storages(module: nn.Module) -> dict[int, int]:
    """The bytes of each storage of a module's weights."""
    storages = [tensor.untyped_storage() for tensor in module.state_dict().values()]
    return {storage._cdata: storage.nbytes() for storage in storages}


def _run_cost(run: Callable[[], Tensor], own: Container[int]) -> _RunCost:
    """What `run` costs, with the gradient of its answer. Storages in `own`, of weights, are there anyway."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with operation_counter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _LargestConvolution() as largest:
            response = run()
        response.sum().backward()
    return _RunCost(int(counter.get_total_flops()), sum(kept.values()), largest.num_bytes)


class _LargestConvolution(TorchDispatchMode):
    """Notes the bytes of the largest convolution's input and output. 1x1 convolutions are plain products, and depthwise
    ones need no copies."""

    num_bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = function(*args, **kwargs or {})
        if function is torch.ops.aten.convolution.default:
            maps, weight, groups = args[0], args[1], args[8]
            if groups < maps.shape[1] and weight[0, 0].numel() > 1:
                self.num_bytes = max(self.num_bytes, maps.nbytes + output.nbytes)
        return output


def operation_counter() -> FlopCounterMode:
    """Counts operations, also those of the CPU engine's own convolutions. Its import brings Triton along."""
    from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

    def convolution(x_shape: Any, weight_shape: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return conv_flop_count(x_shape, weight_shape, out_shape)

    own = {torch.ops.mkldnn._convolution_pointwise: convolution} if torch.backends.mkldnn.is_available() else {}
    return FlopCounterMode(display=False, custom_mapping=own)
