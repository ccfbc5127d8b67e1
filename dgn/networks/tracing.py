"""A network's layers and units, found by running it once, on PyTorch's meta device if it allows that: no weights, no
arithmetic."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dgn.errors import DgnError
from dgn.networks.channels import ChannelTrails, Trail
from dgn.networks.layers import OUTPUT, Layers
from dgn.networks.outputs import class_values, named_outputs
from dgn.text import in_one_line, plural

if TYPE_CHECKING:
    from dgn.networks.network import Network

# Pictures that are shown, without and with values. A tensor that happens to have 11 rows of another kind is rare.
NUM_PICTURES, NUM_REAL = 11, 3
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
VGG_CLASSES = {"torchvision.models.vgg.VGG", "dgn.networks.embedded.VGG"}  # by name, to import neither
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def trace(network: Network) -> Layers:
    """The layers of a network. Raises: DgnError if it does not run, or not as it was described."""
    model = network.bare().eval()
    num_channels = _picture_channels(model, network)
    seen, is_symbolic = _run(model, network, num_channels)
    units = {name: count for name, (_, count) in seen.layers.items()}
    axes = {name: axis for name, (axis, _) in seen.layers.items()}
    aliases = _vgg_names(model)

    def usual(layer: str) -> str:
        name, at, call = layer.partition("@")
        return aliases.get(name, name) + at + call

    class_layer, why_no_classes, normaliser = _class_layer(network, seen, units, {usual(name): name for name in units})
    if class_layer == OUTPUT:
        units[OUTPUT] = seen.outputs[seen.class_output].shape[1]
    num_classes = units[class_layer] if class_layer else 0
    if normaliser and network.output not in (None, "none", normaliser):
        raise DgnError(
            f"{network.name} ends in {normaliser}, but output is '{network.output}': expected {normaliser}, "
            "none, or no output setting at all"
        )
    output = network.output or normaliser or ("sigmoid" if num_classes == 1 else "softmax")
    filters = [name for name in seen.convolutions if name != class_layer]
    found = Layers(
        network=network.name,
        units={usual(name): count for name, count in units.items()},
        class_layer=class_layer and usual(class_layer),
        filter_layers=tuple(dict.fromkeys(usual(seen.norms.get(name, name)) for name in filters)),
        labels=(),
        aliases=aliases,
        norms={usual(conv): usual(norm) for conv, norm in seen.norms.items()},
        axes={usual(name): axis for name, axis in axes.items()},
        class_output=seen.class_output,
        output=output,
        is_probability=normaliser == output,
        is_symbolic=is_symbolic,
        num_channels=num_channels,
        why_no_classes=why_no_classes,
        unused=frozenset(seen.unused),
    )
    return found.labelled(tuple(network.labels)) if class_layer else found


@dataclass
class _Seen:
    """What one run of a network showed. Layers have their modules' dotted names, with `@CALL` if there are several."""

    layers: dict[str, tuple[int, int]] = field(default_factory=dict)  # axis of the units, and their number; in order
    sources: dict[str, str] = field(default_factory=dict)  # layer -> the one that its units come from, itself if none
    with_maps: set[str] = field(default_factory=set)  # layers with several values per unit
    convolutions: list[str] = field(default_factory=list)
    norms: dict[str, str] = field(default_factory=dict)  # convolution -> the norm that reads it
    outputs: dict[str, Tensor] = field(default_factory=dict)  # by name, those with a row per picture
    trails: dict[str, Trail | None] = field(default_factory=dict)  # of the outputs
    maps: dict[str, torch.Size] = field(default_factory=dict)  # outputs whose units are not in axis 1
    class_output: str = ""
    unused: set[str] = field(default_factory=set)  # names of weights that no function read


def _run(model: nn.Module, network: Network, num_channels: int) -> tuple[_Seen, bool]:
    """Runs the network on the meta device or, if its code looks at values, on the CPU. Returns which, too."""
    shape = (num_channels, network.size, network.size)
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            return _watched(model.to("meta", torch.float32), torch.empty(NUM_PICTURES, *shape), network.name), True
    except DgnError:
        raise
    except Exception:  # whatever a network's own code raises for tensors without values
        with torch.random.fork_rng(devices=[]):
            model = network.built().eval().to("cpu", torch.float32)
    try:
        return _watched(model, torch.zeros(NUM_REAL, *shape), network.name), False
    except DgnError:
        raise
    except Exception as error:
        raise DgnError(
            f"{network.name} does not run on {num_channels} x {network.size} x {network.size} pictures "
            f"({in_one_line(error)}); if it wants another size, give it with --input-size"
        ) from error


