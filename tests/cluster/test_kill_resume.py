"""SIGKILL for the driver in the middle; the same command finishes the run. On a folder and on a real S3 server."""

import subprocess
import sys
import time

import pytest
import ray

from dgn.runs.run import Run
from dgn.runs.stores import open_store
from tests.conftest import WIDTH

NUM_TARGETS = 8


@pytest.mark.parametrize("kind", ["local", pytest.param("s3", marks=pytest.mark.slow)])
def test_kill_and_the_same_command_again(kind, tmp_path, request, dgn, monkeypatch):
    """A folder with a Ray of the driver's own, which dies with it; S3 with a cluster that outlives the driver, as
    test_faults.py has it for workers that draw nothing."""
    if kind == "local":
        url = str(tmp_path / "run")
    else:
        url = f"s3://{request.getfixturevalue('bucket')}/run"
        request.getfixturevalue("local_ray")
        monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    command = [
        sys.executable, "-m", "dgn.jobs", "render", url, "--targets", f"classes:0-{NUM_TARGETS - 1}", "--discriminator",
        "vgg16-mini", "--width", str(WIDTH), "--updates", "8", "--shard-size", "1", "--batch-size", "1", "--views", "1",
        "--workers", "2",
    ]  # fmt: skip
    run = Run(open_store(url))

    def commits():
        return {key: run.store.read(key) for key in run.store.list("metadata")}

    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(1200):
            if len(commits()) >= 2:
                break
            assert driver.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
    finally:
        driver.kill()
        driver.wait()
    before = commits()
    assert 2 <= len(before) < NUM_TARGETS
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{NUM_TARGETS} of {NUM_TARGETS} pictures" in again.stdout
    after = commits()
    assert {key: after[key] for key in before} == before, "finished shards are not rendered again"
    code, verified, error = dgn("verify", url)
    assert code == 0, verified + error
    assert f"{NUM_TARGETS} targets expected, {NUM_TARGETS} found, 0 duplicate or stray" in verified
