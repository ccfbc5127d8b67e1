"""Generators of one's own: a frozen module from codes to pictures, such as a GAN's. dgn runs its code."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgn.errors import DgnError
from dgn.method.precision import exact_float32
from dgn.method.recipes import Recipe
from dgn.networks.checkpoints import check_finite
from dgn.networks.network import check_plain, copied
from dgn.networks.own_code import OwnCode
from dgn.networks.weights import plain, plain_state, state_sha256
from dgn.text import in_one_line

OUTSIDE = 0.02  # by which colours may leave [0, 1]: more is another range of values
SAME = 1e-3  # how far colours of the same code may differ beside other codes
MAX_NUMBERS = 1 << 20  # of a code; its steps, gradients and moments are kept per target


@dataclass(frozen=True)
class OwnGenerator:
    """A generator that was tried, and its weights on the CPU. Takes the place of a `method.decoder.FrozenDecoder`.

    Args:
        build: returns a module of the caller's own, with any weights.
        state: weights and all buffers.
        code_shape: of one picture's code, whose numbers have mean 0 and deviation 1.
        sha256: of code and weights, as 64 hex digits.
    """

    source: str
    build: Callable[[], nn.Module]
    state: dict[str, Tensor]
    code_shape: tuple[int, ...]
    sha256: str
    trial_N388: Tensor | None = None  # what the trial's codes look like, in 8 x 8 areas

    def adapted(self, recipe: Recipe) -> Recipe:
        """The recipe, drawing with this generator. Raises: DgnError for the paper's."""
        if recipe.code != "data":
            raise DgnError(
                f"generator {self.source} with preset paper, whose codes are of its own autoencoder: give --preset "
                "standard or draft (in Python preset=)"
            )
        return replace(recipe, generator="own", code_shape=self.code_shape, width=1.0)

    def on(self, device: torch.device) -> nn.Module:
        """The module with its weights, frozen, on a device. Raises: DgnError if it draws other pictures there."""
        module = _built(self.build, self.source)
        differs = f"generator {self.source} differs from machine to machine"
        try:
            module.load_state_dict({name: self.state[name] for name in module.state_dict()}, assign=True)
            for name in self.state.keys() - module.state_dict().keys():
                owner, _, buffer = name.rpartition(".")
                module.get_submodule(owner)._buffers[buffer] = self.state[name]
        except (RuntimeError, KeyError, AttributeError) as error:
            raise DgnError(f"{differs} ({in_one_line(error)})") from error
        module = module.eval().requires_grad_(False).to(device)
        if self.trial_N388 is not None:
            seen = _areas(_drawn(module, _trial_codes(self.code_shape).to(device), self.source)).cpu()
            if seen.shape != self.trial_N388.shape or (seen - self.trial_N388).abs().max() > SAME:
                raise DgnError(f"{differs}: expected one whose numbers are all parameters or buffers")
        return module


def own_generator(given: nn.Module | Callable[[], nn.Module]) -> OwnGenerator:
    """A generator from a module, or from a function that returns one. It is run, on the CPU.

    The module has an attribute `code_shape`, such as `(128,)` or `(4, 28, 28)`, and maps codes (N, *code_shape) with
    mean 0 and deviation 1, float32, to pictures (N, 3, H, H), RGB in [0, 1]. In evaluation it draws every code by
    itself and always alike, and passes gradients to it.

    Raises: DgnError unless the module does all of this; WeightsMismatch if its weights are not finite.
    """
    if not callable(given):
        raise DgnError(f"generator is a {type(given).__name__}: expected an nn.Module or a function that returns one")
    name = given.name if isinstance(given, OwnCode) else getattr(given, "__name__", type(given).__name__)
    module = given if isinstance(given, nn.Module) else _built(given, name)
    build = given if isinstance(given, OwnCode) else lambda: _copy(module, name)
    code_shape = _code_shape(module, name)
    check_plain(module, f"generator {name}")
    state = plain_state(module)
    for tensor_name, tensor in state.items():
        check_finite(tensor, f"generator {name}: the tensor '{tensor_name}'")
    code = f"{name} {given.sha256 if isinstance(given, OwnCode) else None} {_sources_sha256(module)}"
    sha256 = hashlib.sha256(f"{code} {state_sha256(state)}".encode()).hexdigest()
    found = OwnGenerator(name, build, state | _hidden_buffers(module), code_shape, sha256)
    return replace(found, trial_N388=_areas(_try(found)))


