"""Machines, workers and drivers that are lost, each by its own rule: on a cluster of several Ray nodes.

Each test injects faults into a run whose workers sleep instead of drawing, and ends with `dgn verify`: every target
once.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from dgn.runs.run import Run
from dgn.runs.stores import open_store
from tests.helpers.disks import small_disk
from tests.helpers.machines import Job, Machines, processes, workers
from tests.helpers.reliability import lost_and_twice

LINE = ("--targets", "classes:0-15", "--discriminator", "vgg16-mini", "--shard-size", "1", "--workers", "2")


@pytest.fixture
def machines(shared_machines):
    """Two living machines, whatever the test before has killed."""
    shared_machines.top_up(2)
    return shared_machines


@pytest.fixture
def start(tmp_path):
    """Starts jobs; ends what is left of them."""
    jobs = []

    def start(machines, worker="SleepyWorker", url=None, line=LINE):
        jobs.append(Job(machines, tmp_path, worker, "render", url or str(tmp_path / "run"), *line))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()


@pytest.fixture
def whole(dgn, tmp_path):
    """Asserts that `dgn verify` finds the run whole. Returns how many targets it counts as lost and as twice."""

    def check(url=None, num_targets=16):
        code, out, err = dgn("verify", url or tmp_path / "run", "--sample", "0")
        assert code == 0, out + err
        assert out.startswith(f"{num_targets} targets expected, ")
        return lost_and_twice(out)

    return check


def busy(machines):
    """A machine on which a worker lives, and the worker's process."""
    for node in machines.alive:
        for process in workers(node):
            return node, process
    raise AssertionError("no worker anywhere")


def failures(folder):
    return list(Run(open_store(str(folder / "run"))).failures())


def test_a_killed_worker_and_a_killed_machine(machines, start, whole, tmp_path, reliability):
    line = ("--targets", "classes:0-23", *LINE[2:])
    job = start(machines, line=line)
    job.wait_for("done:", 3)
    _, process = busy(machines)
    at = time.time()
    process.kill()
    noticed = job.wait_for("will be tried again")
    assert (noticed["cause"], noticed["levelname"]) == ("error", "WARNING")
    fixed = job.wait_for(f"shard {noticed['shard']:06d} done")
    job.wait_for("worker ready", 3)
    node, _ = busy(machines)
    num_before = len(job.records("will be tried again"))
    gone_at = time.time()
    machines.kill(node)
    gone = job.wait_for("will be tried again", num_before + 1)
    assert gone["cause"] == "machine"
    moved = job.wait_for(f"shard {gone['shard']:06d} done")
    assert job.wait() == 0
    outcome = whole(num_targets=24)
    causes = Counter(failure["cause"] for failure in failures(tmp_path))
    assert causes["error"] == 1, "charged: the shard may have done it"
    assert causes.keys() <= {"error", "worker", "machine"}, "all else is not charged"
    run_id = json.loads((tmp_path / "run" / "run.json").read_text())["run_id"]
    for record in job.records("done:"):
        assert record["run"] == run_id
        assert record["node"] in {node.node_id, *(one.node_id for one in machines.alive)}
    assert sorted(record["shard"] for record in job.records("done:")) == list(range(24))
    reliability(
        "worker process killed", "SIGKILL of a worker's process", "charged, its shard goes to another worker",
        noticed["at"] - at, fixed["at"] - at, *outcome,
    )  # fmt: skip
    reliability(
        "machine killed", "SIGKILL of all its processes", "not charged, its shards go to other machines",
        gone["at"] - gone_at, moved["at"] - gone_at, *outcome,
    )  # fmt: skip


@contextlib.contextmanager
def silent(machines, node):
    """All its processes stand still, as behind a network that drops everything. They wake in the end."""
    frozen = processes(node)
    for process in frozen:
        process.suspend()
    try:
        yield
    finally:
        for process in frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


