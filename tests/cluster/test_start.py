"""Ray for a run on this machine: what is started, with which environment, and for how many workers."""

import json
import math
import signal
import subprocess
import sys

import psutil
import pytest
from ray._private.accelerators import NvidiaGPUAcceleratorManager

from dgn.cluster import connection
from dgn.cluster.start import most_workers, start_ray_ahead
from dgn.runs.config import RunConfig
from tests.helpers.own_ray import short_folder, start, wait_for

STARTED = """
import json, os, sys
import ray
from dgn.cluster import connection
with connection.until_done():
    connection.connect("text", "dgn.cluster.rules", 1)
    @ray.remote
    def about():
        return [os.environ.get("MALLOC_ARENA_MAX"), "dgn.cluster.rules" in sys.modules, os.getpid()]
    first, second = ray.get(about.remote()), ray.get(about.remote())
    processes = ray._private.worker._global_node.all_processes.values()
    names = " ".join(" ".join(started.process.args) for [started] in processes)
    environment = connection.workers_runtime_env()
print(json.dumps([first, second, environment, [name in names for name in ("raylet", "dashboard.py", "monitor.py")]]))
print(json.dumps([os.environ.get(name) for name in ("MALLOC_ARENA_MAX", "RAY_preload_python_modules")]))
print(json.dumps(connection.workers_runtime_env()))
"""


def test_no_more_of_ray_is_started_than_a_run_needs_and_its_processes_are_prepared():
    finished = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True, check=True)
    about, own_environment, afterwards = map(json.loads, finished.stdout.splitlines())
    first, second, runtime_env, is_started = about
    assert first == second == ["1", True, first[2]]  # the process that was started beforehand
    assert runtime_env == {}
    assert is_started == [True, False, False]
    assert own_environment == [None, None]
    assert afterwards["env_vars"]["MALLOC_ARENA_MAX"] == "1"


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"targets": ["classes:9"], "modes": ["untrained"]}, 1),
        ({"targets": ["classes:9"]}, 2),
        ({"targets": ["classes:9", "filters:conv3_1:0-1,7"], "modes": ["untrained"], "seeds": 2}, 8),
        ({"targets": ["classes:0-99"], "modes": ["untrained"], "shard_size": 50}, 2),
        ({"targets": ["classes:0-100"], "modes": ["untrained"], "shard_size": 50}, 3),
        ({"targets": ["classes"], "shard_size": 50}, 16),
        ({"targets": ["classes"]}, 16),
        ({"targets": ["classes:0-99"]}, 16),
        ({"targets": ["classes:heart"]}, 16),
        ({"targets": ["filters:3"]}, 16),
        ({"targets": ["mix:classes:1+2"]}, 16),
        ({"targets": ["all"], "workers": "3"}, 3),
        ({"targets": ["all"], "workers": "2-5"}, 5),
        ({"targets": ["all"], "workers": "40"}, 16),
    ],
)
def test_as_many_processes_are_prepared_as_there_can_be_workers(settings, most, monkeypatch, tmp_path):
    prepared = []
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("ray._common.utils.get_system_memory", lambda: 64e9)
    monkeypatch.setattr(connection, "is_connected", lambda: False)
    monkeypatch.setattr(connection, "connect", lambda *given: prepared.append(given[-1]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    start_ray_ahead(str(tmp_path / "run"), RunConfig(**settings))
    assert prepared == [most]


def test_memory_and_gpus_limit_them_too(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("ray._common.utils.get_system_memory", lambda: 4e9)
    assert most_workers(RunConfig(), math.inf) == 3
    monkeypatch.setattr(NvidiaGPUAcceleratorManager, "get_current_node_num_accelerators", lambda: 2)
    assert most_workers(RunConfig(), math.inf) == 2
    assert most_workers(RunConfig(gpus_per_worker=0.5), math.inf) == 4


@pytest.mark.parametrize("lacking", ["weights", "labels"])
def test_nothing_is_started_ahead_for_a_file_that_is_not_there(lacking, monkeypatch, tmp_path):
    monkeypatch.setattr(connection, "connect", lambda *_: pytest.fail("Ray starts"))
    start_ray_ahead(str(tmp_path / "run"), RunConfig(targets=["classes"], **{lacking: str(tmp_path / "none.txt")}))


@pytest.mark.parametrize(("number", "code", "has_begun"), [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)])
def test_a_signal_while_ray_starts_ends_the_command_and_ray(number, code, has_begun, tmp_path):
    """Without an exception, for which Ray's start is not made. Before, SIGTERM ended with Ray's code, 15. In the 0.4 s
    in which Ray's C++ part starts it still meets Ray's own handler."""
    log = tmp_path / "log"
    targets = ["--targets", "classes:9", "--modes", "untrained"]
    with short_folder() as folder:
        command = start(["render", tmp_path / "run", "--discriminator", "vgg16-mini", *targets], folder, log)
        started = psutil.Process(command.pid)
        wait_for(lambda: "Ray starts" in log.read_text(), command, log)
        if has_begun:
            wait_for(lambda: "gcs_server" in [child.name() for child in started.children()], command, log)
        of_ray = started.children(recursive=True)
        command.send_signal(number)
        assert command.wait(30) == code, log.read_text()
        assert not psutil.wait_procs(of_ray, timeout=30)[1]
    assert [line.split()[0] for line in log.read_text().splitlines()[1:]] == ["dgn:"]
    assert not (tmp_path / "run").exists()
