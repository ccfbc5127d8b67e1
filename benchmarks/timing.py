"""Clocks that wait for the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")


def synchronised() -> float:
    """The time, once the device has done everything that was asked of it."""
    if HAS_GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(function: Callable[[], object], repeats: int, warm_ups: int = 1) -> float:
    """The mean time of a call."""
    for _ in range(warm_ups):
        function()
    start = synchronised()
    for _ in range(repeats):
        function()
    return (synchronised() - start) / repeats


def median_s(function: Callable[[], object], repeats: int = 7, warm_ups: int = 2) -> float:
    """Median time of one call, by a GPU's own clock. A CPU is only to show that it runs: one call."""
    if not HAS_GPU:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    for _ in range(warm_ups):
        function()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    torch.cuda.synchronize()
    for first, last in marks:
        first.record()
        function()
        last.record()
    torch.cuda.synchronize()
    return statistics.median(first.elapsed_time(last) for first, last in marks) / 1e3
