"""Commands of dgn as processes of their own: what they take, and what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
# Between this process and the command: a child's peak memory begins with that of its parent, and torch is large.
# It adopts and awaits processes that outlive the command by a moment, or their CPU time would be missing.
SMALL_PARENT = """
import ctypes, json, os, resource, subprocess, sys, time
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
start = time.perf_counter()
printed = subprocess.run([sys.executable, "-m", "dgn.jobs", *sys.argv[1:]], check=True, text=True, stdout=-1).stdout
wall_s = time.perf_counter() - start
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3, printed.strip()]))
"""


@dataclass(frozen=True)
class Command:
    """What a command took: wall time, CPU time of all its processes, peak memory of the largest; what it printed."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    printed: str


def run_command(*arguments: str, checkout: Path = HERE) -> Command:
    """Runs `dgn ARGUMENTS` of a checkout. Raises: CalledProcessError if it fails."""
    measured = subprocess.run(
        [sys.executable, "-c", SMALL_PARENT, *arguments], cwd=checkout, check=True, text=True, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )  # fmt: skip
    return Command(*json.loads(measured.stdout))