def _built(build: Callable[[], nn.Module], name: str) -> nn.Module:
    """The process keeps its random state. Raises: DgnError for whatever the function raises."""
    try:
        with torch.random.fork_rng(devices=[]):
            module = build()
    except DgnError:
        raise
    except Exception as error:
        raise DgnError(f"generator {name} failed: {in_one_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise DgnError(f"generator {name} returned a {type(module).__name__}: expected an nn.Module")
    return module


def _code_shape(module: nn.Module, name: str) -> tuple[int, ...]:
    given = getattr(module, "code_shape", None)
    try:
        shape = () if isinstance(given, str) else tuple(int(side) for side in given)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        shape = ()
    if not shape or min(shape) < 1:
        raise DgnError(
            f"generator {name} has the code_shape {given!r}: expected an attribute with the shape of one code, such as "
            "(128,) or (4, 28, 28)"
        )
    if math.prod(shape) > MAX_NUMBERS:
        raise DgnError(f"generator {name} has codes of {math.prod(shape):,} numbers: expected at most {MAX_NUMBERS:,}")
    return shape


def _hidden_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that a module's state leaves out. They may be random, too."""
    known = module.state_dict().keys()
    return {name: plain(buffer) for name, buffer in module.named_buffers() if name not in known}


def _sources_sha256(module: nn.Module) -> str:
    """Of the files that define the module's parts, other than PyTorch's own."""
    texts = set[bytes]()
    for kind in {type(part) for part in module.modules()}:
        if not kind.__module__.startswith("torch."):
            with suppress(OSError, TypeError):  # typed into a notebook, or built in
                texts.add(Path(inspect.getfile(kind)).read_bytes())
    return hashlib.sha256(b"".join(sorted(texts))).hexdigest()


def _copy(module: nn.Module, name: str) -> nn.Module:
    try:
        return copied(module)
    except RuntimeError as error:
        raise DgnError(
            f"generator {name} cannot be copied ({in_one_line(error)}): give a function that returns it"
        ) from error


def _trial_codes(code_shape: tuple[int, ...]) -> Tensor:
    return torch.randn(3, *code_shape, generator=torch.Generator().manual_seed(0))


def _areas(pictures_N3HW: Tensor) -> Tensor:
    """(N, 3, 8, 8): means, by which two trials are compared."""
    return F.adaptive_avg_pool2d(pictures_N3HW.detach().float(), 8)


@exact_float32()
def _drawn(module: nn.Module, codes: Tensor, name: str) -> Tensor:
    """Raises: DgnError for whatever the code raises."""
    try:
        return module(codes)
    except Exception as error:
        raise DgnError(
            f"generator {name} does not run on codes of shape {tuple(codes.shape)} on {codes.device.type} "
            f"({in_one_line(error)}): codes and weights are float32"
        ) from error


@exact_float32()
def _try(generator: OwnGenerator) -> Tensor:
    """The trial's pictures. Raises: DgnError unless the module draws as `own_generator` says."""
    module, what = generator.on(torch.device("cpu")), f"generator {generator.source}"
    codes = _trial_codes(generator.code_shape).requires_grad_()
    pictures = _drawn(module, codes, generator.source)
    if not isinstance(pictures, Tensor):
        raise DgnError(f"{what} returned a {type(pictures).__name__}: expected pictures, a tensor (N, 3, H, H)")
    is_square = pictures.ndim == 4 and pictures.shape[2] == pictures.shape[3] > 0
    if not is_square or pictures.shape[:2] != (len(codes), 3) or not pictures.is_floating_point():
        raise DgnError(
            f"{what} drew {len(codes)} codes as {tuple(pictures.shape)} {pictures.dtype}: expected floats (N, 3, H, H)"
        )
    least, most = pictures.detach().aminmax()
    if not (least >= -OUTSIDE and most <= 1 + OUTSIDE):  # NaN too
        raise DgnError(
            f"{what} draws values from {least:.3g} to {most:.3g}: expected RGB from 0 to 1 (where they go from -1 to "
            "1, let it return (x + 1) / 2)"
        )
    again, alone = (_drawn(module, some, generator.source) for some in (codes.detach(), codes.detach()[:1]))
    if (again - pictures).abs().max() > SAME:
        raise DgnError(f"{what} draws the same codes differently each time: expected one without noise of its own")
    if (alone - pictures[:1]).abs().max() > SAME:
        raise DgnError(f"{what} draws a code differently beside others: expected every picture by itself")
    _check_gradient(pictures, codes, what)
    return pictures.detach()


def _check_gradient(pictures: Tensor, codes: Tensor, what: str) -> None:
    """Raises: DgnError unless a gradient leads from the pictures to the codes."""
    advice = "expected a forward without no_grad, detach or round, that does not write into what it has read"
    try:
        if not pictures.requires_grad:
            raise DgnError(f"{what} passes no gradient to its codes: {advice}")
        [gradient] = torch.autograd.grad(pictures.float().square().sum(), codes, allow_unused=True)
    except RuntimeError as error:
        raise DgnError(f"{what} passes no gradient to its codes ({in_one_line(error)}): {advice}") from error
    if gradient is None or not gradient.isfinite().all() or not gradient.any():
        kind = "no" if gradient is None else "a zero" if gradient.isfinite().all() else "an infinite"
        raise DgnError(f"{what} passes {kind} gradient to its codes: {advice}")
