"""The decoder's file: the frozen weights of the pretrained G."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dgn.errors import WeightsMismatch, WeightsMissing
from dgn.generator import Architecture


def load_decoder(path: Path, width: float) -> dict[str, Tensor]:
    """The pretrained G's weights but alpha, float32 on the CPU.

    Raises: WeightsMissing, WeightsMismatch, in one line.
    """
    if not path.is_file():
        raise WeightsMissing(f"no decoder at {path}: dgn pretrain IMAGES FILE makes one (not built yet)")
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no mapping)
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsMismatch(f"{path} is no whole decoder file: {str(error).splitlines()[0]}") from error
    expected = {name: shape for name, shape in Architecture("pretrained", width).shapes().items() if name != "alpha"}
    for name, shape in expected.items():
        if name not in state or tuple(state[name].shape) != shape:
            found = tuple(state[name].shape) if name in state else "missing"
            made = json.loads(header.get("dgn", "{}")).get("width")
            hint = f"it was made with --width {made}" if made else "it is of another architecture"
            raise WeightsMismatch(
                f"decoder {path} does not fit width {width:g}: {name} is {found}, expected {shape}; {hint}"
            )
    return {name: state[name] for name in expected}
