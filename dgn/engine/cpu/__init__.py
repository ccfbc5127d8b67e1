"""The CPU's engine: convolutions in fewer multiplications, fused steps, memory kept between updates."""

from __future__ import annotations

import os
import platform
import resource
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, fx

from dgn.engine.cpu import convolutions, fused, heap
from dgn.engine.fusion import fuse
from dgn.method.architecture import Architecture, Conv, Weights
from dgn.method.engine import Engine


class CpuEngine(Engine):
    """This machine's CPU.

    Targets with weights of their own go through the generator one after another: on a CPU a grouped convolution is no
    faster than its parts (measured), and one target at a time keeps the caches warm.

    Args:
        is_winograd: whether large convolutions are computed in fewer multiplications.
    """

    sees_targets_apart = True  # as fast, takes one target's memory, and a batch changes no picture's rounding

    def __init__(self, is_winograd: bool = True):
        super().__init__("cpu")
        self.is_winograd = is_winograd
        self.has_bfloat16 = torch.cpu._is_avx512_bf16_supported()
        self.model = f"{_processor()}, {os.cpu_count()} cores{', avx512_bf16' if self.has_bfloat16 else ''}"

    def convolve(self, x: Tensor, weights: Weights, i: int, conv: Conv) -> Tensor:
        return (convolutions.quick if self.is_winograd else super().convolve)(x, weights, i, conv)

    def unbind(self, stacked: Tensor) -> tuple[Tensor, ...]:
        return convolutions.Unbind.apply(stacked)

    def lay_out(self, stacked: Tensor) -> Tensor:
        return convolutions.lay_out(stacked)

    def prepare(self, architecture: Architecture, frozen: Weights, dtype: torch.dtype) -> dict[str, Tensor]:
        weights = super().prepare(architecture, frozen, dtype)
        return weights | convolutions.frozen_kernels(architecture, frozen, dtype) if self.is_winograd else weights

    def fuse(self, network: fx.GraphModule) -> fx.GraphModule:
        return fuse(network, partial(fused.convolution, bool(self.is_winograd)))

    def peak_bytes(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB

    def keep_memory(self) -> AbstractContextManager[None]:
        return heap.kept()


def _processor() -> str:
    with suppress(OSError, UnicodeDecodeError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
