"""The decoder's file: the frozen weights of the pretrained generator, a safetensors file whose header describes it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from dgn.errors import WeightsMismatch
from dgn.method.architecture import Architecture
from dgn.method.generator import initial_weights
from dgn.method.recipes import Recipe
from dgn.text import in_one_line

# 1: drew normalised RGB; 2: draws along photographs' colour axes; 3: has directions of equal effect for the code;
# 4: directions that photographs' codes vary along, and the encoder if it is a transform.
FORMAT_VERSION = 4
READABLE = (3, FORMAT_VERSION)
ENCODER = "encoder."


@dataclass(frozen=True)
class FrozenDecoder:
    """The content of a decoder's file.

    `weights`, float32 on the CPU: the pretrained generator's weights except alpha, its running averages `norm{i}.mean`
    and `norm{i}.var`, the mean of the codes that it was trained on, `code.mean` (K,), and `code.directions` (C, C):
    the principal axes of the channels of a code's places, as columns, each as long as its standard deviation.
    `encoder`: the buffers of a `lapped.LappedTransform`; empty if the encoder was another.
    """

    weights: dict[str, Tensor]
    width: float
    sha256: str
    source: str
    format_version: int
    encoder: dict[str, Tensor]

    def check_for(self, recipe: Recipe) -> None:
        """Raises: WeightsMismatch if the recipe asks for what an earlier file does not have."""
        if recipe.code_limit is not None and self.format_version < FORMAT_VERSION:
            raise WeightsMismatch(
                f"decoder {self.source} has format version {self.format_version}, without the deviations of its codes "
                "that this preset keeps within: give --preset paper, or train it again with dgn pretrain"
            )


def serialise(weights: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    """The file's bytes. `about` (width, settings, fingerprint of the data, validation error) is its header, as JSON."""
    tensors = {name: tensor.float().contiguous() for name, tensor in sorted(weights.items())}
    header = json.dumps({"format_version": FORMAT_VERSION, **about}, sort_keys=True)
    return save_safetensors(tensors, metadata={"dgn": header})


def expected_shapes(width: float) -> dict[str, tuple[int, ...]]:
    """Every tensor of a decoder's file, with its shape."""
    architecture = Architecture("pretrained", width)
    shapes = architecture.shapes()
    code = shapes.pop("alpha")
    averages = {
        name.removesuffix("gamma") + kind: shape
        for name, shape in shapes.items()
        if name.endswith(".gamma")
        for kind in ("mean", "var")
    }
    channels = architecture.feature_channels
    return {**shapes, **averages, "code.mean": code, "code.directions": (channels, channels)}


def principal_deviations(covariance_CC: Tensor) -> Tensor:
    """The principal axes of a covariance, as columns, each as long as its standard deviation: (C, C)."""
    squares_C, axes_CC = torch.linalg.eigh(covariance_CC.double())
    return (axes_CC * squares_C.clamp_min(0).sqrt()).float()


def random_decoder(width: float) -> dict[str, Tensor]:
    """An untrained decoder for measurements and tests: random weights with the right shapes."""
    weights = initial_weights(Architecture("pretrained", width), torch.Generator().manual_seed(7))
    averages = {name: torch.zeros(shape) for name, shape in expected_shapes(width).items() if name not in weights}
    averages |= {name: tensor + 1 for name, tensor in averages.items() if name.endswith(".var")}
    size = len(averages["code.directions"])
    directions = {"code.directions": torch.randn(size, size, generator=torch.Generator().manual_seed(8)) / size**0.5}
    return {name: tensor for name, tensor in weights.items() if name != "alpha"} | averages | directions


def read_decoder(data: bytes, source: str) -> FrozenDecoder:
    """A decoder from the bytes of its file; `source` names it in messages. Raises: WeightsMismatch."""
    try:
        weights = load_safetensors(data)
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length]).get("__metadata__", {}).get("dgn", "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise WeightsMismatch(f"{source} is not a whole decoder file: {str(error).splitlines()[0]}") from error
    version = about.get("format_version") if isinstance(about, dict) else None
    if version not in READABLE:
        raise WeightsMismatch(
            f"{source} is not a decoder of this dgn: its header has format version {version}, "
            f"expected {FORMAT_VERSION}; dgn pretrain IMAGES OUT.safetensors makes one"
        )
    try:
        width = float(about["width"])
        shapes = expected_shapes(width)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsMismatch(f"{source} does not give its width in its header: {in_one_line(error)}") from error
    for name, shape in shapes.items():
        found = tuple(weights[name].shape) if name in weights else "missing"
        if found != shape:
            raise WeightsMismatch(f"{source} does not fit its width {width:g}: {name} is {found}, not {shape}")
    encoder = {name.removeprefix(ENCODER): each.float() for name, each in weights.items() if name.startswith(ENCODER)}
    decoder = {name: weights[name].float() for name in shapes}
    return FrozenDecoder(decoder, width, hashlib.sha256(data).hexdigest(), source, version, encoder)
