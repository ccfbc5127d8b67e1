"""A `dgn render` with a Ray of its own and S3: nothing listens beyond this machine, no other cluster is joined, and
nobody learns a secret.
"""

import contextlib
import ipaddress
import sys
import time
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import s3fs

from dgn.runs.stores import open_store
from tests.conftest import free_port, server
from tests.helpers.hostile import QUICK, ends_in_one_line
from tests.helpers.own_ray import short_folder, start

SECRET = "tellingSecretKey0123456789abcdefghijklmn"
KEY_ID = "AKIATELLINGKEYIDENT0"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": f"session{SECRET}"}
LINE = ["--targets", "classes:0-1", *QUICK]

Watched = namedtuple("Watched", ["code", "printed", "listening", "files"])


def listening(process, folder):
    """(process, address) of every socket at which a process, its children, or the daemons of its Ray listen."""
    family = {process.pid} | {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            name = " ".join(other.cmdline())
            if other.pid in family or str(folder) in name:
                for socket in other.net_connections("inet"):
                    if socket.status == psutil.CONN_LISTEN:
                        yield name, ipaddress.ip_address(socket.laddr.ip)


def everything_in(folder):
    """Bytes of all files below the folder, by name."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                yield str(path), path.read_bytes()


@pytest.fixture(scope="module")
def watched(s3_server, tmp_path_factory):
    """A run that works, watched until it ends. Ray by itself would join the cluster that was last started on this
    machine, by anybody who may write the file that says so."""
    folder = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("watched")
        with short_folder() as ray_folder:
            (ray_folder / "ray").mkdir()
            (ray_folder / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
            render = start(["render", "s3://watched/run", *LINE], ray_folder, folder / "log", **CREDENTIALS)
            seen = set()
            while render.poll() is None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    seen |= set(listening(render, ray_folder))
                time.sleep(0.3)
            files = dict(everything_in(ray_folder))
        store = open_store("s3://watched/run")
        files |= {key: store.read(key) for key in store.list("")}
    return Watched(render.returncode, (folder / "log").read_text(), seen, files)


def test_a_cluster_of_somebody_else_is_not_joined(watched):
    assert watched.code == 0, watched.printed
    assert "2 of 2 pictures" in watched.printed


def test_nothing_listens_beyond_this_machine(watched):
    assert any("gcs_server" in name for name, _ in watched.listening), "Ray's daemons were looked at"
    assert any("ray::RenderWorker" in name for name, _ in watched.listening), "and its workers"
    beyond = {
        (name[:80], str(at))
        for name, at in watched.listening
        if not (getattr(at, "ipv4_mapped", None) or at).is_loopback
    }
    assert not beyond


def test_credentials_stay_secret(watched):
    """They are neither in what dgn prints, nor in the run, nor in Ray's logs."""
    assert any("gcs_server" in name for name in watched.files), "Ray's logs were read"
    assert {name.split("/")[0] for name in watched.files} >= {"run.json", "metadata", "images"}
    assert [name for name, data in watched.files.items() if SECRET.encode() in data] == []
    assert SECRET not in watched.printed


def wrong_endpoint(url):
    return f"http://127.0.0.1:{free_port()}"


def endpoint_with_password(url):
    return url.replace("http://", f"http://user:{SECRET}@").replace(url.rsplit(":", 1)[1], str(free_port()))


@pytest.mark.parametrize("endpoint", [wrong_endpoint, endpoint_with_password])
def test_credentials_stay_secret_where_nobody_answers(endpoint, s3_server, dgn, monkeypatch):
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint(s3_server["AWS_ENDPOINT_URL"])}.items():
        monkeypatch.setenv(name, value)
    ended = dgn("render", "s3://bucket/run", *LINE)
    ends_in_one_line(ended)
    assert SECRET not in "".join(map(str, ended))


def test_a_key_that_the_store_refuses_is_not_printed(dgn, tmp_path, monkeypatch):
    rclone = Path(sys.executable).parent / "rclone"
    if not rclone.exists():
        pytest.skip("no rclone beside the tests' Python")
    (tmp_path / "bucket").mkdir()
    port = free_port()
    address = ["--addr", f"127.0.0.1:{port}", "--auth-key", "another,key"]
    with server([str(rclone), "serve", "s3", str(tmp_path), *address], port) as url:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        line = ends_in_one_line(dgn("status", "s3://bucket/run"), "Forbidden")
    assert SECRET not in line
    assert KEY_ID not in line
