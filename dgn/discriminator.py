"""D, the frozen classifier: which layers it has, where its weights come from, and its responses to pictures.

Pictures enter as RGB in [0, 1], 224 x 224; the network's own normalisation happens here and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.ops.misc import Conv2dNormActivation

from dgn import embedded, frozen
from dgn.errors import DgnError, WeightsMismatch, WeightsMissing
from dgn.generator import PICTURE_PX
from dgn.targets import Layout

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision's transforms for every network of its classification set
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FrozenWeights:
    """A network's weights on the CPU, with the SHA-256 of the file that they came from."""

    network: str
    state: dict[str, Tensor]
    sha256: str
    source: str


def known_networks() -> list[str]:
    """Names that `--discriminator` takes: torchvision's classification networks and the embedded ones."""
    from torchvision import models

    return [*embedded.NETWORKS, *models.list_models(module=models)]


def build_network(network: str) -> nn.Module:
    """The network without weights.

    Raises: DgnError for a name that nobody knows.
    """
    from torchvision import models

    if network in embedded.NETWORKS:
        return embedded.build()
    if network not in known_networks():
        raise DgnError(
            f"unknown discriminator '{network}': expected {', '.join(embedded.NETWORKS)}, vgg16 or another of "
            "torchvision's classification networks (dgn info --networks)"
        )
    # These two were trained on another normalisation and carry the change in their forward pass.
    own = {"init_weights": False, "transform_input": True} if network in ("inception_v3", "googlenet") else {}
    return models.get_model(network, weights=None, **own)


class _EmptyOnMeta(TorchFunctionMode):
    """Parameters take no memory. What a constructor calculates is real, unlike within `torch.device("meta")`."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def bare_network(network: str) -> nn.Module:
    """The network with its parameters' shapes, without memory for them. Raises: DgnError as `build_network` does."""
    with torch.device("cpu"), _EmptyOnMeta():  # a caller's `torch.device("meta")` would hold for all
        return build_network(network)


def class_labels(network: str) -> tuple[str, ...]:
    """Labels of the network's classes, in order of the unit."""
    if network in embedded.NETWORKS:
        return embedded.LABELS
    from torchvision import models

    return tuple(models.get_model_weights(network).DEFAULT.meta["categories"])


@lru_cache
def layout(network: str) -> Layout:
    """Layers, units and labels of a network, found by one pass without weights or arithmetic (the meta device).

    VGG's layers have their usual names (conv1_1 ... conv5_3, fc6, fc7, fc8); everything has its dotted module name.
    """
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
    units = {name: count for name, count in units.items() if calls[name] == 1}  # one used twice has no one response
    aliases = _vgg_names(model)
    labels = class_labels(network)
    class_layer = weighted[-1]
    if units[class_layer] != len(labels):
        raise DgnError(
            f"{network}: its last layer {class_layer} has {units[class_layer]} units for {len(labels)} labels"
        )
    filters = [name for name in convolutions if name != class_layer]
    return Layout(
        network=network,
        units={aliases.get(name, name): count for name, count in units.items()},
        class_layer=aliases.get(class_layer, class_layer),
        filter_layers=tuple(aliases.get(name, name) for name in filters),
        labels=labels,
        aliases=aliases,
    )


def _vgg_names(model: nn.Module) -> dict[str, str]:
    """Dotted name -> conv{block}_{i} or fc{i} for torchvision's VGG family, nothing for others."""
    from torchvision.models import VGG

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


def load_weights(network: str, path: Path | None = None) -> FrozenWeights:
    """Weights for a network: from `path` where given, else the embedded file, else torchvision's own download.

    `.safetensors`, or a `.pth` state dict read with `weights_only=True`.

    Raises: WeightsMissing, WeightsMismatch, in one line.
    """
    if path is not None:
        if not path.is_file():
            raise WeightsMissing(f"no weights file at {path}: expected a .safetensors or .pth file for {network}")
        weights = FrozenWeights(network, _read_state(path, network), file_sha256(path), str(path.name))
    elif network in embedded.NETWORKS:
        path = embedded.weights_path(network)
        weights = FrozenWeights(network, _read_state(path, network), file_sha256(path), f"embedded:{path.name}")
    else:
        weights = _torchvision_weights(network)
    return _fitted(weights)


def _torchvision_weights(network: str) -> FrozenWeights:
    from torchvision import models

    build_network(network)
    choice = models.get_model_weights(network).DEFAULT
    try:
        state = choice.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        raise WeightsMissing(
            f"no weights for {network}: torchvision's download failed ({error}); on a machine without internet "
            f"give --weights FILE (.safetensors or .pth); {' and '.join(embedded.NETWORKS)} ship with dgn"
        ) from error
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(choice.url).name
    return FrozenWeights(network, dict(state), file_sha256(cached), str(choice))


