"""Weights from https addresses, from a server of our own: what fits its SHA-256 is used, all else is one line."""

import json
import ssl
import subprocess
import tarfile
import threading
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dgn.networks import embedded
from dgn.networks.weights import file_sha256, load_weights
from dgn.runs.config import RunConfig
from dgn.runs.networks import load_network
from tests.conftest import free_port
from tests.helpers.rows import assert_one_line
from tests.runs.test_earlier_versions import ARCHIVE

ABOUT = "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *what):
        """Not on this process's standard error, where one line is expected."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key and a certificate for this machine, in one file."""
    path = tmp_path_factory.mktemp("certificate") / "own.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", *ABOUT, "-keyout", path,
         "-out", path.with_suffix(".crt")], check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


@pytest.fixture
def site(certificate, tmp_path, monkeypatch):
    """The address of a server with `w.safetensors`, whose certificate this process trusts."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "w.safetensors").write_bytes(embedded.weights_path("vgg16-mini").read_bytes())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "site"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(urllib.request, "_opener", None)  # keeps proxies and certificates of the first request
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_fits_its_hash_is_used(site, tmp_path, dgn):
    sha256 = file_sha256(tmp_path / "site" / "w.safetensors")
    address = f"{site}/w.safetensors?download=true"
    flags = ("--discriminator", "vgg16-mini", "--weights", address, "--weights-sha256", sha256)
    code, out, err = dgn("info", *flags)
    assert (code, err) == (0, "")
    assert out.startswith("vgg16-mini, preset standard")
    weights = load_network(RunConfig(discriminator="vgg16-mini", weights=address, weights_sha256=sha256))
    assert weights.sha256 == sha256
    assert all((weights.state[name] == tensor).all() for name, tensor in load_weights("vgg16-mini").state.items())
    [kept] = (tmp_path / "torch" / "hub" / "checkpoints").iterdir()
    assert file_sha256(kept) == sha256


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("w.safetensors", "does not have the SHA-256 0000"),
        ("none.safetensors", "the download failed (HTTPError: HTTP Error 404: File not found)"),
        ("refused", "Connection refused"),
        ("untrusted", "certificate verify failed"),
    ],
)
def test_any_other_answer_is_one_line(path, says, site, tmp_path, dgn, monkeypatch):
    address = f"https://127.0.0.1:{free_port()}" if path == "refused" else site
    if path == "untrusted":
        monkeypatch.delenv("SSL_CERT_FILE")
    flags = ("--discriminator", "vgg16-mini", "--weights", f"{address}/{path}", "--weights-sha256", "0" * 64)
    assert_one_line(dgn("info", *flags), 2, f"{address}/{path}", says)
    assert not [*(tmp_path / "torch" / "hub" / "checkpoints").iterdir()], "nothing is left of a download that failed"


@pytest.mark.parametrize("sample", ["8", "0"])
def test_the_address_in_a_runs_own_file_is_fetched_unless_a_file_is_given(sample, site, tmp_path, dgn):
    """Also of a run from elsewhere, as docs/networks.md says."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    path, weights = tmp_path / "run" / "run.json", tmp_path / "site" / "w.safetensors"
    content = json.loads(path.read_text())
    content["config"] |= {"weights": f"{site}/w.safetensors", "weights_sha256": file_sha256(weights)}
    path.write_text(json.dumps(content))
    verify, kept = ("verify", tmp_path / "run", "--sample", sample), tmp_path / "torch" / "hub" / "checkpoints"
    assert dgn(*verify, "--weights", weights)[0] == 0
    assert not kept.exists()
    assert dgn(*verify)[0] == 0
    assert len([*kept.iterdir()]) == 1
