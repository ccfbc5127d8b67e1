"""Engines: what a device does fastest behind the seam of `dgn.method.engine`."""

from __future__ import annotations

import torch

from dgn.errors import DgnError
from dgn.method.engine import Engine


def engine_for(device: torch.device | str | None = None, is_winograd: bool = True) -> Engine:
    """The engine of a device; by default of this machine's first GPU, or its CPU if there is none.

    Args:
        is_winograd: whether a CPU computes its large convolutions in fewer multiplications. A GPU has one form.

    Raises: DgnError for another device than a CPU or GPU, or a GPU that this machine lacks.
    """
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise DgnError(f"unknown device '{device}': expected cpu, cuda or, for the second GPU, cuda:1") from error
    if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
        raise DgnError(f"this machine has no device {device}: PyTorch sees {torch.cuda.device_count()} GPUs")
    if device.type == "cuda":
        from dgn.engine.cuda import CudaEngine  # needs Triton, which only PyTorch's builds for GPUs bring

        return CudaEngine(device)
    if device.type == "cpu":
        from dgn.engine.cpu import CpuEngine

        return CpuEngine(is_winograd)
    raise DgnError(f"dgn cannot draw on device '{device}': expected cpu, cuda or, for the second GPU, cuda:1")


def describe_devices() -> list[str]:
    """One line for each device of this machine that dgn can use."""
    if not torch.cuda.is_available():
        engine = engine_for("cpu")
        has = "in" if engine.has_bfloat16 else "not in"
        return [f"{engine.model}; bfloat16 is {has} hardware; no GPU"]
    lines = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        lines.append(f"cuda:{index} {torch.cuda.get_device_name(index)}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")
    return lines
