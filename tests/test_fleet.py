"""The cluster's machines: folders that they do not share, workers that come and go with the work."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster import fleet
from dgn.errors import DgnError
from tests.machines import ROOT, Job, Machines

LINE = ("--targets", "classes:0-7", "--discriminator", "vgg16-mini", "--shard-size", "1")


@pytest.fixture(scope="module")
def machines():
    machines = Machines()
    yield machines
    machines.end()


def test_a_cluster_whose_machines_are_still_to_come(machines, tmp_path):
    """A head without work, as `ray_cluster.yaml` begins: Ray does not tell what its autoscaler may start."""
    job = Job(machines, tmp_path, "FakeActor", "render", str(tmp_path / "run"), *LINE)
    assert job.wait() == 2
    assert job.log.strip().splitlines()[-1] == (
        "dgn: no machine of the cluster takes work now: with an autoscaler say what it may start, for instance "
        "--workers 0-8 --gpus-per-worker 1"
    )
    assert not (tmp_path / "run").exists()


def test_an_address_where_nobody_listens(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(DgnError, match=r"no Ray cluster at RAY_ADDRESS=127\.0\.0\.1:1: .*; mend or unset it"):
        fleet.connect()


def test_where_ray_does_not_tell_who_leaves_nobody_does(monkeypatch, caplog):
    """What it tells is private, and may be gone with any of its versions."""
    monkeypatch.delattr("ray._private.state.GlobalState.get_draining_nodes")
    fleet._warn_once.cache_clear()
    assert fleet.leaving() == set()
    assert fleet.leaving() == set()
    assert caplog.text.count("cannot ask which machines are leaving") == 1


@pytest.mark.parametrize(("model", "is_old"), [("T4", True), ("L4", False)])
def test_gpus_without_bfloat16_are_known_by_their_model(monkeypatch, model, is_old):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"GPU": 1.0, f"accelerator_type:{model}": 1.0})
    assert fleet.has_old_gpus() is is_old


def test_an_address_where_no_cluster_is(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "render", str(tmp_path / "run"), *LINE],
        cwd=ROOT, env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("dgn: no Ray cluster at RAY_ADDRESS=127.0.0.1:1: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a machine with a disk of its own")
def test_a_folder_that_a_machine_does_not_share_is_refused(machines, tmp_path):
    """The second machine is a Ray node in a mount namespace where another disk lies over the folder."""
    machines.add(1)
    shared = tmp_path / "data"
    shared.mkdir()
    join = f'"{Path(sys.executable).parent}/ray" start --address={machines.address} --num-cpus=2 --block'
    node = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f'mount -t tmpfs tmpfs "{shared}" && exec {join}'],
        env=machines.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        time.sleep(1)
        if node.poll() is not None:
            pytest.skip(f"no mount namespace here: {node.stderr.read().strip()}")
        _wait_for_machines(machines, 3)
        job = Job(machines, tmp_path, "FakeActor", "render", str(shared / "run"), *LINE)
        assert job.wait() == 2
        last = job.log.strip().splitlines()[-1]
        assert last.startswith(f"dgn: {shared / 'run'} is not shared: the machine ")
        assert "give s3://bucket/prefix" in last
        assert not list(shared.iterdir()), "nothing is written"
    finally:
        for process in [*psutil.Process(node.pid).children(recursive=True), node]:
            process.kill()
        node.wait()


def test_a_worker_of_another_machines_folder_does_not_start(tmp_path, local_ray):
    """For machines that join later: an actor reads run.json and finds the driver's run, or none."""
    from cluster.run import Run
    from cluster.storage import open_store
    from dgn.errors import StoreError

    with pytest.raises(StoreError, match="holds no run, not the run 20261125"):
        Run(open_store(str(tmp_path))).expect("20261125-000000-abcdef")


def _wait_for_machines(machines, count):
    """Until so many are alive, the head included."""
    code = f"import ray; ray.init('{machines.address}'); print(sum(n['Alive'] for n in ray.nodes()))"
    for _ in range(30):
        done = subprocess.run(
            [sys.executable, "-c", code], env=machines.environment, capture_output=True, text=True, check=True
        )
        if done.stdout.split()[-1] == str(count):
            return
        time.sleep(1)
    raise AssertionError(f"{done.stdout} machines, not {count}")


@pytest.mark.slow
def test_machines_are_asked_for_while_there_is_work_and_given_back(tmp_path):
    """Ray's autoscaler over machines that are processes and say that they have a GPU: from none to --workers' most, and
    back to none. Without --workers a cluster without machines is refused, since Ray does not tell what may come."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a PID namespace")
    line = [
        sys.executable, "-m", "tests.fake_render", "SleepyActor", "render", str(tmp_path / "run"),
        *LINE, "--targets", "classes:8-23", "--workers", "0-2", "--gpus-per-worker", "1",
    ]  # fmt: skip
    # A folder of Ray's own too, where the next Ray of this machine would look for a cluster to join.
    hidden = 'mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && exec "$@"'
    done = subprocess.run(
        [
            "unshare", "-m", "-p", "-f", "--mount-proc", "sh", "-c", hidden, "sh",
            sys.executable, "-m", "tests.autoscaled", *line,
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stdout.split("\n")[:3] == ["before 0", "most 2", "after 0 exit 0"], done.stdout + done.stderr
