"""The spot-notice watcher: a real Ray with token authentication, and a metadata service that speaks IMDSv2."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from tests.conftest import free_port

# A Ray in a process and a folder of its own. It prints its address and nodes, then for every line that it reads the
# draining nodes. Every node is busy, because an idle one ends as soon as it drains.
HOST = """
import json, sys
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(
    initialize_head=True, head_node_args={"num_cpus": 0, "resources": {"busy": 1}, "include_dashboard": False}
)
workers = [cluster.add_node(num_cpus=1, resources={"busy": 1}).node_id for _ in range(int(sys.argv[1]))]
ray.init(address=cluster.address, log_to_driver=False)

@ray.remote(num_cpus=0, resources={"busy": 1})
class Busy:
    pass

actors = [Busy.remote() for _ in [cluster.head_node, *workers]]
ray.get([actor.__ray_ready__.remote() for actor in actors])
print(json.dumps([cluster.address, cluster.head_node.node_id, *workers]), flush=True)
for _ in sys.stdin:
    print(json.dumps(ray._private.state.state.get_draining_nodes()), flush=True)
ray.shutdown()
cluster.shutdown()
"""


class RayOfOurs:
    """What the host process says about its cluster."""

    def __init__(self, process, environment):
        self.process, self.environment = process, environment
        self.address, self.head, *self.workers = json.loads(process.stdout.readline())

    def draining(self):
        """Node id to deadline in ms, as Ray says."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextmanager
def ray_of_ours(num_workers):
    folder = tempfile.mkdtemp(prefix="dgn-")  # a short path, since Ray puts sockets below it
    environment = {**os.environ, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test"}
    process = subprocess.Popen(
        [sys.executable, "-c", HOST, str(num_workers)],
        env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield RayOfOurs(process, environment)
    finally:
        process.stdin.close()
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster():
    with ray_of_ours(2) as ours:
        yield ours


class Metadata(ThreadingHTTPServer):
    """EC2's instance metadata service, version 2: what the watcher uses of it."""

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Answers)
        self.notice, self.num_asked, self.num_without_token = None, 0, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/"

    def give_notice(self, seconds):
        """Returns: the time in the notice, a whole second."""
        until = (datetime.now(UTC) + timedelta(seconds=seconds)).replace(microsecond=0)
        self.notice = {"action": "terminate", "time": until.strftime("%Y-%m-%dT%H:%M:%SZ")}
        return until


class Answers(BaseHTTPRequestHandler):
    def do_PUT(self):
        is_right = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self.answer(200 if is_right else 400, b"a-token")

    def do_GET(self):
        if self.headers["X-aws-ec2-metadata-token"] != "a-token":
            self.server.num_without_token += 1
            self.answer(401)
        elif self.path != "/latest/meta-data/spot/instance-action" or self.server.notice is None:
            self.server.num_asked += 1
            self.answer(404)
        else:
            self.answer(200, json.dumps(self.server.notice).encode())

    def answer(self, status, body=b""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def metadata_service(port=0):
    with Metadata(port) as service:
        yield service
        service.shutdown()


@pytest.fixture
def metadata():
    with metadata_service() as service:
        yield service


@contextmanager
def watcher(cluster, url, *options, address=None):
    """The watcher as the cluster file starts it, except for --address: other clusters run on this machine too."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dgn.cluster.spot_watch", "--address", address or cluster.address, *options],
        env={**cluster.environment, "AWS_EC2_METADATA_SERVICE_ENDPOINT": url},
        text=True, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_notice_drains_its_node_and_no_other(cluster, metadata):
    """Two machines, each with its own service; one gets a notice."""
    node, other = cluster.workers
    with (
        metadata_service() as quiet,
        watcher(cluster, quiet.url, "--node-id", other) as waiting,
        watcher(cluster, metadata.url, "--node-id", node) as process,
    ):
        wait_until(lambda: metadata.num_asked >= 1)
        assert cluster.draining() == {}, "without a notice nothing is drained"
        until = metadata.give_notice(3600)
        _, log = process.communicate(timeout=120)
        wait_until(lambda: quiet.num_asked >= 2)
        assert waiting.poll() is None
    assert process.returncode == 0, log
    assert f"terminate at {until:%Y-%m-%dT%H:%M:%SZ}, draining node {node}" in log
    assert cluster.draining() == {node: until.timestamp() * 1000}
    assert (metadata.num_without_token, quiet.num_without_token) == (0, 0)


def test_a_silent_metadata_service_is_reported_once_and_asked_again(cluster):
    """Not on EC2, or not yet: the watcher keeps asking. The notice that it then gets is late, its time over."""
    node, port = cluster.workers[1], free_port()
    with watcher(cluster, f"http://127.0.0.1:{port}", "--node-id", node) as process:
        lines = []
        while not any("no answer" in line for line in lines):
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        time.sleep(3)  # long enough for a second refusal, which must not be reported
        assert process.poll() is None
        with metadata_service(port) as service:
            service.give_notice(-60)
            start = time.time()
            _, rest = process.communicate(timeout=120)
    assert process.returncode == 0, rest
    assert "no answer" not in rest
    assert cluster.draining()[node] > start * 1000, "the deadline lies ahead"
    assert f"draining node {node}" in rest


def test_a_machine_of_several_nodes_needs_the_node_named(cluster, metadata):
    with watcher(cluster, metadata.url) as process:
        _, log = process.communicate(timeout=120)
    assert process.returncode == 1
    assert log.splitlines()[-1].endswith("expected one: give --node-id")
    assert "has 3 nodes of the cluster" in log


def test_a_stranger_is_refused_in_one_line(cluster, metadata):
    cluster_of_another_token = SimpleNamespace(environment={**cluster.environment, "RAY_AUTH_TOKEN": "wrong"})
    with watcher(cluster_of_another_token, metadata.url, address=cluster.address) as process:
        _, log = process.communicate(timeout=120)
    assert process.returncode == 1
    assert log.splitlines()[-1].startswith(f"cannot talk to Ray at {cluster.address}: ")


def test_a_machine_of_one_node_finds_itself(metadata):
    metadata.give_notice(3600)
    with ray_of_ours(0) as alone, watcher(alone, metadata.url) as process:
        _, log = process.communicate(timeout=120)
        assert process.returncode == 0, log
        assert list(alone.draining()) == [alone.head]
