"""The decoder's file: the frozen weights of the pretrained generator, a safetensors file whose header describes it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from dgn.errors import WeightsMismatch
from dgn.method.architecture import Architecture, Weights
from dgn.method.generator import initial_weights
from dgn.method.lapped import BANDS, Fitted, LappedTransform, axes_name
from dgn.method.recipes import Generator, Recipe
from dgn.method.sharing import as_arrays, as_tensors
from dgn.method.starts import STARTS
from dgn.text import in_one_line

# 1: drew normalised RGB; 2: draws along photographs' colour axes; 3: has directions of equal effect for the code;
# 6: is of bands of windows, or of convolutions without directions.
FORMAT_VERSION = 6
READABLE = (3, FORMAT_VERSION)
STEPS_PER_DEVIATION = 42  # in which starts are kept, so that eight bits reach to three deviations


@dataclass(frozen=True)
class FrozenDecoder:
    """The content of a decoder's file.

    `weights`, float32 on the CPU: the pretrained generator's weights except alpha. Of windows also the mean of
    photographs' codes, `code.mean` (K,), their deviations, `code.deviations` (K,), see `lapped.Fitted`, and some
    photographs' codes where targets may begin, `code.starts` (M, C P of the first band), in deviations. Of
    convolutions also the running averages of the training, `norm{i}.mean` and `norm{i}.var`; and in files of version 3
    the mean code with `code.directions` (C, C), steps of equal effect as columns.
    """

    weights: dict[str, Tensor]
    generator: Generator
    width: float
    sha256: str
    source: str

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "weights": as_arrays(self.weights)}

    def __setstate__(self, known: dict[str, Any]) -> None:
        """Workers of one machine share the weights."""
        self.__dict__.update(known, weights=as_tensors(known["weights"]))

    def adapted(self, recipe: Recipe) -> Recipe:
        """The recipe, as wide as this decoder. Raises: WeightsMismatch if it draws with another generator."""
        if recipe.generator != self.generator:
            advice = {
                "windows": "give --preset paper (in Python preset='paper'), or make another with dgn pretrain",
                "convolutions": "make one with dgn pretrain --recipe paper, or give --preset standard (in Python "
                "preset='standard')",
            }[recipe.generator]
            raise WeightsMismatch(
                f"decoder {self.source} is of {self.generator}, and this preset draws with {recipe.generator}: {advice}"
            )
        return replace(recipe, width=self.width)

    def on(self, device: torch.device) -> Weights:
        """What `batch.start_batch` takes: weights, which each batch copies to its device."""
        return self.weights


def serialise(weights: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    """The file's bytes. `about` (width, settings, fingerprint of the data, validation error) is its header, as JSON.
    The windows' axes are kept in half precision, and starts in eight bits, which no picture shows."""
    tensors = {name: _kept(name, tensor).contiguous() for name, tensor in sorted(weights.items())}
    header = json.dumps({"format_version": FORMAT_VERSION, **about}, sort_keys=True)
    return save_safetensors(tensors, metadata={"dgn": header})


def _kept(name: str, tensor: Tensor) -> Tensor:
    if name == STARTS:
        return (STEPS_PER_DEVIATION * tensor).round().clamp(-127, 127).to(torch.int8)
    return tensor.half() if name.endswith(".axes") else tensor.float()


def expected_shapes(
    width: float, generator: Generator, has_code: bool = False, num_starts: int = 0
) -> dict[str, tuple[int, ...]]:
    """Every tensor of a decoder's file, with its shape.

    Args:
        has_code: whether a decoder of convolutions has the mean and the directions of codes.
        num_starts: of windows.
    """
    architecture = Architecture("pretrained", width, generator=generator)
    shapes = architecture.shapes()
    code = shapes.pop("alpha")
    averages = {
        name.removesuffix("gamma") + kind: shape
        for name, shape in shapes.items()
        if name.endswith(".gamma")
        for kind in ("mean", "var")
    }
    channels = architecture.feature_channels
    if generator == "windows":
        first = architecture.window_channels[0] * BANDS[0].places
        return {**shapes, "code.mean": code, "code.deviations": code, STARTS: (num_starts, first)}
    return {**shapes, **averages, **({"code.mean": code, "code.directions": (channels, channels)} if has_code else {})}


