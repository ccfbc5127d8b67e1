"""CUDA graphs: thousands of small kernel launches, recorded once and launched as one."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from dgn.method.memory import is_out_of_memory

log = logging.getLogger("dgn")


class Replayed:
    """A function of tensors on a GPU. Its first call runs, its second is recorded, later ones replay the recording.

    The function must do the same work at every call, and between calls keep only memory that it changes in place.
    Inputs have the same shapes every time and may be on any device. Later calls do not change outputs already returned.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], device: torch.device):
        self.function, self.device = function, device
        self.has_run = self.is_refused = False
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.outputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        # From pinned memory a copy does not wait for the work that the device is still doing.
        arriving = [tensor.pin_memory().to(self.device, non_blocking=True) for tensor in inputs]
        if not self.has_run:  # kernels are compiled and chosen, and memory runs out, here and not while recording
            self.has_run = True
            return self.function(*arriving)
        if self.is_refused:
            return self.function(*arriving)
        if self.graph is None:
            self.inputs, graph = arriving, torch.cuda.CUDAGraph()
            try:
                # A stream of this device: torch's own for recording is of whichever device was current first.
                with torch.cuda.graph(graph, stream=torch.cuda.Stream(self.device)):
                    self.outputs = self.function(*self.inputs)
            except Exception as error:  # CUDA's, or whatever a network's own code makes of it
                if is_out_of_memory(error):
                    raise
                log.warning("an update cannot be recorded as a CUDA graph and runs slower without one: %s", error)
                self.is_refused = True
                return self.function(*arriving)
            self.graph = graph
        else:
            for kept, new in zip(self.inputs, arriving, strict=True):
                kept.copy_(new)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)
