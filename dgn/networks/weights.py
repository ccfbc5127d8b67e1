"""Where a network's weights come from, and the checks that they are whole and fit."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgn.errors import WeightsMismatch, WeightsMissing
from dgn.method.sharing import as_arrays, as_tensors
from dgn.networks import embedded
from dgn.networks.checkpoints import check_finite, read_checkpoint
from dgn.networks.network import Network
from dgn.networks.registry import network_named
from dgn.text import in_one_line, plural

COUNTER = "num_batches_tracked"  # of batch norms; nothing reads it


@dataclass(frozen=True)
class NetworkWeights:
    """A network with its weights on the CPU, and the SHA-256 of the file that they came from."""

    network: Network
    state: dict[str, Tensor]
    sha256: str
    source: str  # for messages: the file's name, or where it was found
    remarks: tuple[str, ...] = ()  # for people: what was taken off, left out or missing
    rounded: dict[str, Tensor] = field(default_factory=dict)  # `state` in a run's precision, see `for_workers`

    def for_workers(self, dtype: torch.dtype) -> NetworkWeights:
        """The same weights in the memory order and precision that a CPU reads fastest, so that no worker makes copies.

        Code of one's own, which may fill its weights when it first runs, rounds them itself.
        """
        state = {
            name: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
            for name, tensor in self.state.items()
        }
        is_plain = getattr(self.network.model, "is_plain", False)
        others = {name: one for name, one in state.items() if is_plain and one.is_floating_point()}
        return replace(
            self, state=state, rounded={name: one.to(dtype) for name, one in others.items() if one.dtype != dtype}
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "state": as_arrays(self.state), "rounded": as_arrays(self.rounded)}

    def __setstate__(self, known: dict[str, Any]) -> None:
        """Workers of one machine share the weights. Only code of one's own may write into them, so it gets a copy."""
        may_write = not getattr(known["network"].model, "is_plain", False)
        both = {name: as_tensors(known[name], may_write) for name in ("state", "rounded")}
        self.__dict__.update(known, **both)


def load_weights(network: Network | str, path: Path | None = None) -> NetworkWeights:
    """A network's weights: from `path` if given, otherwise embedded, downloaded, or those that it was built with.

    The network that comes back has as many classes as the file.

    Args:
        path: a file of any common trainer, see `checkpoints.read_checkpoint`. None of its code runs.

    Raises: WeightsMissing, WeightsMismatch.
    """
    if isinstance(network, str):
        network = network_named(network)
    builder: Any = network.model
    if path is None and hasattr(builder, "weights_path"):
        found = builder.weights_path()
        return replace(_from_file(network, found), source=f"embedded:{found.name}")
    if path is not None:
        path = path.expanduser()
        if not (path.is_file() or path.is_dir()):  # a folder is named for what it is
            raise WeightsMissing(f"no weights file at {path}: expected a .safetensors or .pth file for {network.name}")
        return _from_file(network, path)
    if not hasattr(builder, "download"):
        return _with_own_weights(network)
    try:
        state = builder.download()
    except WeightsMissing as error:
        raise WeightsMissing(
            f"no weights for {network.name}: {error}; without internet give a file (--weights FILE, or weights=); "
            f"efficientnet_lite0, {' and '.join(embedded.NETWORKS)} come with dgn"
        ) from error
    sha256 = state_sha256(state)
    if hasattr(builder, "converted") and not network.bare().state_dict().keys() <= state.keys():
        state = builder.converted(state)
    return _fitted(network, state, sha256, f"published weights of {network.name}")


def _from_file(network: Network, path: Path) -> NetworkWeights:
    expected = network.bare().state_dict()
    sha256 = file_sha256(path) if path.is_file() else ""
    checkpoint = read_checkpoint(path, expected.keys(), network.name, getattr(network.model, "converted", None))
    if file_sha256(path) != sha256:
        raise WeightsMismatch(f"{path} changed while it was read: wait until its writer is done, or give a copy")
    network = _with_classes_of(network, expected, checkpoint.state)
    weights = _fitted(network, checkpoint.state, sha256, path.name)
    return replace(weights, remarks=(*checkpoint.remarks, *weights.remarks))


def _with_own_weights(network: Network) -> NetworkWeights:
    state = plain_state(network.built())
    for name, tensor in state.items():
        check_finite(tensor, f"{network.name}: the tensor '{name}'")
    return _fitted(network, state, state_sha256(state), f"the weights that {network.name} was built with")


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's weights on the CPU, those with fractions in float32."""
    return {name: plain(tensor) for name, tensor in module.state_dict().items()}


