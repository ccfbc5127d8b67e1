"""Generators of one's own: a frozen module from codes to pictures, such as a GAN's. dgn runs its code."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dgn.errors import DgnError
from dgn.method.precision import exact_float32
from dgn.method.recipes import Recipe
from dgn.networks.checkpoints import check_finite
from dgn.networks.network import copied
from dgn.networks.own_code import OwnCode
from dgn.networks.weights import plain_state, state_sha256
from dgn.text import in_one_line

OUTSIDE = 0.02  # by which colours may leave [0, 1]: more is another range of values
SAME = 1e-3  # how far colours of the same code may differ beside other codes
MAX_NUMBERS = 1 << 20  # of a code; its steps, gradients and moments are kept per target


@dataclass(frozen=True)
class OwnGenerator:
    """A generator that was tried, and its weights on the CPU. Takes the place of a `method.decoder.FrozenDecoder`.

    Args:
        build: returns the module, with any weights.
        code_shape: of one picture's code, whose numbers have mean 0 and deviation 1.
        sha256: of code and weights, as 64 hex digits.
    """

    source: str
    build: Callable[[], nn.Module]
    state: dict[str, Tensor]
    code_shape: tuple[int, ...]
    sha256: str

    def adapted(self, recipe: Recipe) -> Recipe:
        """The recipe, drawing with this generator. Raises: DgnError for the paper's."""
        if recipe.code != "data":
            raise DgnError(
                f"generator {self.source} with preset paper, whose codes are of its own autoencoder: give --preset "
                "standard or draft (in Python preset=)"
            )
        return replace(recipe, generator="own", code_shape=self.code_shape, width=1.0)

    def on(self, device: torch.device) -> nn.Module:
        """The module with its weights, frozen, on a device. Raises: DgnError if it takes other weights there."""
        module = self.build()
        try:
            module.load_state_dict(self.state, assign=True)
        except RuntimeError as error:
            raise DgnError(f"generator {self.source} differs from machine to machine ({in_one_line(error)})") from error
        return module.eval().requires_grad_(False).to(device)


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
    module = _copy(given, name) if isinstance(given, nn.Module) else given()
    if not isinstance(module, nn.Module):
        raise DgnError(f"generator {name} returned a {type(module).__name__}: expected an nn.Module")
    shape = getattr(module, "code_shape", None)
    try:
        code_shape = tuple(int(side) for side in shape)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        code_shape = ()
    if not code_shape or min(code_shape) < 1 or math.prod(code_shape) > MAX_NUMBERS:
        raise DgnError(
            f"generator {name} has the code_shape {shape!r}: expected an attribute with the shape of one code, such as "
            "(128,) or (4, 28, 28)"
        )
    state = plain_state(module)
    for tensor_name, tensor in state.items():
        check_finite(tensor, f"generator {name}: the tensor '{tensor_name}'")
    code = given.sha256 or given.name if isinstance(given, OwnCode) else name
    sha256 = hashlib.sha256(f"{code} {state_sha256(state)}".encode()).hexdigest()
    build = (lambda: _copy(module, name)) if isinstance(given, nn.Module) else given
    found = OwnGenerator(name, build, state, code_shape, sha256)
    _try(found)
    return found


def _copy(module: nn.Module, name: str) -> nn.Module:
    try:
        return copied(module)
    except RuntimeError as error:
        raise DgnError(
            f"generator {name} cannot be copied ({in_one_line(error)}): give a function that returns it"
        ) from error


@exact_float32()
def _try(generator: OwnGenerator) -> None:
    """Raises: DgnError unless the module draws as `own_generator` says."""
    module = generator.on(torch.device("cpu"))
    codes = torch.randn(3, *generator.code_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    what = f"generator {generator.source}"
    try:
        pictures = module(codes)
        again, alone = module(codes.detach()), module(codes.detach()[:1])
    except Exception as error:  # whatever the code raises
        raise DgnError(f"{what} does not run on codes of shape {tuple(codes.shape)} ({in_one_line(error)})") from error
    if not isinstance(pictures, Tensor):
        raise DgnError(f"{what} returned a {type(pictures).__name__}: expected pictures, a tensor (N, 3, H, H)")
    is_square = pictures.ndim == 4 and pictures.shape[2] == pictures.shape[3]
    if not is_square or pictures.shape[:2] != (len(codes), 3):
        raise DgnError(f"{what} drew {len(codes)} codes as {tuple(pictures.shape)}: expected (N, 3, H, H)")
    least, most = pictures.detach().aminmax()
    if not (least >= -OUTSIDE and most <= 1 + OUTSIDE):  # NaN too
        raise DgnError(
            f"{what} draws values from {least:.3g} to {most:.3g}: expected RGB from 0 to 1 (where they go from -1 to "
            "1, let it return (x + 1) / 2)"
        )
    if not pictures.requires_grad:
        raise DgnError(f"{what} passes no gradient to its codes: expected a forward without no_grad or detach")
    if (again - pictures).abs().max() > SAME:
        raise DgnError(f"{what} draws the same codes differently each time: expected one without noise of its own")
    if (alone - pictures[:1]).abs().max() > SAME:
        raise DgnError(f"{what} draws a code differently beside others: expected every picture by itself")
