"""Memory that stays with the process between updates.

glibc hands large blocks back to the kernel as soon as they are free, and every update gets them again, page by page and
cleared: a tenth to a sixth of a CPU's time (docs/performance.md). Other C libraries are left as they are. Afterwards
glibc's settings are its defaults, whatever they were before.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# For processes started for rendering: one pool for all threads, since glibc cannot keep large blocks in others.
WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
# mallopt(3): the most of what is free at the end of the heap, what is asked for at once, blocks that are mapped apart.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT = {_TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20, _MMAP_MAX: 0}
_USUAL = {_TRIM_THRESHOLD: 128 * 2**10, _TOP_PAD: 0, _MMAP_MAX: 65_536}


@contextmanager
def kept() -> Iterator[None]:
    """Freed memory is kept for what comes next, and given back at the end."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "malloc_trim"):
        yield
        return
    assert libc is not None
    for setting, value in _KEPT.items():
        libc.mallopt(setting, value)
    try:
        yield
    finally:
        for setting, value in _USUAL.items():
            libc.mallopt(setting, value)
        libc.malloc_trim(0)
