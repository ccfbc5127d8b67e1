"""A Ray cluster of several machines on this one, and jobs on it whose driver is a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

from dgn.networks.registry import network_named

ROOT = Path(__file__).parent.parent.parent
CPUS = 2  # of each machine, so two workers
LEAN = {"RAY_prestart_worker_first_driver": "0"}  # else each machine starts processes that no worker of ours can use


class Machines:
    """Starts with a head that does no work. `end` ends every process."""

    def __init__(self, environment: dict[str, str] | None = None):
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), **LEAN, **(environment or {})}
        head = {"num_cpus": 0, "include_dashboard": False, "include_log_monitor": False}
        with surroundings(self.environment):
            self.cluster = Cluster(initialize_head=True, head_node_args=head)

    @property
    def address(self) -> str:
        return self.cluster.address

    @property
    def alive(self):
        return list(self.cluster.worker_nodes)

    def add(self, count: int = 1) -> None:
        with surroundings(self.environment):
            for _ in range(count):
                self.cluster.add_node(num_cpus=CPUS, include_log_monitor=False)

    def top_up(self, count: int) -> None:
        self.add(count - len(self.alive))

    def kill(self, node) -> None:
        """As a power failure: no process of the machine can say that it ends."""
        for process in processes(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.cluster.remove_node(node, allow_graceful=False)

    def end(self) -> None:
        self.cluster.shutdown()


def processes(node) -> list[psutil.Process]:
    """The machine's daemons and their children: its raylet's are the workers."""
    daemons = [info.process.pid for group in node.all_processes.values() for info in group]
    found = []
    for pid in daemons:
        with contextlib.suppress(psutil.NoSuchProcess):
            daemon = psutil.Process(pid)
            found += [daemon, *daemon.children(recursive=True)]
    return found


def workers(node) -> list[psutil.Process]:
    """Processes of workers that live on the machine, by the title that Ray gives them: `ray::CLASS.METHOD`."""
    found = []
    for process in processes(node):
        with contextlib.suppress(psutil.Error):
            if re.match(r"ray::\w+Worker\b", " ".join(process.cmdline())):
                found.append(process)
    return found


@contextlib.contextmanager
def surroundings(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Job:
    """A driver's process, started by `python -m tests.helpers.fake_render`, and what it logs, as JSON."""

    def __init__(self, machines: Machines, folder: Path, worker: str, *line: str):
        self.log_file = folder / f"job-{time.monotonic_ns()}.log"
        command = [
            sys.executable,
            "-m",
            "tests.helpers.fake_render",
            worker,
            line[0],
            "--log-format",
            "json",
            *line[1:],
        ]
        self.line = list(line)
        layers = folder / "layers.pickle"
        layers.write_bytes(pickle.dumps(network_named("vgg16-mini").layers))
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                env={**machines.environment, "RAY_ADDRESS": machines.address, "DGN_TEST_LAYERS": str(layers)},
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def records(self, text: str = "") -> list[dict]:
        """Log records whose message has the text; `at` is when, in seconds."""
        found = []
        for line in self.log.splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and text in record.get("message", ""):
                    found.append({**record, "at": record["timestamp_ns"] / 1e9})
        return found

    def wait_for(self, text: str, count: int = 1, timeout_s: float = 120) -> dict:
        """The count-th record with the text."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            found = self.records(text)
            if len(found) >= count:
                return found[count - 1]
            assert self.process.poll() is None, f"ended with {self.process.returncode} before '{text}':\n{self.log}"
            time.sleep(0.05)
        raise AssertionError(f"no '{text}' within {timeout_s} s:\n{self.log}")

    def wait(self, timeout_s: float = 300) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s} s:\n{self.log}") from None

    def kill(self) -> None:
        """As a machine that loses power. Ray ends what the driver had started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
