"""The machine that a benchmark's figures come from."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch


def machine() -> dict[str, str | int]:
    """Its GPU where it has one, its cores, processor and the versions that matter."""
    cpuinfo = Path("/proc/cpuinfo")  # where `platform.processor` is empty, as in most of Linux
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpu: dict[str, str | int] = {}
    if torch.cuda.is_available():
        gpu = {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    return gpu | {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": next((d.version for d in metadata.distributions(name="ray")), "none"),
    }