def of_windows(fitted: Fitted, starts_MK: Tensor | None = None) -> dict[str, Tensor]:
    """The weights of a decoder's file.

    Args:
        starts_MK: photographs' codes in deviations, see `FrozenDecoder`; None: none, so that targets begin at the mean.
    """
    num_first = len(fitted.transform.axes[0]) * BANDS[0].places
    return {
        **{axes_name(i): axes_C3ss for i, axes_C3ss in enumerate(fitted.transform.axes)},
        "windows.colours": fitted.transform.colours_3,
        "code.mean": fitted.mean_K,
        "code.deviations": fitted.deviations_K,
        STARTS: torch.zeros(0, num_first) if starts_MK is None else starts_MK,
    }


def random_decoder(recipe: Recipe) -> dict[str, Tensor]:
    """An untrained decoder for measurements and tests: random weights with the shapes that a recipe draws with."""
    stream = torch.Generator().manual_seed(7)
    shapes = {name: torch.zeros(shape) for name, shape in expected_shapes(recipe.width, recipe.generator).items()}
    if recipe.generator == "windows":
        axes = tuple(
            nn.init.orthogonal_(empty.flatten(1), generator=stream).view_as(empty)
            for empty in LappedTransform.of(shapes).axes
        )
        deviations_K = torch.linspace(3, 0.3, len(shapes["code.mean"]))
        return of_windows(Fitted(LappedTransform(axes, shapes["windows.colours"]), shapes["code.mean"], deviations_K))
    averages = {name: tensor + 1 if name.endswith(".var") else tensor for name, tensor in shapes.items()}
    weights = initial_weights(Architecture("pretrained", recipe.width), stream)
    return averages | {name: tensor for name, tensor in weights.items() if name != "alpha"}


def read_decoder(data: bytes, source: str) -> FrozenDecoder:
    """A decoder from the bytes of its file; `source` names it in messages. Raises: WeightsMismatch."""
    try:
        weights = load_safetensors(data)
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length]).get("__metadata__", {}).get("dgn", "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise WeightsMismatch(f"{source} is not a whole decoder file: {str(error).splitlines()[0]}") from error
    version = about.get("format_version") if isinstance(about, dict) else None
    generator: Generator = "windows" if "windows.colours" in weights else "convolutions"
    if version not in READABLE:
        raise WeightsMismatch(
            f"{source} is not a decoder of this dgn: its header has format version {version}, "
            f"expected {FORMAT_VERSION}; dgn pretrain IMAGES OUT.safetensors makes one"
        )
    try:
        width = float(about["width"])
        num_starts = len(weights[STARTS]) if STARTS in weights else 0
        shapes = expected_shapes(width, generator, has_code=version == 3, num_starts=num_starts)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsMismatch(f"{source} does not give its width in its header: {in_one_line(error)}") from error
    for name, shape in shapes.items():
        found = tuple(weights[name].shape) if name in weights else "missing"
        if found != shape:
            raise WeightsMismatch(f"{source} does not fit its width {width:g}: {name} is {found}, not {shape}")
    decoder = {name: weights[name].float() for name in shapes}
    if STARTS in decoder:
        decoder[STARTS] /= STEPS_PER_DEVIATION
    if infinite := [name for name, tensor in decoder.items() if not tensor.isfinite().all()]:
        raise WeightsMismatch(f"{source} has NaN or infinity in {infinite[0]}: make it again with dgn pretrain")
    return FrozenDecoder(decoder, generator, width, hashlib.sha256(data).hexdigest(), source)
