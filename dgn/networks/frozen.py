"""The frozen network: its responses to pictures, fast for the optimisation and plain for the scores.

Pictures enter as RGB in [0, 1], 224 x 224. The network's own normalisation happens here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops.misc import Conv2dNormActivation

from dgn.engine import engine_for
from dgn.engine.fusion import fold_norms
from dgn.method.colours import IMAGENET_MEAN, IMAGENET_STD
from dgn.method.engine import Engine
from dgn.method.precision import exact_float32
from dgn.networks.registry import bare_network
from dgn.networks.tracing import layers_of
from dgn.networks.weights import NetworkWeights


class FrozenNetwork:
    """A classifier on one device, in one precision, without gradients of its own.

    Args:
        engine: the device; by default this machine's CPU.
        dtype: of weights and responses.
    """

    def __init__(self, weights: NetworkWeights, engine: Engine | None = None, dtype: torch.dtype = torch.float32):
        self.engine, self.dtype = engine or engine_for("cpu"), dtype
        self.layers = layers_of(weights.network)
        self.sha256 = weights.sha256
        model = bare_network(weights.network)
        model.load_state_dict(weights.state, assign=True)
        for module in model.modules():
            if getattr(module, "inplace", False):  # an in-place ReLU would overwrite the response before it
                module.inplace = False  # type: ignore[assignment]
            if isinstance(module, Conv2dNormActivation):  # the tracer would treat this sequence as one layer
                module.__class__ = nn.Sequential
        model = model.eval().requires_grad_(False).to(self.engine.device, dtype)
        self.model = model.to(memory_format=torch.channels_last)
        self.mean_311 = torch.tensor(IMAGENET_MEAN, device=self.engine.device).reshape(3, 1, 1)
        self.std_311 = torch.tensor(IMAGENET_STD, device=self.engine.device).reshape(3, 1, 1)
        self._modules = {alias: name for name, alias in self.layers.aliases.items()}
        self._cut: dict[tuple[str, ...], nn.Module] = {}

    @property
    def units(self) -> Mapping[str, int]:
        """Number of units by layer, in order of depth."""
        return self.layers.units

    def responses(self, images_N3HW: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The layers' outputs in the network's dtype, before any activation function that follows them.

        Runs only as deep as the deepest of `layers`. Differentiable with respect to the pictures.

        Args:
            images_N3HW: RGB, values in [0, 1] can be displayed; others are allowed.
        """
        normalised = ((images_N3HW - self.mean_311) / self.std_311).to(self.dtype)
        normalised = normalised.contiguous(memory_format=torch.channels_last)
        return self.cut_behind(tuple(layers))(normalised)

    def cut_behind(self, layers: tuple[str, ...]) -> nn.Module:
        """The network up to the last of `layers`, as the engine runs it. Only the latest is kept, because each has its
        own folded weights."""
        if layers not in self._cut:
            nodes = {self._modules.get(layer, layer): layer for layer in layers}
            cut = create_feature_extractor(self.model, return_nodes=nodes, suppress_diff_warning=True)
            self._cut = {layers: self.engine.fuse(fold_norms(cut.eval()))}
        return self._cut[layers]

    @torch.no_grad()
    @exact_float32()
    def scores(self, images_N3HW: Tensor, layer: str) -> tuple[Tensor, Tensor]:
        """The same numbers computed another way, to score pictures with: the whole plain network, hooked at `layer`.

        Returns: the layer's response and the network's output (N, classes), both float32.
        """
        kept: list[Tensor] = []
        module = self.model.get_submodule(self._modules.get(layer, layer))
        handle = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output.detach().clone()))
        try:
            output = self.model(images_N3HW.to(self.engine.device).sub(self.mean_311).div(self.std_311).to(self.dtype))
        finally:
            handle.remove()
        return kept[-1].float(), output.float()