def _read_state(path: Path, network: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            state = load_safetensors(path.read_bytes())
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsMismatch(f"{path} is no whole weights file for {network}: {first_line}") from error
    except Exception as error:  # pickle's own error types differ between versions; anything here means a bad file
        raise WeightsMismatch(
            f"{path} is no weights file that can be read safely: expected .safetensors or .pth of {network} "
            f"({type(error).__name__})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsMismatch(f"{path} holds no state dict: expected a mapping of names to tensors for {network}")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _fitted(weights: FrozenWeights) -> FrozenWeights:
    """The weights, checked name by name and shape by shape; batch norms' counters, which nothing reads, may lack."""
    expected = {name: tensor.shape for name, tensor in bare_network(weights.network).state_dict().items()}
    found = {name: tensor.shape for name, tensor in weights.state.items()}
    counters = {
        name: torch.tensor(0) for name in expected if name.endswith("num_batches_tracked") and name not in found
    }
    problems = [f"lacks {name}" for name in expected if name not in found and name not in counters]
    problems += [f"has {name}, which {weights.network} lacks" for name in found if name not in expected]
    problems += [
        f"{name} is {tuple(found[name])} instead of {tuple(expected[name])}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    if problems:
        raise WeightsMismatch(
            f"weights of another architecture: {weights.source} does not fit {weights.network} "
            f"({problems[0]}{f' and {len(problems) - 1} more differences' if len(problems) > 1 else ''}); "
            f"give {weights.network}'s own"
        )
    return replace(weights, state=weights.state | counters)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Discriminator:
    """A frozen network on one device, in one precision. Only its responses leave it; it has no gradients of its own.

    Args:
        is_winograd: a CPU's large convolutions, its own and those of the G in front of it, in fewer multiplications.
    """

    def __init__(
        self,
        weights: FrozenWeights,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        is_winograd: bool = True,
    ):
        self.is_winograd = is_winograd
        self.layout = layout(weights.network)
        self.sha256 = weights.sha256
        self.device, self.dtype = torch.device(device), dtype
        model = bare_network(weights.network)
        model.load_state_dict(weights.state, assign=True)
        for module in model.modules():
            if getattr(module, "inplace", False):  # an in-place ReLU would overwrite the response before it
                module.inplace = False  # type: ignore[assignment]
            if isinstance(module, Conv2dNormActivation):  # a sequence that the tracer would leave whole
                module.__class__ = nn.Sequential
        model = model.eval().requires_grad_(False).to(self.device, dtype)
        self.model = model.to(memory_format=torch.channels_last)
        self.mean_311 = torch.tensor(IMAGENET_MEAN, device=self.device).reshape(3, 1, 1)
        self.std_311 = torch.tensor(IMAGENET_STD, device=self.device).reshape(3, 1, 1)
        self._modules = {alias: name for name, alias in self.layout.aliases.items()}
        self._truncated: dict[tuple[str, ...], nn.Module] = {}

    @property
    def network(self) -> str:
        return self.layout.network

    def responses(self, images_N3HW: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The layers' outputs, before any activation function of their own follows, in D's dtype.

        Runs only as deep as the deepest of `layers`.

        Args:
            images_N3HW: RGB, displayable range [0, 1], values beyond it allowed.
        """
        normalised = ((images_N3HW - self.mean_311) / self.std_311).to(self.dtype)
        normalised = normalised.contiguous(memory_format=torch.channels_last)
        return self._as_deep_as(tuple(layers))(normalised)

    def _as_deep_as(self, layers: tuple[str, ...]) -> nn.Module:
        """The network cut behind the last of `layers`; kept until another is asked for."""
        if layers not in self._truncated:
            from torchvision.models.feature_extraction import create_feature_extractor

            nodes = {self._modules.get(layer, layer): layer for layer in layers}
            cut = create_feature_extractor(self.model, return_nodes=nodes, suppress_diff_warning=True)
            cut = frozen.fold_norms(cut.eval())
            if self.device.type == "cpu":
                cut = frozen.fuse(cut, partial(frozen.convolution, self.is_winograd))
            elif self.device.type == "cuda" and self.dtype == torch.bfloat16:
                from dgn import fused  # Triton comes with PyTorch's builds for GPUs alone

                cut = frozen.fuse(cut, fused.convolution)
            self._truncated = {layers: cut}  # the last one only: each has folded weights and kernels of its own
        return self._truncated[layers]

    @torch.no_grad()
    def scores(self, images_N3HW: Tensor, layer: str) -> tuple[Tensor, Tensor]:
        """A second way to the same numbers, for judging pictures: the whole network with a hook on `layer`.

        Returns: the layer's response and the network's own output (N, classes), both float32.
        """
        kept: list[Tensor] = []
        module = self.model.get_submodule(self._modules.get(layer, layer))
        handle = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output.detach().clone()))
        try:
            x = images_N3HW.to(self.device).sub(self.mean_311).div(self.std_311).to(self.dtype)
            # TF32, the default on GPUs, keeps 10 bits of the mantissa: not a judge's precision.
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                output = self.model(x)
        finally:
            handle.remove()
        return kept[-1].float(), output.float()
