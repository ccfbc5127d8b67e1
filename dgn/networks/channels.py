"""Follows a network's channels from function to function: where they are in each tensor, and which layer they are of.

A map may be (N, C, H, W), (N, H, W, C) or tokens (N, L, C), and shapes alone do not say which axis holds the units.
Convolutions, linear layers and norms say it, and every function after them moves the axis or leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

# Function names, without `torch.`, `Tensor.` and the like: the axis of the channels that the function makes.
_MAKES_AXIS = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "batch_norm",
                     "group_norm", "instance_norm"), 1),
    **dict.fromkeys(("embedding", "bilinear"), -1),
}  # fmt: skip
# Work on the last axis, or several from there: of the channels, unless a transpose has put positions there.
_MAKES_LAST_AXIS = ("linear", "layer_norm", "rms_norm")
_MIXES = ("matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "addmm", "baddbmm")
_MIXES_ANY_AXIS = ("einsum", "tensordot")
_REORDERS = ("permute", "transpose", "transpose_", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "adjoint", "T",
             "mT", "H", "mH")  # fmt: skip
NORMALISERS = ("softmax", "sigmoid", "softmax_", "sigmoid_")
_RECTIFIES = ("relu", "relu_", "relu6", "hardtanh", "hardtanh_")
# Each unit keeps its position and its sign: shapes, types, averages, functions that rise everywhere.
_KEEPS_UNITS = frozenset({
    *_REORDERS, *NORMALISERS, *_RECTIFIES, "log_softmax", "logsigmoid", "flatten", "view", "reshape", "squeeze",
    "unsqueeze", "contiguous", "clone", "detach", "to", "float", "double", "type", "dropout", "dropout1d", "dropout2d",
    "alpha_dropout", "feature_dropout", "mean", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "clamp", "clip", "log", "exp", "tanh",
})  # fmt: skip
_MULTIPLIES = ("mul", "mul_", "__mul__", "__rmul__")
_DIVIDES = ("div", "div_", "true_divide", "__truediv__")
_ADDS = ("add", "add_", "__add__", "__radd__", "__iadd__")
_SUBTRACTS_FROM = ("rsub", "__rsub__")
_LOGARITHMS = {"log_softmax": "log_softmax", "logsigmoid": "log_sigmoid"}
_AVERAGES = frozenset(name for name in _KEEPS_UNITS if name == "mean" or "pool" in name)
# What was a probability still is one, perhaps elsewhere.
_KEEPS_PROBABILITIES = _KEEPS_UNITS - {"log", "exp", "tanh"} | {
    "__getitem__", "flip", "roll", "index_select", "gather", "take_along_dim", "sort", "stack", "cat", "concat",
    "concatenate", "hstack", "vstack", "chunk", "split", "unbind", "select", "narrow", "half", "bfloat16", "cpu",
    "max_pool2d", "adaptive_max_pool2d", "interpolate", "upsample", "max", "min", "amax", "amin", "maximum", "minimum",
    "prod",
}  # fmt: skip


@dataclass(frozen=True)
class Trail:
    """What is known about a tensor: the axis of its channels, and where they come from.

    Args:
        layer: whose units the channels still are, in their order, each changed by itself or averaged at most, and a
            higher value still means more; None after any other function.
        normaliser: `softmax` or `sigmoid` if one was applied since that layer, or `log_softmax` or `log_sigmoid`.
        scale: by what its values were multiplied since; 2 for the sum of two.
        is_rectified: whether a ReLU was applied.
    """

    axis: int
    layer: str | None = None
    normaliser: str | None = None
    scale: float = 1.0
    is_rectified: bool = False

    @property
    def probability(self) -> str | None:
        """`softmax` or `sigmoid` if the values are its probabilities."""
        is_one = self.normaliser in ("softmax", "sigmoid") and math.isclose(self.scale, 1, rel_tol=1e-3)
        return self.normaliser if is_one else None


class ChannelTrails(TorchFunctionMode):
    """A context in which the trail of every tensor is known. Runs with any device, `meta` too."""

    def __init__(self) -> None:
        super().__init__()
        self._trails: dict[int, tuple[Tensor, Trail]] = {}  # with the tensor, so that its id is not given away again
        self._read: set[int] = set()
        self._constant: dict[int, Tensor] = {}

    def of(self, tensor: Tensor) -> Trail | None:
        found = self._trails.get(id(tensor))
        return found[1] if found else None

    def has_read(self, tensor: Tensor) -> bool:
        """Whether a function got this tensor, which must still be alive."""
        return id(tensor) in self._read

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor is known to be made without the pictures: of numbers and weights alone, as positions are."""
        return isinstance(tensor, torch.nn.Parameter) or id(tensor) in self._constant

    def start(self, tensor: Tensor, trail: Trail) -> None:
        """Notes what is known about a tensor."""
        self._trails[id(tensor)] = (tensor, trail)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        tensors = list(_tensors((args, kwargs)))
        self._read.update(map(id, tensors))
        if all(map(self.is_constant, tensors)):
            self._constant.update((id(made), made) for made in _tensors(output))
        else:
            for tensor in tensors:  # which the function may have written into
                self._constant.pop(id(tensor), None)
                self._constant.pop(id(tensor._base), None)
        for made in _tensors(output):
            trail = self._followed(func, tensors, made, args, kwargs)
            if trail is not None:
                self.start(made, trail)
        return output

    def _followed(
        self, func: Any, tensors: list[Tensor], made: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Trail | None:
        name = _short_name(func)
        if made.ndim >= 2 and name in _MAKES_AXIS:
            return Trail(_MAKES_AXIS[name] % made.ndim)
        known = [(tensor, trail) for tensor in tensors if (trail := self.of(tensor))]
        normaliser, scale = _normaliser(name, args, [self.of(tensor) for tensor in tensors])
        if made.ndim < 2:
            if made.ndim == 0 or len(known) != 1:
                return None
            layer = known[0][1].layer if _keeps_units(name, args) else None
            return replace(known[0][1], axis=0, layer=layer, normaliser=normaliser, scale=scale)
        if name in _MAKES_LAST_AXIS:
            first = self.of(tensors[0])
            return Trail(first.axis if first and tensors[0].ndim == made.ndim else made.ndim - 1)
        if not known or name in _MIXES_ANY_AXIS:
            return None
        source, trail = known[0]
        if name in _MIXES:
            return Trail(trail.axis) if len(known) == 1 and made.ndim == source.ndim else None
        axis = (
            _reordered(func, source, trail.axis, args, kwargs) if name in _REORDERS else _kept(source, trail.axis, made)
        )
        if axis is None:
            return None
        is_same = len(known) == 1 and made.shape[axis] == source.shape[trail.axis] and _keeps_units(name, args)
        is_rectified = trail.is_rectified or name in _RECTIFIES
        return Trail(axis, trail.layer if is_same else None, normaliser, scale, is_same and is_rectified)


def _keeps_units(name: str, args: tuple[Any, ...]) -> bool:
    if name in _MULTIPLIES or name in _DIVIDES:
        return (_factor(name, args) or 0) > 0
    if name == "__getitem__":  # ranges and single positions keep the order, lists of positions need not
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return all(one is None or one is ... or isinstance(one, slice | int) for one in index)
    return name in _KEEPS_UNITS


def _factor(name: str, args: tuple[Any, ...]) -> float | None:
    """The number that a function multiplies a tensor by; None if it does something else."""
    numbers = [one for one in args if isinstance(one, int | float)]
    if name in _MULTIPLIES and numbers:
        return numbers[0]
    if name in _DIVIDES and numbers and args[1] is numbers[0] != 0:
        return 1 / numbers[0]
    return None


def _normaliser(name: str, args: tuple[Any, ...], trails: list[Trail | None]) -> tuple[str | None, float]:
    """What normalised a function's output, and its scale, see `Trail`.

    Args:
        trails: of the tensors that it reads.
    """
    if name in NORMALISERS:
        return name.removesuffix("_"), 1.0
    if name in _LOGARITHMS:
        return _LOGARITHMS[name], 1.0
    known = [trail for trail in trails if trail]
    kinds, scales = {trail.normaliser for trail in known}, [trail.scale for trail in known]
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        return None, 1.0
    is_one, is_log = known[0].probability is not None, kind.startswith("log_")
    numbers = [one for one in args if isinstance(one, int | float)]
    if name == "log" and is_one:
        return f"log_{kind}", 1.0
    if name == "exp" and is_log and scales == [1]:
        return kind.removeprefix("log_"), 1.0
    if name in _SUBTRACTS_FROM and is_one and kind == "sigmoid" and numbers == [1]:
        return kind, 1.0
    if name in _ADDS and len(known) == len(trails) and not is_log and not any(numbers):  # `sum` of a list begins at 0
        return kind, sum(scales)
    factor = _factor(name, args)
    if factor is not None and len(known) == len(trails):
        return kind, factor * scales[0]
    if name in _MULTIPLIES and len(known) == len(trails) and all(trail.probability for trail in known):
        return kind, 1.0  # as in a tree of classes: of a group, and of a class in it
    is_kept = name in _KEEPS_PROBABILITIES and len(set(scales)) == 1 and not (is_log and name in _AVERAGES)
    return (kind, scales[0]) if is_kept else (None, 1.0)


def _reordered(func: Any, source: Tensor, axis: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Where a function that reorders axes puts one of them, seen from a tensor whose sizes all differ."""
    marked = torch.empty(tuple(range(2, 2 + source.ndim)), device="meta")
    args = tuple(marked if one is source else one for one in args)
    kwargs = {name: marked if one is source else one for name, one in kwargs.items()}
    return func(*args, **kwargs).shape.index(2 + axis)


def _kept(source: Tensor, axis: int, made: Tensor) -> int | None:
    """Where the channels of `source` are in what a function made of it; None if that cannot be said."""
    if made.shape == source.shape:
        return axis
    if made.ndim == 2:
        return 1
    num_channels = source.shape[axis]
    if made.ndim == source.ndim and made.shape[axis] == num_channels:
        return axis
    if made.numel() == source.numel():  # a change of shape keeps the order of values
        before = math.prod(source.shape[:axis])
        for found in range(1, made.ndim):
            if made.shape[found] == num_channels and math.prod(made.shape[:found]) == before:
                return found
        return None
    if made.ndim == source.ndim:  # a part of the channels, or those of several tensors
        return axis
    as_long = [one for one in range(1, made.ndim) if made.shape[one] == num_channels]
    return as_long[0] if len(as_long) == 1 else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _short_name(func: Any) -> str:
    """`relu` for `torch.relu`, `mT` for the function behind `Tensor.mT`."""
    return (resolve_name(func) or getattr(func, "__name__", "")).removesuffix(".__get__").rpartition(".")[2]
