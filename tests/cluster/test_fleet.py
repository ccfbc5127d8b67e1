"""The cluster's machines: folders that they do not share, workers that come and go with the work."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray

from dgn.cluster import fleet
from dgn.engine import engine_for
from dgn.errors import DgnError, StoreError
from dgn.runs.run import Run
from dgn.runs.stores import open_store
from tests.helpers.machines import ROOT, Job, Machines

LINE = ("--targets", "classes:0-7", "--discriminator", "vgg16-mini", "--shard-size", "1")


def test_a_cluster_whose_machines_are_still_to_come(tmp_path):
    """A head that does no work, as `ray_cluster.yaml` begins: Ray does not say what its autoscaler may start."""
    head = Machines()
    try:
        job = Job(head, tmp_path, "FakeWorker", "render", str(tmp_path / "run"), *LINE)
        assert job.wait() == 2
    finally:
        head.end()
    assert job.log.strip().splitlines()[-1] == (
        "dgn: no machine of the cluster takes work now: with an autoscaler say what it may start, for instance "
        "--workers 0-8 --gpus-per-worker 1"
    )
    assert not (tmp_path / "run").exists()


def test_an_address_where_no_cluster_is(monkeypatch, dgn, tmp_path):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)  # the Ray of other tests may be this process's
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    code, _, error = dgn("render", tmp_path / "run", *LINE)
    assert code == 2
    last = error.splitlines()[-1]
    assert last.startswith("dgn: no Ray cluster at RAY_ADDRESS=127.0.0.1:1: ")
    assert last.endswith("; correct or unset it")
    assert not (tmp_path / "run").exists()


def test_where_ray_does_not_say_who_leaves_nobody_does(monkeypatch, caplog):
    """The interface that says it is private, and may be gone with any version of Ray."""
    monkeypatch.delattr("ray._private.state.GlobalState.get_draining_nodes")
    fleet._warn_once.cache_clear()
    assert fleet.leaving() == set()
    assert fleet.leaving() == set()
    assert caplog.text.count("cannot find out which machines are leaving") == 1


GB = 1e9


@pytest.mark.parametrize(
    ("machines", "asked", "num_shards", "num_workers", "cpus_each"),
    [
        pytest.param([(2, 16)], None, 100, 2, 1, id="a core each"),
        pytest.param([(16, 9)], None, 100, 4, 4, id="memory for four"),
        pytest.param([(2, 1)], None, 100, 1, 2, id="memory for none"),
        pytest.param([(16, 64)], None, 1, 1, 16, id="one shard gets all cores"),
        pytest.param([(16, 64)], None, 3, 3, 5, id="three shards"),
        pytest.param([(0, 9), (4, 64), (4, 5)], None, 100, 4, 2, id="the same for all, so that the smallest has room"),
        pytest.param([(2, 64), (16, 64)], None, 100, 18, 1, id="machines of two sizes"),
        pytest.param([(2, 64), (16, 5)], None, 100, 2, 8, id="memory decides, and the smallest has no room"),
        pytest.param([(16, 1)], (3, 3), 100, 3, 5, id="whoever asks answers for the memory"),
        pytest.param([(2, 64)], (4, 4), 100, 4, 1, id="more than cores"),
    ],
)
def test_workers_on_cpus(monkeypatch, machines, asked, num_shards, num_workers, cpus_each):
    """By cores and GB of each machine; a worker takes 2 GB."""
    nodes = [{"Resources": {"CPU": cores, "memory": memory * GB} if cores else {}} for cores, memory in machines]
    monkeypatch.setattr(fleet, "machines", lambda: nodes)
    chosen = fleet.choose_workers(asked, None, 2 * GB, num_shards)
    assert (chosen.at_most, chosen.cpus_each) == (num_workers, cpus_each)
    if not asked:
        assert fleet.num_places(chosen) == num_workers


@pytest.mark.parametrize(
    ("machines", "asked", "num_trainers", "gpus_each"),
    [
        ([{"CPU": 4}, {"CPU": 2}, {"CPU": 0}], None, 2, 0),
        ([{"CPU": 4}], 3, 3, 0),
        ([{"CPU": 4, "GPU": 2}, {"CPU": 4, "GPU": 1}, {"CPU": 8}], None, 3, 1),
        ([{"CPU": 4, "GPU": 2}], 1, 1, 1),
    ],
)
def test_trainers(monkeypatch, machines, asked, num_trainers, gpus_each):
    monkeypatch.setattr(fleet, "machines", lambda: [{"Resources": resources} for resources in machines])
    chosen = fleet.choose_trainers(asked)
    assert (chosen.at_most, chosen.gpus_each) == (num_trainers, gpus_each)


def test_trainers_without_a_device_each_are_refused(monkeypatch):
    monkeypatch.setattr(fleet, "machines", lambda: [{"Resources": {"CPU": 4, "GPU": 2}}])
    with pytest.raises(DgnError, match="--workers 3: the cluster has 2 GPUs, one for each worker"):
        fleet.choose_trainers(3)
    monkeypatch.setattr(fleet, "machines", lambda: [{"Resources": {"CPU": 0}}])
    for asked in (None, 3):
        with pytest.raises(DgnError, match="no machine of the cluster takes work now"):
            fleet.choose_trainers(asked)


@pytest.mark.usefixtures("local_ray")
def test_whether_gpus_have_bfloat16_is_asked_on_each_machine(monkeypatch, caplog):
    """Of a machine that says it has a GPU whatever its name; what its process finds is this CPU."""
    [node] = ray.nodes()
    monkeypatch.setattr(fleet, "GPU_SHARE", 0)
    gpus = {"GPU": 2.0, "accelerator_type:RTX": 1.0}
    monkeypatch.setattr(fleet, "machines", lambda: [{**node, "Resources": gpus}, {**node, "Resources": {"CPU": 4.0}}])
    assert fleet.gpus_have_bfloat16() is engine_for("cpu").has_bfloat16
    monkeypatch.setattr(fleet, "_has_bfloat16", ray.remote(num_cpus=0)(lambda: False))
    assert not fleet.gpus_have_bfloat16()
    monkeypatch.setattr(fleet, "machines", lambda: [{**node, "Resources": {"CPU": 4.0}}])
    assert fleet.gpus_have_bfloat16(), "machines are still to come, and their workers will see"
    assert not caplog.records
    lost = {**node, "NodeID": "0" * 56, "Resources": gpus}
    monkeypatch.setattr(fleet, "machines", lambda: [lost])
    assert not fleet.gpus_have_bfloat16()
    assert "does not say whether its GPU has bfloat16 in hardware" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a machine with a disk of its own")
def test_a_folder_that_a_machine_does_not_share_is_refused(shared_machines, tmp_path):
    """The second machine is a Ray node in a mount namespace where another disk lies over the folder.

    No test comes after this one on the shared cluster: it takes Ray many seconds to see that this machine is gone.
    """
    shared_machines.top_up(1)
    num_alive = 1 + len(shared_machines.alive)
    shared = tmp_path / "data"
    shared.mkdir()
    join = f'"{Path(sys.executable).parent}/ray" start --address={shared_machines.address} --num-cpus=2 --block'
    node = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f'mount -t tmpfs tmpfs "{shared}" && exec {join}'],
        env=shared_machines.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        time.sleep(1)
        if node.poll() is not None:
            pytest.skip(f"no mount namespace here: {node.stderr.read().strip()}")
        _wait_for_machines(shared_machines, num_alive + 1)
        job = Job(shared_machines, tmp_path, "FakeWorker", "render", str(shared / "run"), *LINE)
        assert job.wait() == 2
        last = job.log.strip().splitlines()[-1]
        assert last.startswith(f"dgn: {shared / 'run'} is not shared: the machine ")
        assert "give s3://, gs:// or az://bucket/prefix" in last
        assert not list(shared.iterdir()), "nothing is written"
    finally:
        for process in [*psutil.Process(node.pid).children(recursive=True), node]:
            process.kill()
        node.wait()


def test_a_worker_of_another_machines_folder_does_not_start(tmp_path):
    """For machines that join later: a worker reads run.json and finds the driver's run, or none."""
    with pytest.raises(StoreError, match="holds no run instead of the run 20261125-000000-abcdef"):
        Run(open_store(str(tmp_path))).expect("20261125-000000-abcdef")


