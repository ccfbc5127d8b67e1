"""Disks that are soon full, or take nothing any more."""

import os
import subprocess
from contextlib import contextmanager

import pytest


@contextmanager
def small_disk(folder, size, may_be_busy=False):
    """A disk of its own at a new folder, of a size such as `1m`. Gives a function that mounts it again as `ro` or `rw`.

    Skips the test where this machine lets nobody mount.

    Args:
        may_be_busy: whether processes that were killed may still have files open there at the end.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    finally:
        subprocess.run(["umount", *["--lazy"] * may_be_busy, folder], check=True)
