"""Memory that stays with the process between updates.

glibc returns large blocks to the kernel as soon as they are freed. Every update then gets them again, page by page and
zeroed, which takes a tenth to a sixth of a CPU's time (docs/performance.md). Other C libraries are left alone.

This changes the whole process and cannot be undone exactly: glibc does not report its settings, so afterwards they are
its defaults. It is therefore for processes that were started to render, not for a notebook.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# mallopt(3): what may stay free at the end of the heap, what is requested at once, how many blocks are mapped apart.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT = {_TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20, _MMAP_MAX: 0}
_USUAL = {_TRIM_THRESHOLD: 128 * 2**10, _TOP_PAD: 0, _MMAP_MAX: 65_536}


@contextmanager
def kept() -> Iterator[None]:
    """Keeps freed memory for the next allocation, and returns it to the kernel at the end."""
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
