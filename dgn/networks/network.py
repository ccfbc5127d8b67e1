"""What a network is: its module, the pictures that it wants, and what its classes are."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, cast, get_args

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from dgn.errors import DgnError
from dgn.networks.layers import Layers
from dgn.networks.tracing import trace
from dgn.text import as_flag, in_one_line

ChannelOrder = Literal["RGB", "BGR"]
Output = Literal["softmax", "sigmoid", "none"]  # what makes probabilities of the classes' values
MIN_PX, MAX_PX = 16, 1024  # sides of pictures


@dataclass(frozen=True, eq=False)
class Network:
    """A classifier and everything that dgn has to know about it.

    Pictures are RGB or grey squares with values in [0, 1]. The network gets `(value_range * picture - mean) / std`,
    its channels in `channel_order`. One number stands for all channels; a network whose first layer reads one channel
    gets grey pictures.

    Args:
        model: the module or, so that each process can build its own, a function that returns it.
        size: side of the pictures that the network wants, in pixels.
        mean: what the network's own preprocessing subtracts, one number or one per channel, in its channel order.
        std: what it divides by.
        channel_order: `RGB` or `BGR`.
        value_range: what white is before `mean` is subtracted: 1 or 255.
        labels: of the classes, by unit. Without them classes are numbers.
        class_layer: the layer whose units are the classes; by default found from the network's output.
        output: how the classes' values become probabilities: `softmax`, `sigmoid`, or `none` if they are not
            probabilities of anything. By default softmax, sigmoid for a single class, and what the network itself does
            if it ends in one of them.
        name: what rows and messages call it; by default the module's class.

    Raises: DgnError for values that cannot be.
    """

    model: nn.Module | Callable[[], nn.Module]
    _: KW_ONLY
    size: int
    mean: float | Sequence[float]
    std: float | Sequence[float]
    channel_order: ChannelOrder = "RGB"
    value_range: float = 1.0
    labels: Sequence[str] = ()
    class_layer: str | None = None
    output: Output | None = None
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", _unwrapped(self.model))
        if not callable(self.model):
            raise DgnError(
                f"network is a {type(self.model).__name__}: expected an nn.Module or a function that returns one"
            )
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not MIN_PX <= self.size <= MAX_PX:
            raise DgnError(
                f"input size {self.size!r}: expected the side of square pictures, {MIN_PX} to {MAX_PX} pixels"
            )
        for name in ("mean", "std"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        if min(self.stds) <= 0:
            raise DgnError(f"std {as_flag(self.stds)}: expected numbers above 0")
        if self.channel_order not in get_args(ChannelOrder):
            raise DgnError(f"channel order '{self.channel_order}': expected RGB or BGR")
        if not (isinstance(self.value_range, int | float) and 0 < self.value_range < math.inf):
            raise DgnError(f"value range {self.value_range}: expected 1 or 255, what white is to the network")
        if self.output not in (None, *get_args(Output)):
            raise DgnError(f"output '{self.output}': expected softmax, sigmoid or none")
        if isinstance(self.labels, str | Mapping) or not isinstance(self.labels, Iterable):
            raise DgnError(f"labels is a {type(self.labels).__name__}: expected a list of one text per class, in order")
        object.__setattr__(self, "labels", tuple(map(str, self.labels)))
        if not self.name:
            name = getattr(self.model, "__name__", type(self.model).__name__)  # which modules and partials lack
            object.__setattr__(self, "name", name)

    def __repr__(self) -> str:
        return f"<network {self.name}, {self.size} px>"

    @property
    def means(self) -> tuple[float, ...]:
        """`mean` as numbers, one or three."""
        return cast("tuple[float, ...]", self.mean)

    @property
    def stds(self) -> tuple[float, ...]:
        """`std` as numbers, one or three."""
        return cast("tuple[float, ...]", self.std)

    def built(self) -> nn.Module:
        """The module with its parameters, a copy if it was given as one. Raises: DgnError if it is not a module."""
        try:
            module = copied(self.model) if isinstance(self.model, nn.Module) else self.model()
        except RuntimeError as error:  # see `copied`
            if not isinstance(self.model, nn.Module):
                raise
            raise DgnError(
                f"{self.name} cannot be copied ({in_one_line(error)}); give a function that returns it"
            ) from error
        if not isinstance(module, nn.Module):
            raise DgnError(f"{self.name} returned a {type(module).__name__}: expected an nn.Module")
        module = _unwrapped(module)
        if isinstance(module, torch.jit.ScriptModule):
            raise DgnError(
                f"{self.name} is TorchScript, whose layers nobody can watch: give the nn.Module it came from"
            )
        check_plain(module, self.name)
        return module

    def bare(self) -> nn.Module:
        """The module with its parameters' shapes. Where the builder allows it, they take no memory."""
        # The device overrides a `torch.device("meta")` around the call. Constructors draw random numbers.
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            if not getattr(self.model, "is_plain", False):
                return self.built()
            with suppress(RuntimeError), _Unfilled(on_meta=True):  # some constructors run a part of the network
                module = self.built()
                kept = module.state_dict().keys()
                if not any(buffer.is_meta for name, buffer in module.named_buffers() if name not in kept):
                    return module
            with _Unfilled(on_meta=False):  # constants that no file holds, made by the constructor in empty tensors
                return self.built()

    @cached_property
    def layers(self) -> Layers:
        """What targets can name. Raises: DgnError if the network does not run, or not as it was described."""
        return trace(self)

    def labelled(self, labels: Sequence[str]) -> Network:
        """The same network with these labels. Raises: DgnError if there is not one per class."""
        named = replace(self, labels=labels)
        named.__dict__["layers"] = self.layers.labelled(named.labels)  # type: ignore[arg-type]
        return named

    def without(self, part: str, why: str) -> Network:
        """The same network without the units of one of its children, which held the classes.

        Args:
            why: there are none, for messages.
        """
        rest = replace(self, labels=(), class_layer=None)
        rest.__dict__["layers"] = self.layers.without(part, why)
        return rest

    def description(self) -> dict[str, Any]:
        """What decides, beside the module and its weights, how the network sees a picture and how that is scored."""
        return {
            "size": self.size, "mean": list(self.means), "std": list(self.stds), "channel_order": self.channel_order,
            "value_range": self.value_range, "output": self.layers.output,
            **({"code_sha256": code} if (code := getattr(self.model, "sha256", None)) else {}),
        }  # fmt: skip

    def with_settings(self, **given: Any) -> Network:
        """The same network with those of the settings that are not None. Raises: DgnError as the constructor does."""
        settings = {name: value for name, value in given.items() if value is not None}
        if self.value_range != 1 and settings.keys() & {"mean", "std"} and "value_range" not in settings:
            raise DgnError(
                f"{self.name} reads values from 0 to {self.value_range:g}: with a mean or std of your own, say with "
                "--value-range (in Python value_range=) what white is to it"
            )
        described = replace(self, **settings)
        if described.value_range != self.value_range and not {"mean", "std"} <= settings.keys():
            raise DgnError(
                f"{self.name}: mean {as_flag(self.means)} and std {as_flag(self.stds)} are of values from 0 to "
                f"{self.value_range:g}: with a value range of {described.value_range:g} give --mean and --std (in "
                "Python mean= and std=) on its scale"
            )
        return described


