"""Machines, workers and drivers that are lost, each by its own rule: on a cluster of several Ray nodes.

Each test injects one fault into a run of a renderer that sleeps, and ends with `dgn verify`: every target once.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.run import Run
from cluster.storage import open_store
from tests.machines import Job, Machines, actors, processes
from tests.reliability import lost_and_twice

LINE = ("--targets", "classes:0-15", "--discriminator", "vgg16-mini", "--shard-size", "1", "--workers", "2")


@pytest.fixture(scope="module")
def shared_machines():
    machines = Machines()
    yield machines
    machines.end()


@pytest.fixture
def machines(shared_machines):
    """Two living machines, whatever the test before has killed."""
    shared_machines.top_up(2)
    return shared_machines


@pytest.fixture
def start(tmp_path):
    """Starts jobs; ends what is left of them."""
    jobs = []

    def start(machines, actor="SleepyActor", url=None, line=LINE):
        jobs.append(Job(machines, tmp_path, actor, "render", url or str(tmp_path / "run"), *line))
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
    """A machine on which an actor works, and the actor's process."""
    for node in machines.alive:
        for process in actors(node):
            return node, process
    raise AssertionError("no actor anywhere")


def failures(folder):
    return list(Run(open_store(str(folder / "run"))).failures())


def test_a_killed_worker(machines, start, whole, tmp_path, reliability):
    job = start(machines)
    job.wait_for("done:", 3)
    _, process = busy(machines)
    at = time.time()
    process.kill()
    noticed = job.wait_for("will be tried again")
    assert (noticed["cause"], noticed["levelname"]) == ("error", "WARNING")
    mended = job.wait_for(f"shard {noticed['shard']:06d} done")
    assert job.wait() == 0
    outcome = whole()
    assert [f["cause"] for f in failures(tmp_path)] == ["error"], "charged: the shard may have done it"
    run_id = json.loads((tmp_path / "run" / "run.json").read_text())["run_id"]
    for record in job.records("done:"):
        assert record["run"] == run_id
        assert record["node"] in {node.node_id for node in machines.alive}
    assert sorted(record["shard"] for record in job.records("done:")) == list(range(16))
    reliability(
        "worker process killed", "SIGKILL of an actor's process", "charged, its shard goes to another worker",
        noticed["at"] - at, mended["at"] - at, *outcome,
    )  # fmt: skip