@torch.no_grad()
def _watched(model: nn.Module, images: Tensor, network_name: str) -> _Seen:
    """Raises: whatever the network raises; DgnError if it cannot look at one picture alone."""
    names = {module: name for name, module in model.named_modules() if name}
    calls = Counter[nn.Module]()
    outputs: list[tuple[nn.Module, Tensor]] = []  # in order of completion
    # Modules that read a tensor, by its id and version: an in-place function gives it another.
    read_by: dict[tuple[int, int], list[nn.Module]] = {}
    versions: list[int] = []  # of the outputs when they were made
    own_trails: list[Trail | None] = []  # likewise: in-place functions change them
    inputs_alive: list[Tensor] = []  # or another tensor could get the id of one
    trails = ChannelTrails()

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for tensor in inputs:
            if isinstance(tensor, Tensor):
                inputs_alive.append(tensor)
                read_by.setdefault((id(tensor), _version(tensor)), []).append(module)

    def note(module: nn.Module, _: object, output: object) -> None:
        if not isinstance(output, Tensor):
            return
        calls[module] += 1
        outputs.append((module, output))
        versions.append(_version(output))
        own = trails.of(output)
        is_leaf = all(name == "parametrizations" for name, _ in module.named_children())  # weight norm's, for instance
        if own is not None and is_leaf and any(True for _ in module.parameters()):
            trails.start(output, Trail(own.axis, f"{names[module]}@{calls[module]}"))
        own_trails.append(None if trails.is_constant(output) else trails.of(output))

    handles = [module.register_forward_hook(note) for module in names]
    handles += [module.register_forward_pre_hook(enter) for module in names]
    try:
        with trails:
            result = model(images)
    finally:
        for handle in handles:
            handle.remove()
    try:
        model(images[:1])
    except Exception as error:  # whatever a network's own code raises
        raise DgnError(
            f"{network_name} runs on several pictures and not on one ({in_one_line(error)}): expected batch "
            "norms with running statistics, or none behind the pooling"
        ) from error
    weights = model.state_dict(keep_vars=True)
    seen = _Seen(unused={name for name, tensor in weights.items() if not trails.has_read(tensor)})
    counted = Counter[nn.Module]()
    num_calls = {names[module]: count for module, count in calls.items()}
    for (module, output), version, own in zip(outputs, versions, own_trails, strict=True):
        counted[module] += 1
        at = f"@{counted[module]}" if _is_numbered(names[module], calls[module]) else ""
        name = names[module] + at
        trail = trails.of(output)
        if own is None or trail is None or not 2 <= output.ndim <= 4 or len(output) != len(images) or trail.axis == 0:
            continue
        seen.layers[name] = (trail.axis, output.shape[trail.axis])
        seen.sources[name] = _once(own, num_calls).layer or name
        if output.numel() > len(images) * output.shape[trail.axis]:
            seen.with_maps.add(name)
        if isinstance(module, CONVOLUTIONS):
            seen.convolutions.append(name)
            readers = read_by.get((id(output), version), [])
            norm = next((reader for reader in readers if isinstance(reader, NORMS)), None)
            if norm is not None and calls[norm] == calls[module]:
                seen.norms[name] = _before_activation(norm, names) + at
    seen.norms = {conv: norm for conv, norm in seen.norms.items() if norm in seen.layers}
    for name, tensor in named_outputs(result):
        if len(tensor) == len(images):
            trail = trails.of(tensor)
            if tensor.ndim > 2 and trail is not None and trail.axis != 1:
                seen.maps[name] = tensor.shape
                continue
            seen.outputs[name] = class_values(tensor, "")
            seen.trails[name] = trail and _once(trail, num_calls)
    return seen


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # inference mode counts none


def _once(trail: Trail, calls: Mapping[str, int]) -> Trail:
    """The trail with its layer's name as `_Seen` has it."""
    if trail.layer is None:
        return trail
    name = trail.layer.partition("@")[0]
    return trail if _is_numbered(name, calls[name]) else replace(trail, layer=name)


def _is_numbered(name: str, num_calls: int) -> bool:
    """Whether a module's layers have the numbers of its calls. `output` alone is what the network returns."""
    return num_calls > 1 or name == OUTPUT


def _before_activation(norm: nn.Module, names: Mapping[nn.Module, str]) -> str:
    """The name of the norm or, for timm's norms that end in their activation, of what runs before that."""
    drop = getattr(norm, "drop", None)
    return names[drop] if isinstance(drop, nn.Identity) and drop in names else names[norm]


