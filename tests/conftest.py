import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from functools import cache
from pathlib import Path

import pytest

# PyTorch and Ray are imported where they are needed, because tests of pure modules start in a moment without them.
from tests.helpers.reliability import Fault, note

os.environ.setdefault("RAY_worker_niceness", "0")  # else other tests on the same cores starve Ray's workers
signal.signal(signal.SIGINT, signal.default_int_handler)  # else jobs of a pytest in the background are deaf to Ctrl-C

# For `pytest -n 2 --dist loadfile --no-loadscope-reorder`: long tests first, or one process ends long after the other.
LONG_FIRST = ("tests/cluster", "tests/test_", "tests/security", "tests/jobs", "tests/networks", "tests/api")
WIDTH = 0.125  # of the generator in tests: the same code, a sixty-fourth of the arithmetic
NARROW = 0.03125  # where numbers are compared in float64, which takes a CPU longest


def pytest_collection_modifyitems(items):
    def place(item):
        return next((n for n, start in enumerate(LONG_FIRST) if item.nodeid.startswith(start)), len(LONG_FIRST))

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def untuned(tmp_path_factory):
    """No test reads or writes what the person at this machine has tuned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DGN_TUNED", str(tmp_path_factory.mktemp("tuned") / "tuned.json"))
        yield


@pytest.fixture(scope="session")
def mini_weights():
    from dgn.networks.weights import load_weights

    return load_weights("vgg16-mini")


@pytest.fixture(scope="session")
def mini(mini_weights):
    from dgn.networks.frozen import FrozenNetwork

    return FrozenNetwork(mini_weights)


@pytest.fixture(scope="session")
def mini_float64(mini_weights):
    import torch

    from dgn.networks.frozen import FrozenNetwork

    return FrozenNetwork(mini_weights, dtype=torch.float64)


@pytest.fixture(scope="session")
def decoder():
    """For preset standard."""
    from dgn.method.decoder import random_decoder
    from dgn.method.recipes import RenderConfig

    return random_decoder(RenderConfig.from_preset("standard", width=WIDTH).pretrained)


@pytest.fixture
def paper_config():
    from dgn.method.recipes import RenderConfig

    return RenderConfig.from_preset("paper", "float64", width=WIDTH)


@pytest.fixture
def quick_config():
    """The standard preset, shortened."""
    from dgn.method.recipes import RenderConfig

    return RenderConfig.from_preset("standard", "float32", width=WIDTH, num_updates=6, num_views=2)


def free_port():
    """A port that no outgoing connection takes before its server binds it, as it may one that the system hands out."""
    while True:
        port = random.SystemRandom().randrange(20000, 32768)  # above Ray's workers, below the system's own choice
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def server(command, port, env=None):
    """A server of ours on loopback, stopped by its own handle."""
    process = subprocess.Popen(
        command, env={**os.environ, **(env or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=10)


@contextlib.contextmanager
def running_s3(folder):
    """A real S3 server that keeps its objects in the folder. Gives the environment that reaches it."""
    port = free_port()
    env = {
        "BIND_HOST": "127.0.0.1", "MINISTACK_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "s3",
        "S3_PERSIST": "1", "S3_DATA_DIR": str(folder), "STATE_DIR": str(folder),
    }  # fmt: skip
    with server([str(Path(sys.executable).parent / "ministack")], port, env) as url:
        for _ in range(100):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=2).close()
                break
            time.sleep(0.1)
        yield {
            "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """A real S3 server and the environment that reaches it."""
    with running_s3(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


def bucket_name(request):
    name = "b-" + re.sub("[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-")
    return f"{name}-{uuid.uuid4().hex[:8]}"  # tests of several files share a server, and some have the same name


@pytest.fixture
def bucket(s3_server, monkeypatch, request):
    """An empty bucket's name; this process and its children see the server."""
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    name = bucket_name(request)
    urllib.request.urlopen(urllib.request.Request(f"{s3_server['AWS_ENDPOINT_URL']}/{name}", method="PUT")).close()
    return name


@pytest.fixture(scope="session")
def cloud_servers():
    """Starts the server for `gs` or `az` when it is first asked for. Gives the environment that reaches it."""
    from tests.helpers import emulators

    with contextlib.ExitStack() as stack:

        @cache
        def environment(scheme):
            start = {"gs": emulators.running_gcs, "az": emulators.running_azure}[scheme]
            return stack.enter_context(start())

        yield environment


@pytest.fixture
def cloud_bucket(cloud_servers, monkeypatch, request):
    """Makes an empty bucket of `gs` or `az`, whose name it returns; this process and its children see the server."""
    from tests.helpers import emulators

    def make(scheme):
        for name, value in cloud_servers(scheme).items():
            monkeypatch.setenv(name, value)
        name = bucket_name(request)
        {"gs": emulators.make_gcs_bucket, "az": emulators.make_azure_container}[scheme](cloud_servers(scheme), name)
        return name

    return make


@pytest.fixture
def no_internet(monkeypatch, tmp_path):
    """Downloads are really tried, through a proxy that nobody serves; none was downloaded before."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # keeps the proxies of the process's first request for good


@pytest.fixture(scope="session")
def local_ray(s3_server):
    """Ray on this machine, one for all tests of a process; its workers see the S3 server."""
    import ray

    from tests.helpers.machines import LEAN

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3_server, **LEAN}.items():
            patch.setenv(name, value)
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def dgn(monkeypatch, capsys):
    """Runs a command line in this process: (exit code, standard output, standard error)."""
    from dgn.jobs import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dgn", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def real_weights():
    folder = os.environ.get("DGN_WEIGHTS")
    if not folder:
        pytest.skip("DGN_WEIGHTS is not set: a folder with mobilenet_v2-imagenet.safetensors and others")
    return Path(folder)


@pytest.fixture
def reliability(request):
    """Notes a row for docs/reliability.md. No picture may be lost, and none saved twice."""

    def row(fault, injected, happened, noticed_s, fixed_s, lost, twice):
        note(Fault(fault, injected, happened, noticed_s, fixed_s, lost, twice, request.node.nodeid))
        assert (lost, twice) == (0, 0)

    return row