def test_a_killed_machine(machines, start, whole, tmp_path, reliability):
    job = start(machines)
    job.wait_for("done:", 3)
    node, _ = busy(machines)
    at = time.time()
    machines.kill(node)
    noticed = job.wait_for("will be tried again")
    mended = job.wait_for(f"shard {noticed['shard']:06d} done")
    assert job.wait() == 0
    outcome = whole()
    assert {f["cause"] for f in failures(tmp_path)} == {"machine"}, "not charged"
    reliability(
        "machine killed", "SIGKILL of all its processes", "not charged, its shards go to other machines",
        noticed["at"] - at, mended["at"] - at, *outcome,
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
        noticed = job.wait_for("begins a second time")
        mended = job.wait_for(f"shard {noticed['shard']:06d} done")
        assert job.wait() == 0
        outcome = whole()
    time.sleep(3)  # time for what woke up to commit
    outcome = whole()
    machines.kill(node)
    reliability(
        "machine silent, at the tail", "SIGSTOP of all its processes, SIGCONT after the end",
        "its shard is done twice, the first commit counts", noticed["at"] - at, mended["at"] - at, *outcome,
    )  # fmt: skip


@pytest.mark.slow
def test_a_silent_machine_in_a_long_run(machines, start, whole, reliability):
    """With work left there is no straggler's rule: Ray's health check finds it."""
    line = ["--targets", "classes:0-23", "--seeds", "5", "--discriminator", "vgg16-mini", "--shard-size", "1"]
    job = start(machines, line=[*line, "--workers", "2"])
    job.wait_for("done:", 3)
    node, _ = busy(machines)
    at = time.time()
    with silent(machines, node):
        noticed = job.wait_for("will be tried again", timeout_s=200)
        assert noticed["cause"] == "machine"
        mended = job.wait_for(f"shard {noticed['shard']:06d} done", timeout_s=200)
        assert job.wait() == 0
    machines.kill(node)
    outcome = whole(num_targets=120)
    reliability(
        "machine silent, in a long run", "SIGSTOP of all its processes", "not charged, its shard goes elsewhere",
        noticed["at"] - at, mended["at"] - at, *outcome,
    )  # fmt: skip


def test_a_spot_notice(machines, start, whole, tmp_path, reliability):
    """What `cluster/spot_watch.py` asks of Ray. The machine is gone twelve seconds later."""
    job = start(machines, "SlowActor", line=("--targets", "classes:0-3", *LINE[2:]))
    job.wait_for("worker ready", 2)
    node, _ = busy(machines)
    time.sleep(2)
    at = time.time()
    subprocess.run(
        [
            str(Path(sys.executable).parent / "ray"), "drain-node", "--address", machines.address,
            "--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice",
            "--deadline-remaining-seconds", "12",
        ], check=True, env=machines.environment, timeout=60,
    )  # fmt: skip
    noticed = job.wait_for("is leaving")
    assert noticed["node"] == node.node_id
    mended = job.wait_for(f"shard {noticed['shard']:06d} done")
    time.sleep(max(0.0, at + 12 - time.time()))
    machines.kill(node)
    assert job.wait() == 0
    outcome = whole(num_targets=4)
    assert {f["cause"] for f in failures(tmp_path)} <= {"preempted", "machine"}, "not charged"
    assert noticed["at"] - at < 12, "before the machine went"
    reliability(
        "spot notice", "ray drain-node, the machine killed 12 s later",
        "no more shards there; its shard begins elsewhere and may still finish first",
        noticed["at"] - at, mended["at"] - at, *outcome,
    )  # fmt: skip


def test_a_killed_driver(machines, start, whole, reliability):
    job = start(machines)
    job.wait_for("done:", 5)
    at = time.time()
    job.kill()
    again = start(machines)
    mended = again.wait_for("done:")
    assert again.wait() == 0
    assert len(again.records("done:")) < 16, "what was whole is not rendered again"
    outcome = whole()
    reliability(
        "driver killed", "SIGKILL, the same line again", "goes on with what is missing",
        None, mended["at"] - at, *outcome,
    )  # fmt: skip


def test_an_interrupted_driver_says_so(machines, start, whole):
    """By SIGTERM, as `ray job stop` and Kubernetes do, and by Ctrl-C; the same line goes on."""
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        job = start(machines)
        job.wait_for("done:", 3)
        job.process.send_signal(number)
        assert job.wait() == code
        last = job.log.strip().splitlines()[-1]
        assert last == "dgn: interrupted; dgn render and dgn judge go on with the same line, dgn pretrain with --resume"
        assert "SIGTERM received" not in job.log, "Ray's own end"
    assert start(machines).wait() == 0
    whole()


@pytest.mark.slow
def test_a_killed_head(tmp_path, start, whole, reliability):
    """The driver lives on the head and ends with it; the same line on a new cluster goes on."""
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
        mended = again.wait_for("done:")
        assert again.wait() == 0
        outcome = whole()
    finally:
        machines.end()
    reliability(
        "head killed", "SIGKILL of all its processes but the driver, a new cluster, the same line again",
        "the driver ends (here after 5 s; Ray's default is 60 s), the next goes on",
        noticed_at - at, mended["at"] - at, *outcome,
    )  # fmt: skip


def test_two_drivers_on_one_run(machines, start, whole, reliability):
    machines.top_up(4)
    line = ["--targets", "classes:0-15", "--seeds", "2", *LINE[2:]]
    first, second = start(machines, line=line), start(machines, line=line)
    at = max(job.wait_for("worker ready")["at"] for job in (first, second))
    noticed = min(first.wait_for("another driver")["at"], second.wait_for("another driver")["at"])
    assert (first.wait(), second.wait()) == (0, 0)
    ended_at = time.time()
    outcome = whole(num_targets=32)
    assert not list(Run(open_store(first.line[1])).store.list("lease.json")), "the last one cleans up"
    reliability(
        "two drivers on one run", "the same line twice at once", "both warn, both finish; first commits count",
        max(0.0, noticed - at), ended_at - at, *outcome,
    )  # fmt: skip


@pytest.mark.slow
def test_a_jumping_clock(machines, start, whole, reliability):
    at = time.time()
    job = start(machines, "JumpingClockActor")
    assert job.wait() == 0
    ended_at = time.time()
    outcome = whole()
    assert not job.records("will be tried again")
    reliability(
        "clock that jumps", "workers' clocks set forward by a day, back by two, shard by shard (in the process)",
        "nothing: no deadline or lease reads the wall clock", None, ended_at - at, *outcome,
    )  # fmt: skip


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")

    def remount(options):
        subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)

    yield folder, remount
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("fault", ["full disk", pytest.param("read-only folder", marks=pytest.mark.slow)])
def test_a_disk_that_takes_no_more(fault, machines, start, small_disk, whole, reliability):
    """One line, exit code 1, nothing rendered in vain; the same line goes on when there is room again."""
    folder, remount = small_disk
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
    assert "the same line goes on" in last
    if fault == "full disk":
        filler.unlink()
    else:
        remount("rw")
    again = start(machines, url=url)
    mended = again.wait_for("done:")
    assert again.wait() == 0
    outcome = whole(url)
    reliability(
        fault, "a disk of 1 MB is filled" if fault == "full disk" else "the disk is remounted read-only",
        "not charged; the run ends with one line and exit code 1, the same line goes on",
        noticed_at - at, mended["at"] - at, *outcome,
    )  # fmt: skip