def _class_layer(
    network: Network, seen: _Seen, units: Mapping[str, int], modules: Mapping[str, str]
) -> tuple[str | None, str, str | None]:
    """The layer of classes, why there is none, and `softmax` or `sigmoid` if the network ends in it.

    Args:
        modules: a layer's name in `units` by its usual name.
    """
    wanted = network.class_layer
    if wanted is not None and wanted != OUTPUT:
        layer = modules.get(wanted, wanted)
        if layer not in units:
            raise DgnError(
                f"unknown class layer '{wanted}': {network.name} has no such layer (dgn info --layers lists them all)"
            )
        seen.class_output = _output_of(layer, wanted, network.name, seen, units[layer])
        trail = seen.trails[seen.class_output]
        return layer, "", trail.probability if trail else None
    candidates = [name for name in seen.outputs if name.rpartition(".")[2] in ("logits", "")] or list(seen.outputs)
    if not candidates:
        return None, _why_no_rows(seen), None
    if len(candidates) > 1:
        found = ", ".join(
            f"'{name}' ({seen.outputs[name].shape[1]} units"
            + (f" of {trail.layer})" if (trail := seen.trails[name]) and trail.layer else ")")
            for name in candidates[:6]
        )
        return None, f"it has several outputs, {found}: name the layer of classes with --class-layer", None
    [seen.class_output] = candidates
    trail, num_units = seen.trails[seen.class_output], seen.outputs[seen.class_output].shape[1]
    if trail is not None and trail.layer is not None and units.get(trail.layer) == num_units and wanted is None:
        # A map counts after its ReLU, so it stands for the output only if the network has that ReLU too.
        is_map = trail.layer in seen.with_maps and not trail.is_rectified
        return OUTPUT if is_map else trail.layer, "", trail.probability
    return OUTPUT, "", trail.probability if trail else None


def _output_of(layer: str, wanted: str, network: str, seen: _Seen, num_units: int) -> str:
    """The output that has a layer's units or, where no output can be followed to it, the only one that may.

    Args:
        wanted: the layer's name in messages.

    Raises: DgnError if there is none, or no telling which.
    """
    layers_by_output = {name: trail and trail.layer for name, trail in seen.trails.items()}
    its_own = [name for name, source in layers_by_output.items() if source == seen.sources[layer]]
    if its_own:
        return its_own[0]
    as_many = [name for name, values in seen.outputs.items() if values.shape[1] == num_units]
    unknown = [name for name in as_many if layers_by_output[name] is None]
    if len(unknown) == 1:
        return unknown[0]
    problem = f"class layer '{wanted}' has {plural(num_units, 'unit')}"
    if unknown:
        listed = " and ".join(f"'{name}'" for name in unknown)
        raise DgnError(
            f"{problem}, and so do several outputs of {network}: {listed}. It is unclear which one the layer computes: "
            "let the network return that output alone"
        )
    if as_many:
        listed = " and ".join(dict.fromkeys(str(layers_by_output[name]) for name in as_many))
        raise DgnError(f"{problem}, but the output of {network} has units of {listed}: expected one of these layers")
    numbers = " and ".join(f"{values.shape[1]:,}" for values in seen.outputs.values())
    but = f"the output of {network} has {numbers} values per picture" if numbers else _why_no_rows(seen)
    raise DgnError(f"{problem}, but {but}: expected a layer of as many")


def _why_no_rows(seen: _Seen) -> str:
    for shape in seen.maps.values():
        return f"its output is a map with channels last, (N, {', '.join(map(str, shape[1:]))})"
    return "its output has no tensor with a row per picture"


def _picture_channels(model: nn.Module, network: Network) -> int:
    """How many channels the network's pictures have. Raises: DgnError for other numbers than 1 and 3."""
    given = max(len(network.means), len(network.stds))
    num_channels = _read_channels(model, network.size) or given
    if num_channels not in (1, 3):
        raise DgnError(f"{network.name} reads pictures of {num_channels} channels: expected 3 (colour) or 1 (grey)")
    if given == 3 != num_channels:
        raise DgnError(f"{network.name} reads grey pictures, of 1 channel: expected one mean and one std, got three")
    return num_channels


@torch.no_grad()
def _read_channels(model: nn.Module, size: int) -> int | None:
    """How many channels the network's pictures have, by the first convolution to run; None if that cannot be said.

    What lies before it may put several pixels into channels. A network without convolutions says it by running.
    """
    convolutions = [module for module in model.modules() if isinstance(module, CONVOLUTIONS)]

    def find(module: Any, inputs: tuple[Tensor, ...]) -> None:
        raise _Found(module.in_channels, inputs[0].shape[1])

    handles = [module.register_forward_pre_hook(find) for module in convolutions]
    try:
        for num_channels in (3, 1):
            try:
                with torch.device("meta"), warnings.catch_warnings(action="ignore"):
                    model.to("meta", torch.float32)(torch.empty(NUM_PICTURES, num_channels, size, size))
            except _Found as found:
                wanted, came = found.args
                return num_channels * wanted // came if num_channels * wanted % came == 0 else wanted
            except Exception:  # whatever a network's own code raises
                continue
            return num_channels
    finally:
        for handle in handles:
            handle.remove()
    return convolutions[0].in_channels if convolutions else None


class _Found(Exception):
    """Ends a network's run at its first convolution: the channels that this reads, and those that came."""


def _vgg_names(model: Any) -> dict[str, str]:
    """Dotted name -> conv{block}_{i} or fc{i} for torchvision's VGG family and embedded ones; empty for others."""
    if VGG_CLASSES.isdisjoint(f"{one.__module__}.{one.__qualname__}" for one in type(model).__mro__):
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
