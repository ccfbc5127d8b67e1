"""Where a network's weights come from, and the checks that they are whole and fit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor
from torchvision import models

from dgn.errors import WeightsMismatch, WeightsMissing
from dgn.networks import embedded
from dgn.networks.registry import bare_network, check_known


@dataclass(frozen=True)
class NetworkWeights:
    """A network's weights on the CPU, with the SHA-256 of the file that they came from."""

    network: str
    state: dict[str, Tensor]
    sha256: str
    source: str  # for messages: the file's name, or where it was found


def load_weights(network: str, path: Path | None = None) -> NetworkWeights:
    """A network's weights: from `path` if given, otherwise the embedded file or torchvision's download.

    Args:
        path: `.safetensors`, or a `.pth` state dict; the latter is read with `weights_only=True`.

    Raises: WeightsMissing, WeightsMismatch.
    """
    if path is not None:
        path = path.expanduser()
        if not path.is_file():
            raise WeightsMissing(f"no weights file at {path}: expected a .safetensors or .pth file for {network}")
        weights = NetworkWeights(network, _read_state(path, network), file_sha256(path), str(path.name))
    elif network in embedded.NETWORKS:
        path = embedded.weights_path(network)
        weights = NetworkWeights(network, _read_state(path, network), file_sha256(path), f"embedded:{path.name}")
    else:
        weights = _torchvision_weights(network)
    return _fitted(weights)


def _torchvision_weights(network: str) -> NetworkWeights:
    check_known(network)
    choice = models.get_model_weights(network).DEFAULT
    try:
        state = choice.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        raise WeightsMissing(
            f"no weights for {network}: torchvision's download failed ({error}); without internet "
            f"give a .safetensors or .pth file (--weights FILE, or weights=); "
            f"{' and '.join(embedded.NETWORKS)} come with dgn"
        ) from error
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(choice.url).name
    return NetworkWeights(network, dict(state), file_sha256(cached), str(choice))


def _read_state(path: Path, network: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            state = load_safetensors(path.read_bytes())
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsMismatch(f"{path} is not a whole weights file for {network}: {first_line}") from error
    except Exception as error:  # pickle's own errors differ between versions; here any of them means a bad file
        raise WeightsMismatch(
            f"{path} cannot be read safely as weights: expected .safetensors or .pth of {network} "
            f"({type(error).__name__})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsMismatch(f"{path} is not a state dict: expected a mapping of names to tensors for {network}")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _fitted(weights: NetworkWeights) -> NetworkWeights:
    """The weights, checked name by name and shape by shape. Batch norms' counters, which nothing reads, may be missing.

    Raises: WeightsMismatch.
    """
    expected = {name: tensor.shape for name, tensor in bare_network(weights.network).state_dict().items()}
    found = {name: tensor.shape for name, tensor in weights.state.items()}
    counters = {
        name: torch.tensor(0) for name in expected if name.endswith("num_batches_tracked") and name not in found
    }
    problems = [f"{name} is missing" for name in expected if name not in found and name not in counters]
    problems += [f"{name} is not a weight of {weights.network}" for name in found if name not in expected]
    problems += [
        f"{name} is {tuple(found[name])} instead of {tuple(expected[name])}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    if problems:
        more = f" and {len(problems) - 1} more differences" if len(problems) > 1 else ""
        raise WeightsMismatch(
            f"weights of another architecture: {weights.source} does not fit {weights.network} ({problems[0]}{more}); "
            f"give weights of {weights.network}"
        )
    return replace(weights, state=weights.state | counters)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
