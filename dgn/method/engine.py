"""How a device does the method's work: the one seam between the formulas and the hardware.

`Engine` is stock PyTorch and runs anywhere. `dgn.engine` has a faster one for CPUs and one for CUDA devices; nothing
else in dgn asks what kind of device it runs on.

Shapes: N targets, K features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx

from dgn.method.architecture import Architecture, Conv, Weights
from dgn.method.generator import convolve, generate, generate_shared, own_statistics

Update = Callable[..., tuple[Tensor, ...]]
BETAS, EPS = (0.9, 0.999), 1e-8  # of AdaMax; paper: Table 1


class Engine:
    """How a device draws, optimises, fuses and manages memory, in stock PyTorch."""

    is_gpu = False
    has_bfloat16 = False  # whether the hardware multiplies it
    is_winograd: bool | None = None  # convolutions in fewer multiplications; None: the device has one form
    sees_targets_apart = False  # whether an update takes one target after another
    usual_batch_size: int | None = 4  # None: as many as fit into memory
    tuning_batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)  # in the order in which `dgn tune` tries them
    updates_per_wait = 1  # while timing: waiting for the device after every update would slow a GPU down
    scoring_batch_size = 16

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.is_symbolic = self.device == torch.device("meta")  # tensors have shapes and no values
        self.name = str(self.device)  # kept in rows: 'cpu', or the GPU's name
        self.model = self.name  # what measurements are filed under: the name with everything that decides the speed

    def draw(self, architecture: Architecture, own: Weights, shared: Weights, features_NK: Tensor) -> Tensor:
        """`generator.generate` for N targets: (N, 3, 224, 224).

        Args:
            own: stacked weights (N, ...); `alpha` alone in the pretrained mode.
            shared: the frozen weights of a decoder, as `prepare` returns them; empty in the untrained mode.
        """
        if "conv0.weight" not in own:
            return generate_shared(architecture, shared, features_NK, own_statistics, self.convolve)
        each = {name: self.unbind(tensor) for name, tensor in own.items()}
        return torch.stack([
            generate(architecture, {name: parts[n] for name, parts in each.items()}, features_K, self.convolve)
            for n, features_K in enumerate(features_NK.unbind())
        ])  # fmt: skip

    def convolve(self, x: Tensor, weights: Weights, i: int, conv: Conv) -> Tensor:
        """The generator's i-th convolution and its ReLU, see `generator.convolve`."""
        return convolve(x, weights, i, conv)

    def unbind(self, stacked: Tensor) -> tuple[Tensor, ...]:
        """Stacked weights (N, ...) as N weights."""
        return stacked.unbind()

    def prepare(self, architecture: Architecture, frozen: Weights, dtype: torch.dtype) -> dict[str, Tensor]:
        """A decoder's weights in the form in which every update reads them: kernels in the generator's dtype."""
        return {
            name: weight.to(dtype, memory_format=torch.channels_last) if name.endswith(".weight") else weight
            for name, weight in frozen.items()
        }

    def lay_out(self, stacked: Tensor) -> Tensor:
        """Stacked weights, or their optimiser's state, in the memory order that `draw` reads fastest."""
        return stacked

    def adamax(self, variables: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        """AdaMax over stacked variables. It works element by element, so targets stay independent."""
        return torch.optim.Adamax(variables, lr=learning_rate, betas=BETAS, eps=EPS)

    def set_learning_rate(self, optimiser: torch.optim.Optimizer, rate: float) -> None:
        """Between two updates."""
        for group in optimiser.param_groups:
            group["lr"] = rate

    def repeated(self, update: Update) -> Update:
        """The same function of tensors, faster if it is called many times with the same shapes."""
        return update

    def fuse(self, network: fx.GraphModule) -> fx.GraphModule:
        """A frozen network, with steps fused that the device runs faster together."""
        return network

    def selected(self) -> AbstractContextManager[Any]:
        """A context in which this is the current device, as kernels and graphs need it."""
        return nullcontext()

    def synchronize(self) -> None:
        """Waits until the device has done everything that was asked of it."""

    def release_memory(self) -> None:
        """Gives cached memory that is not in use back to the device."""

    def free_bytes(self) -> float:
        """Device memory that a batch may still use; infinite if batches are not sized by it."""
        return math.inf

    def peak_bytes(self) -> int:
        """The most device memory that this process has held."""
        return 0

    def keep_memory(self) -> AbstractContextManager[None]:
        """A context for a process that does nothing but render: memory freed within it is kept for the next update."""
        return nullcontext()