@pytest.mark.slow
def test_a_silent_machine(machines, start, whole, reliability):
    """At the tail its shard begins elsewhere as a straggler's does; waking up after the end, its commit loses."""
    job = start(machines)
    job.wait_for("done:", 3)
    node, _ = busy(machines)
    at = time.time()
    with silent(machines, node):
        noticed = job.wait_for("rendering it a second time")
        fixed = job.wait_for(f"shard {noticed['shard']:06d} done")
        assert job.wait() == 0
        outcome = whole()
    time.sleep(3)  # time for what woke up to commit
    outcome = whole()
    machines.kill(node)
    reliability(
        "machine silent, at the tail", "SIGSTOP of all its processes, SIGCONT after the end",
        "its shard is done twice, the first commit counts", noticed["at"] - at, fixed["at"] - at, *outcome,
    )  # fmt: skip


@pytest.mark.slow
def test_a_silent_machine_in_a_long_run(machines, start, whole, reliability):
    """With work left there is no straggler's rule: Ray's health check finds it."""
    line = ["--targets", "classes:0-23", "--seeds", "5", "--discriminator", "vgg16-mini", "--shard-size", "1"]
    job = start(machines, "NappingWorker", line=[*line, "--workers", "2"])
    job.wait_for("done:", 3)
    node, _ = busy(machines)
    at = time.time()
    with silent(machines, node):
        noticed = job.wait_for("will be tried again", timeout_s=200)
        assert noticed["cause"] == "machine"
        fixed = job.wait_for(f"shard {noticed['shard']:06d} done", timeout_s=200)
        assert job.wait() == 0
    machines.kill(node)
    outcome = whole(num_targets=120)
    reliability(
        "machine silent, in a long run", "SIGSTOP of all its processes", "not charged, its shard goes elsewhere",
        noticed["at"] - at, fixed["at"] - at, *outcome,
    )  # fmt: skip


def test_a_spot_notice(machines, start, whole, tmp_path, reliability):
    """What `cluster/spot_watch.py` asks of Ray. The machine is gone six seconds later."""
    job = start(machines, "SlowWorker", line=("--targets", "classes:0-3", *LINE[2:]))
    job.wait_for("worker ready", 2)
    node, _ = busy(machines)
    at = time.time()
    subprocess.run(
        [
            str(Path(sys.executable).parent / "ray"), "drain-node", "--address", machines.address,
            "--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice",
            "--deadline-remaining-seconds", "6",
        ], check=True, env=machines.environment, timeout=60,
    )  # fmt: skip
    noticed = job.wait_for("is leaving")
    assert noticed["node"] == node.node_id
    fixed = job.wait_for(f"shard {noticed['shard']:06d} done")
    time.sleep(max(0.0, at + 6 - time.time()))
    machines.kill(node)
    assert job.wait() == 0
    outcome = whole(num_targets=4)
    assert {failure["cause"] for failure in failures(tmp_path)} <= {"preempted", "machine"}, "not charged"
    assert noticed["at"] - at < 6, "before the machine went"
    reliability(
        "spot notice", "ray drain-node, the machine killed 6 s later",
        "no more shards there; its shard begins elsewhere and may still finish first",
        noticed["at"] - at, fixed["at"] - at, *outcome,
    )  # fmt: skip


def test_drivers_that_are_killed_interrupted_or_two(machines, start, whole, bucket, reliability):
    """On S3, one after another: killed by SIGKILL, ended by SIGTERM as by `ray job stop` or Kubernetes, and by Ctrl-C.
    The same command continues each time, at last twice at once."""
    url, num_targets = f"s3://{bucket}/run", 30
    line = ("--targets", f"filters:conv3_1:0-{num_targets - 1}", *LINE[2:])

    def begin():
        jobs.append(start(machines, "NappingWorker", url, line))
        return jobs[-1]

    jobs = []
    begin().wait_for("done:", 2)
    killed_at = time.time()
    jobs[-1].kill()
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        job = begin()
        job.wait_for("done:")
        job.process.send_signal(number)
        assert job.wait() == code
        last = job.log.strip().splitlines()[-1]
        assert last == "dgn: interrupted; repeat the command to continue (dgn pretrain --recipe paper: with --resume)"
        assert "SIGTERM received" not in job.log, "Ray's own end"
    machines.top_up(4)
    num_before = sum(len(job.records("done:")) for job in jobs)
    first, second = begin(), begin()
    at = max(job.wait_for("worker ready")["at"] for job in (first, second))
    noticed = min(first.wait_for("another driver")["at"], second.wait_for("another driver")["at"])
    assert (first.wait(), second.wait()) == (0, 0)
    ended_at = time.time()
    for job in (first, second):
        assert num_before + len(job.records("done:")) <= num_targets, "what was whole is not rendered again"
    outcome = whole(url, num_targets)
    assert not list(Run(open_store(url)).store.list("lease.json")), "the last one cleans up"
    reliability(
        "driver killed", "SIGKILL, the same command again", "continues with what is missing",
        None, jobs[1].wait_for("done:")["at"] - killed_at, *outcome,
    )  # fmt: skip
    reliability(
        "two drivers on one run", "the same command twice at once", "both warn, both finish; first commits count",
        max(0.0, noticed - at), ended_at - at, *outcome,
    )  # fmt: skip


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_the_last_line_is_dgns_own(log_format, machines, start):
    """Ray has warned of each worker that died before that."""
    job = start(machines, "PoisonWorker", line=("--targets", "classes:0-3", *LINE[2:], "--log-format", log_format))
    assert job.wait() == 1
    last = job.log.strip().splitlines()[-1]
    assert last.startswith("dgn: 2 shards failed repeatedly and were left out: 000001, 000002"), job.log