def _wait_for_machines(machines, count):
    """Until so many are alive, the head included."""
    code = (
        "import ray, time\n"
        f"ray.init('{machines.address}', log_to_driver=False)\n"
        f"until = time.monotonic() + 60\n"
        f"while (alive := sum(node['Alive'] for node in ray.nodes())) != {count} and time.monotonic() < until:\n"
        "    time.sleep(0.2)\n"
        "print(alive)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=machines.environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == str(count), "machines"


@pytest.mark.slow
def test_machines_are_asked_for_while_there_is_work_and_given_back(tmp_path):
    """Ray's autoscaler over machines that are processes and say that they have a GPU: from none to --workers' most, and
    back to none. Without --workers a cluster without machines is refused, since Ray does not say what may come."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a PID namespace")
    line = [
        sys.executable, "-m", "tests.helpers.fake_render", "NappingWorker", "render", str(tmp_path / "run"),
        *LINE, "--targets", "classes:8-23", "--workers", "0-2", "--gpus-per-worker", "1",
    ]  # fmt: skip
    # A folder of Ray's own too, where the next Ray of this machine would look for a cluster to join.
    hidden = 'mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && exec "$@"'
    done = subprocess.run(
        [
            "unshare", "-m", "-p", "-f", "--mount-proc", "sh", "-c", hidden, "sh",
            sys.executable, "-m", "tests.helpers.autoscaled", *line,
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stdout.split("\n")[:3] == ["before 0", "most 2", "after 0 exit 0"], done.stdout + done.stderr
