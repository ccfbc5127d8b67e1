"""CUDA graphs: work of thousands of small launches, recorded once and launched as one."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Replayed:
    """A function of tensors on a GPU: its first call runs, its second is recorded, and that is replayed from then on.

    The function must do the same work at every call and keep no memory of its own between calls but what it changes in
    place. Takes tensors of the same shapes every time, on any device; gives tensors that later calls leave alone.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], device: torch.device):
        self.function, self.device = function, device
        self.has_run = self.is_refused = False
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.outputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        # Pinned, a copy does not wait for what the device is still at.
        arriving = [tensor.pin_memory().to(self.device, non_blocking=True) for tensor in inputs]
        if not self.has_run:  # kernels are compiled and chosen, and memory falls short, here and not while recording
            self.has_run = True
            return self.function(*arriving)
        if self.is_refused:
            return self.function(*arriving)
        if self.graph is None:
            self.inputs, graph = arriving, torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    self.outputs = self.function(*self.inputs)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                log.warning("an update that cannot be recorded as a CUDA graph runs slower, without: %s", error)
                self.is_refused = True
                return self.function(*arriving)
            self.graph = graph
        else:
            for kept, new in zip(self.inputs, arriving, strict=True):
                kept.copy_(new)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


def is_out_of_memory(error: BaseException) -> bool:
    """A GPU's own error, what became of it while a graph was recorded, or the CPU allocator's RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return True
    return error.__context__ is not None and is_out_of_memory(error.__context__)
