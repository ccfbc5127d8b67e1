"""`dgn` as a process with a Ray of its own, started as a person starts it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent.parent


@contextlib.contextmanager
def short_folder():
    """Where Ray keeps a session, with its sockets, whose paths must be short. Whatever is left of its daemons ends with
    it."""
    folder = tempfile.mkdtemp(prefix="dgn-")
    yield Path(folder)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(folder in word for word in process.cmdline()):
                process.send_signal(signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def start(line, folder, log, **environment):
    surroundings = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    surroundings |= {"RAY_TMPDIR": str(folder), **environment}
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *line], env=surroundings, stdout=file, stderr=file, cwd=ROOT
        )


def wait_for(condition, process, log):
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())
