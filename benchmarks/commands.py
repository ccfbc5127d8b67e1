"""Commands of dgn as processes of their own: what they take, and what they print."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Command:
    """What a command took: wall time, CPU time, peak memory; and what it printed."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    printed: str


def run_command(*arguments: str, checkout: Path = HERE) -> Command:
    """Runs `dgn ARGUMENTS` of a checkout. Raises: CalledProcessError if it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "dgn.jobs", *arguments], cwd=checkout, text=True, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )  # fmt: skip
    assert process.stdout
    printed = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args, printed)
    wall_s = time.perf_counter() - start
    return Command(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3, printed.strip())