@pytest.mark.slow
def test_a_killed_head(tmp_path, start, whole, reliability):
    """The driver lives on the head and ends with it; the same command on a new cluster continues."""
    machines = Machines({"RAY_gcs_rpc_server_reconnect_timeout_s": "5"})  # Ray's default is a minute
    try:
        machines.add(1)
        job = start(machines)
        job.wait_for("done:", 3)
        at = time.time()
        machines.kill(machines.cluster.head_node)
        assert job.wait(120) != 0
        noticed_at = time.time()
    finally:
        machines.end()
    machines = Machines()
    try:
        machines.add(1)
        again = start(machines)
        fixed = again.wait_for("done:")
        assert again.wait() == 0
        outcome = whole()
    finally:
        machines.end()
    reliability(
        "head killed", "SIGKILL of all its processes but the driver, a new cluster, the same command again",
        "the driver ends (here after 5 s; Ray's default is 60 s), the next one continues",
        noticed_at - at, fixed["at"] - at, *outcome,
    )  # fmt: skip


@pytest.mark.slow
def test_a_jumping_clock(machines, start, whole, reliability):
    at = time.time()
    job = start(machines, "JumpingClockWorker")
    assert job.wait() == 0
    ended_at = time.time()
    outcome = whole()
    assert not job.records("will be tried again")
    reliability(
        "clock that jumps", "workers' clocks set forward by a day, back by two, shard by shard (in the process)",
        "nothing: no deadline or lease reads the wall clock", None, ended_at - at, *outcome,
    )  # fmt: skip


@pytest.fixture
def disk(tmp_path):
    """A disk of one megabyte, and a function that mounts it again."""
    with small_disk(tmp_path / "disk", "1m", may_be_busy=True) as remount:
        yield tmp_path / "disk", remount


@pytest.mark.parametrize("fault", ["full disk", pytest.param("read-only folder", marks=pytest.mark.slow)])
def test_a_disk_that_takes_no_more(fault, machines, start, disk, whole, reliability):
    """One line, exit code 1; the same command continues when there is room again."""
    folder, remount = disk
    url = str(folder / "run")
    job = start(machines, url=url)
    job.wait_for("done:", 3)
    at = time.time()
    if fault == "full disk":
        filler = folder / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        says = "no space left"
    else:
        remount("ro")
        says = "read-only"
    assert job.wait() == 1
    noticed_at = time.time()
    last = job.log.strip().splitlines()[-1]
    assert last.startswith("dgn: ")
    assert says in last.lower()
    assert "repeat the command when the store works" in last
    if fault == "full disk":
        filler.unlink()
    else:
        remount("rw")
    again = start(machines, url=url)
    fixed = again.wait_for("done:")
    assert again.wait() == 0
    outcome = whole(url)
    reliability(
        fault, "a disk of 1 MB is filled" if fault == "full disk" else "the disk is remounted read-only",
        "not charged; the run ends with one line and exit code 1, the same command continues",
        noticed_at - at, fixed["at"] - at, *outcome,
    )  # fmt: skip
