"""The decoder's file: the frozen weights of the pretrained G, a safetensors file that says in its header what it is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from dgn.errors import WeightsMismatch
from dgn.generator import Architecture

FORMAT_VERSION = 2  # 1 drew normalised RGB, 2 draws along the colour axes of photographs


@dataclass(frozen=True)
class FrozenDecoder:
    """The pretrained G's weights but alpha, its running averages `norm{i}.mean` and `norm{i}.var`, and the mean and
    standard deviation of the codes that it was trained on, `code.mean` and `code.std` (K,); float32 on the CPU."""

    weights: dict[str, Tensor]
    width: float
    sha256: str


def serialise(weights: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    """The file's bytes; `about` (width, settings, data fingerprint, validation error) goes into its header as JSON."""
    tensors = {name: tensor.float().contiguous() for name, tensor in sorted(weights.items())}
    header = json.dumps({"format_version": FORMAT_VERSION, **about}, sort_keys=True)
    return save_safetensors(tensors, metadata={"dgn": header})


def expected_shapes(width: float) -> dict[str, tuple[int, ...]]:
    """Every tensor of a decoder's file with its shape."""
    shapes = Architecture("pretrained", width).shapes()
    code = shapes.pop("alpha")
    averages = {
        name.removesuffix("gamma") + kind: shape
        for name, shape in shapes.items()
        if name.endswith(".gamma")
        for kind in ("mean", "var")
    }
    return {**shapes, **averages, "code.mean": code, "code.std": code}


def read_decoder(data: bytes, source: str) -> FrozenDecoder:
    """Raises: WeightsMismatch where the bytes are no decoder of this architecture, in one line."""
    try:
        weights = load_safetensors(data)
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length]).get("__metadata__", {}).get("dgn", "{}"))
    except (SafetensorError, ValueError) as error:
        raise WeightsMismatch(f"{source} is no whole decoder file: {str(error).splitlines()[0]}") from error
    if about.get("format_version") != FORMAT_VERSION or "width" not in about:
        raise WeightsMismatch(
            f"{source} is no decoder of this dgn: its header has format version {about.get('format_version')}, "
            f"expected {FORMAT_VERSION}; dgn pretrain IMAGES OUT.safetensors makes one"
        )
    for name, shape in expected_shapes(about["width"]).items():
        found = tuple(weights[name].shape) if name in weights else "missing"
        if found != shape:
            raise WeightsMismatch(f"{source} does not fit its width {about['width']:g}: {name} is {found}, not {shape}")
    return FrozenDecoder(weights, about["width"], hashlib.sha256(data).hexdigest())