def plain(tensor: Tensor) -> Tensor:
    """On the CPU, in float32 if it has fractions."""
    return tensor.detach().cpu().float() if tensor.is_floating_point() else tensor.detach().cpu()


def _with_classes_of(network: Network, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Network:
    """The network with as many classes as the file: where shapes differ, they do so by the number of classes alone."""
    rebuild = getattr(network.model, "with_classes", None)
    if rebuild is None:
        return network
    pairs = [(tensor.shape, state[name].shape) for name, tensor in expected.items() if name in state]
    differing = {(ours, theirs) for ours, theirs in pairs if ours != theirs}
    numbers = {(ours[:1], theirs[:1]) for ours, theirs in differing}
    if len(numbers) != 1 or any(ours[1:] != theirs[1:] or not ours for ours, theirs in differing):
        return network
    [((before,), (after,))] = numbers
    if before != network.layers.num_classes:
        return network
    return replace(network, model=rebuild(after), labels=())


def filled(network: Network, state: Mapping[str, Tensor], versions: Any = None) -> nn.Module:
    """The network's module with these weights, which it shares; what they lack keeps its shape, without memory.

    Args:
        versions: of each module when the file was written; by default today's, which some modules ask for.

    Raises: RuntimeError for weights that do not fit.
    """
    model = network.bare()
    versioned = OrderedDict(state)
    versioned._metadata = versions or model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(versioned, strict=False, assign=True)
    return model


def _fitted(network: Network, state: dict[str, Tensor], sha256: str, source: str) -> NetworkWeights:
    """The weights, checked name by name and shape by shape.

    What no asked-for layer needs may lack or be over: heads that run in training only, and the classes.

    Raises: WeightsMismatch.
    """
    expected = network.bare().state_dict()
    unused = {name for name in expected if name in network.layers.unused or name.endswith(COUNTER)}
    versions = getattr(state, "_metadata", None)
    state = {
        name: tensor for name, tensor in state.items() if name not in unused or tensor.shape == expected[name].shape
    }
    wrong = {
        name: f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    }
    missing = {name: f"{name} is missing" for name in expected if name not in state and name not in unused}
    own_parts = {_part(name) for name in expected}
    over = [name for name in state if name not in expected]
    strange = {name: f"{name} is not a weight of {network.name}" for name in over if _part(name) in own_parts}
    module = network.layers.module_of(network.layers.class_layer)[0] if network.layers.class_layer else ""
    head = _part(module) if len(own_parts) > 1 else ""
    of_classes = {name for name in expected if name.startswith(f"{module}.")}
    is_lost = bool(of_classes) and of_classes.isdisjoint(state)
    lost_head = bool(head) and is_lost and all(_part(name) == head for name in missing)
    problems = ({} if lost_head else missing) | strange | wrong
    if problems:
        is_head = bool(head) and all(_part(name) == head for name in problems)
        raise _mismatch(network, source, list(problems.values()), head if is_head else "")
    remarks = (
        [f"left out {plural(len(over), 'tensor')} of {', '.join(sorted({_part(n) for n in over}))}"] if over else []
    )
    if lost_head:
        network = network.without(head, f"{source} has no weights for {head}")
        remarks.append(f"no weights for {head}, so classes cannot be drawn")
    try:
        model = filled(network, {name: tensor for name, tensor in state.items() if name in expected}, versions)
    except RuntimeError as error:
        raise _mismatch(network, source, [in_one_line(error)], "") from error
    whole = {name: torch.zeros_like(t, device="cpu") if t.is_meta else t for name, t in model.state_dict().items()}
    return NetworkWeights(network, whole, sha256, source, tuple(remarks))


def _mismatch(network: Network, source: str, problems: list[str], head: str) -> WeightsMismatch:
    """`head`: the only one of the network's children that has problems, if that is the one with the classes."""
    more = f" and {plural(len(problems) - 1, 'more difference')}" if len(problems) > 1 else ""
    if head:
        return WeightsMismatch(
            f"weights of another head: {source} fits {network.name} but for {head} ({problems[0]}{more}); name a "
            f"function that builds it with the file's {head} (--discriminator FILE.py:FUNCTION)"
        )
    return WeightsMismatch(
        f"weights of another architecture: {source} does not fit {network.name} ({problems[0]}{more}); "
        f"give weights of {network.name}"
    )


def _part(name: str) -> str:
    return name.partition(".")[0]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights that come from no file, as 64 hex digits: of their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
