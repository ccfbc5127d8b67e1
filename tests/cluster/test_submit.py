"""`ray job submit` as the README prints it: a real head on loopback, with its token, and a real S3."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from dgn.runs.run import Run
from dgn.runs.stores import open_store
from tests.conftest import WIDTH, free_port, server

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def ray_folder():
    """A short path, since Ray puts sockets below it; ends the daemons of this head, which alone name the folder."""
    folder = tempfile.mkdtemp(prefix="dgn-")
    yield folder
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if folder.encode() in entry.read_bytes():
                os.kill(int(entry.parent.name), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def test_submit_a_run_to_s3(bucket, s3_server, tmp_path, ray_folder):
    scripts = Path(sys.executable).parent
    readme = re.search(r"ray job submit .*? -- dgn render s3://bucket/run", (ROOT / "README.md").read_text())
    assert readme, "the line that this test runs is the README's"
    port, dashboard = free_port(), free_port()
    environment = {**s3_server, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-this-test"}
    environment["PATH"] = f"{scripts}:{os.environ['PATH']}"
    sources = tmp_path / "checkout"
    left_out = shutil.ignore_patterns(".*", "docs", "__pycache__", "build", "demo-run")
    shutil.copytree(ROOT, sources, ignore=left_out, symlinks=True)
    head = [str(scripts / "ray"), "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
    head += [f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    # An agent whose port is taken lives on without its HTTP service, and no job is ever accepted: 0 takes a free one.
    head += ["--dashboard-agent-listen-port=0", "--disable-usage-stats", f"--temp-dir={ray_folder}"]
    url = f"s3://{bucket}/run"
    line = readme[0].replace("http://HEAD:8265", f"http://127.0.0.1:{dashboard}").replace("s3://bucket/run", url)
    options = ["--targets", "classes:0-1", "--discriminator", "vgg16-mini", "--width", str(WIDTH), "--updates", "3"]
    options += ["--precision", "float32", "--shard-size", "1", "--workers", "1"]
    together = [*line.split(), *options]
    with server(head, dashboard, environment):
        surroundings = {**os.environ, **environment}
        for _ in range(30):
            done = subprocess.run(together, cwd=sources, env=surroundings, capture_output=True, text=True, check=False)
            if "No available agent" not in done.stderr:  # the head answers a little before it takes jobs
                break
            time.sleep(1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 pictures" in done.stdout
    run = Run(open_store(url))
    assert run.committed(run.info().num_shards).count == 2