def check_plain(module: nn.Module, name: str) -> None:
    """Raises: DgnError if a module's state is not one of tensors of plain numbers; messages call it `name`."""
    for key, value in module.state_dict().items():
        if is_lazy(value):
            raise DgnError(f"{name}: '{key}' has no shape yet: run the module once first")
        if not isinstance(value, torch.Tensor) or value.is_quantized:
            raise DgnError(f"{name}: '{key}' is not a tensor of plain numbers: give the float module")


def copied(module: nn.Module) -> nn.Module:
    """A copy with weights of its own.

    PyTorch copies no tensor with a gradient's history. Those that modules hold themselves, such as the weight that an
    older `weight_norm` or `spectral_norm` computes anew in each run, are copied without it.

    Raises: RuntimeError for such tensors elsewhere, in a list for instance.
    """
    held = (tensor for part in module.modules() for tensor in (*vars(part).values(), *part.buffers(recurse=False)))
    computed = {id(t): t.detach().clone() for t in held if isinstance(t, torch.Tensor) and not t.is_leaf}
    return copy.deepcopy(module, computed)


def _unwrapped(model: Any) -> Any:
    """The module inside of `torch.compile`'s, and of those that spread a batch over devices."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = getattr(model, "_orig_mod", None) or model.module
    return model


@dataclass(frozen=True)
class NamedBuilder:
    """Builds one of a library's networks by its name, with random weights; subclasses say how.

    Args:
        num_classes: another number than the published weights have.
    """

    is_plain: ClassVar[bool] = True  # does nothing but make parameters
    name: str
    num_classes: int | None = None

    def with_classes(self, num_classes: int) -> Self:
        return replace(self, num_classes=num_classes)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the library's own builder has to be told."""
        return {} if self.num_classes is None else {"num_classes": self.num_classes}


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    if isinstance(value, torch.Tensor | np.ndarray):
        value = value.tolist()
    try:
        numbers = tuple(float(one) for one in (value if isinstance(value, list | tuple) else (value,)))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise DgnError(f"{name} {value!r}: expected one number, or three for red, green and blue")
    return numbers


class _Unfilled(TorchFunctionMode):
    """Parameters get no first values, which a billion of them wait for.

    Args:
        on_meta: whether they take no memory either. What a constructor calculates is real, unlike within
            `torch.device("meta")`.
    """

    FILLS = frozenset({
        "normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "trunc_normal_", "erfinv_", "mul_", "div_",
        "add_", "clamp_",
    })  # fmt: skip

    def __init__(self, on_meta: bool):
        super().__init__()
        self.on_meta = on_meta

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self.on_meta and func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        filled = args[0] if args else kwargs.get("tensor")  # as `nn.init` names it
        if isinstance(filled, nn.Parameter) and getattr(func, "__name__", "") in self.FILLS:
            return filled
        return func(*args, **kwargs)
