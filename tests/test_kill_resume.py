"""SIGKILL for the driver in the middle; the same line finishes the run. On a folder and on a real S3 server."""

import subprocess
import sys
import time

import pytest
import ray

from cluster.run import Run
from cluster.storage import open_store
from tests.conftest import WIDTH


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_kill_and_the_same_line_again(kind, tmp_path, request, dgn, monkeypatch):
    """A folder with a Ray of the driver's own, which dies with it; S3 with a cluster that outlives the driver."""
    if kind == "local":
        url = str(tmp_path / "run")
    else:
        url = f"s3://{request.getfixturevalue('bucket')}/run"
        request.getfixturevalue("local_ray")
        monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    line = [
        sys.executable, "-m", "jobs", "render", url, "--targets", "classes:0-11", "--discriminator", "vgg16-mini",
        "--width", str(WIDTH), "--updates", "12", "--shard-size", "1", "--batch-size", "1", "--views", "1",
    ]  # fmt: skip
    run = Run(open_store(url))

    def commits():
        return {key: run.store.read(key) for key in run.store.list("metadata")}

    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(1200):
            if len(commits()) >= 3:
                break
            assert driver.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
    finally:
        driver.kill()
        driver.wait()
    before = commits()
    assert 3 <= len(before) < 12
    again = subprocess.run(line, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "12 of 12 pictures" in again.stdout
    after = commits()
    assert {key: after[key] for key in before} == before, "finished shards are not rendered again"
    code, verified, error = dgn("verify", url)
    assert code == 0, verified + error
    assert "12 targets expected, 12 found, 0 twice or stray" in verified
