"""Memory kept between updates: the kernel is asked for pages once. In a process of its own, started as workers are."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dgn.cluster.environment import WORKER_ENVIRONMENT

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
pytestmark = [
    pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's settings"),
    pytest.mark.skipif(HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="pages are huge"),
]
PROGRAM = '''
import resource, threading, torch
from dgn.engine.cpu import heap

def least_faults(size, times):
    """The fewest of several blocks': the heap may grow at first, when small blocks take up their space."""
    counts = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(size, dtype=torch.uint8).fill_(1)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts) * resource.getpagesize()

def measure():
    with heap.kept():
        kept = least_faults(2**25, 20)
    try:
        with heap.kept():
            raise KeyError
    except KeyError:
        print(kept, least_faults(2**30, 2))  # more than the heap holds by now

thread = threading.Thread(target=measure)  # in which a worker renders
thread.start()
thread.join()
'''


def test_a_freed_block_is_reused_without_the_kernel_and_returned_at_the_end():
    environment = {**os.environ, **WORKER_ENVIRONMENT}
    del environment["GLIBC_TUNABLES"]  # so that the kernel's answers are counted in pages of one size
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    kept, afterwards = map(int, answer.stdout.split())
    assert kept < 2**20
    assert afterwards > 2**29  # so it is after an error too
