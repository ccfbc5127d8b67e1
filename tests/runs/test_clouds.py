"""Google Cloud Storage and Azure Blob Storage: names, sizes, faults, and one line for what cannot be used.

The servers are fake-gcs-server and Azurite. Not shown by them: Google's own answers, its credentials and rights (the
server takes every request), Azure's logins and accounts with a hierarchical namespace, and whether either service keeps
create-once across its machines.
"""

import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from dgn.errors import StoreError
from dgn.runs.stores import KeyExists, open_store, patience, read_url, retry_observers
from dgn.runs.stores.base import check_create_once
from tests.conftest import free_port
from tests.helpers import emulators
from tests.helpers.faulty_s3 import ANY_REQUEST, FaultyS3, outlast
from tests.helpers.rows import assert_one_line

VARIABLES = {
    "gs": ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"),
    "az": ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY",
           "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_ANON"),
}  # fmt: skip
SECRET = "dGVsbGluZ1NlY3JldEtleTAxMjM0NTY3ODlhYmNkZWY="


@pytest.fixture(params=["gs", "az"])
def scheme(request, monkeypatch):
    for name in VARIABLES[request.param]:
        monkeypatch.delenv(name, raising=False)
    return request.param


@pytest.fixture
def store(scheme, cloud_bucket):
    return open_store(f"{scheme}://{cloud_bucket(scheme)}/some/run")


@pytest.fixture
def faulty(store, scheme, cloud_servers, monkeypatch):
    """A proxy in front of the server; stores that this process opens go through it, and wait for a moment only."""
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.02)
    name, value = next(iter(cloud_servers(scheme).items()))
    endpoint = value if scheme == "gs" else value.partition("BlobEndpoint=")[2].rpartition("/")[0]
    with FaultyS3(endpoint) as proxy:
        monkeypatch.setenv(name, value.replace(endpoint, proxy.url))
        yield proxy


@pytest.fixture
def through(faulty, store):
    return open_store(store.url)


@pytest.fixture
def retries():
    """Operations that were tried again in this process."""
    seen = []

    def observer(operation, error):
        seen.append(operation)

    retry_observers.append(observer)
    yield seen
    retry_observers.remove(observer)


@pytest.mark.parametrize("num_bytes", [1, 10_000_000, 70_000_000])
def test_of_many_creators_one_wins_whatever_the_size(store, num_bytes):
    """gcsfs by itself sends more than 50 MB in parts, and Azure's library more than 64 MB."""

    def create(i):
        try:
            store.create("images/000001.png", b"%d" % i * num_bytes)
        except KeyExists:
            return None
        return i

    with ThreadPoolExecutor(4) as pool:
        winners = [i for i in pool.map(create, range(4)) if i is not None]
    assert len(winners) == 1
    assert store.read("images/000001.png") == b"%d" % winners[0] * num_bytes


@pytest.mark.parametrize("key", ["run.json", "a b/c#d.png", "50%20.png", "ü/é.png", "1+1", "x&y=z?.png", "{}.png", "e"])
def test_names_are_kept(store, key):
    store.create(key, key.encode())
    assert store.read(key) == key.encode()
    assert store.exists(key)
    assert list(store.list("")) == [key]
    files, root = store.arrow()
    assert files.cat_file(f"{root}/{key}") == key.encode()
    store.delete(key)
    assert not store.exists(key)


def test_ranges_and_an_empty_key(store):
    store.write("e", b"")
    store.write("x.png", b"picture")
    assert store.read("e") == b""
    assert store.read_range("x.png", 2, 5) == b"ctu"
    for start, stop in ((5, 9), (7, 9), (100, 200)):
        with pytest.raises(StoreError, match=f"x.png ends before byte {stop}"):
            store.read_range("x.png", start, stop)
    with pytest.raises(FileNotFoundError):
        store.read_range("none.png", 0, 1)


def test_data_that_hold_what_ends_an_upload(store):
    """gcsfs' own upload would end there: it separates parts by the same bytes in every request."""
    data = b"first\n--==0==--\nlast"
    store.create("x.html", data)
    assert store.read("x.html") == data


def test_a_browser_learns_what_a_file_is(store, scheme):
    store.write("gallery/index.html", b"<!doctype html>")
    files, root = store.arrow()
    info = files.info(f"{root}/gallery/index.html")
    assert (info["contentType"] if scheme == "gs" else info["content_settings"]["content_type"]) == "text/html"


def test_a_long_listing_asks_again_for_the_page_that_failed(scheme, through, faulty, retries):
    for i in range(3):
        through.write(f"failures/{i}", b"x")
    through.write("failures/sub/.dgn-hidden", b"x")
    name, one = {"gs": ("call", {"maxResults": 1}), "az": ("list_blobs", {"results_per_page": 1})}[scheme]
    setattr(through.client, name, partial(getattr(through.client, name), **one))
    faulty.inject("SlowDown", key={"gs": "pageToken=", "az": "marker="}[scheme])
    assert list(through.list("failures")) == [f"failures/{i}" for i in range(3)]
    assert faulty.num_waiting == 0
    assert list(through.list("", is_hidden=True)) == ["failures/sub/.dgn-hidden"]
    through.delete_folder("failures")
    assert list(through.list("", is_hidden=True)) == []
    assert retries == ["list"]


def test_folders_of_a_hierarchical_namespace_are_not_keys(cloud_bucket):
    """Azure lists them as empty blobs with this mark. Google lists none among the objects."""
    store = open_store(f"az://{cloud_bucket('az')}/some/run")
    store.client.upload_blob("some/run/images", b"", metadata={"hdi_isfolder": "true"})
    store.write("images/x.png", b"picture")
    assert list(store.list("")) == ["images/x.png"]


@pytest.mark.parametrize("fault", ANY_REQUEST)
def test_every_operation_outlasts_the_fault(fault, scheme, faulty, through, retries):
    operations = outlast(through, faulty, fault)
    # One layer: as many retries as faults. But of a connection that it kept and finds closed, aiohttp says nothing if
    # the request may be sent twice.
    is_resent = scheme == "gs" and fault.startswith("reset")
    assert retries == [name for name in operations for _ in range(1 if is_resent and name != "write" else 2)]


@pytest.mark.parametrize("fault", ANY_REQUEST)
def test_create_is_once_whatever_happens_to_it(fault, faulty, through, retries):
    faulty.inject(fault, times=2)
    if fault == "reset after":
        with pytest.raises(KeyExists):
            through.create("metadata/000001.parquet", b"first")
    else:
        through.create("metadata/000001.parquet", b"first")
    with pytest.raises(KeyExists):
        through.create("metadata/000001.parquet", b"second")
    assert through.read("metadata/000001.parquet") == b"first"
    assert set(retries) == {"create"}


def test_a_truncated_answer_is_not_taken_for_the_whole(scheme, faulty, through, retries):
    data = os.urandom(3_000_000)
    through.write("images/x.png", data)
    faulty.inject("truncate", times=2, method="GET")
    assert through.read("images/x.png") == data
    faulty.inject("truncate", times=2, method="GET")
    assert list(through.list("")) == ["images/x.png"]
    # Azure's library reads a body again by itself, up to three times. Nothing turns that off.
    assert retries == ([] if scheme == "az" else ["read"] * 2) + ["list"] * 2
    assert faulty.num_waiting == 0


def test_the_probe_of_create_once_survives_a_lost_answer(faulty, through):
    faulty.inject("reset after")
    check_create_once(through)
    assert list(through.list("", is_hidden=True)) == []


def test_a_server_without_an_answer_is_one_line(scheme, store, cloud_servers, monkeypatch):
    """Not tried again by the libraries too, and with nothing that is secret."""
    monkeypatch.setattr(patience, "PATIENCE_S", 1e6)
    monkeypatch.setattr(patience, "CHECK_PATIENCE_S", 1.0)
    nowhere = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{nowhere}")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", emulators.connection_string(nowhere, SECRET))
    for start in (lambda: open_store(store.url).check(must_write=True), lambda: read_url(f"{store.url}/decoder")):
        with pytest.raises(StoreError, match=r"failed \d+ times in \d s.*127.0.0.1.*; check ") as caught:
            start()
        assert "\n" not in str(caught.value)
        assert SECRET[:20] not in str(caught.value)


def test_a_missing_bucket_is_said_by_every_operation(scheme, store):
    there = open_store(f"{scheme}://no-such-one-here/run")
    kind = {"gs": "bucket", "az": "container"}[scheme]
    for call in (
        lambda: there.check(must_write=False), lambda: there.read("x"), lambda: there.read_range("x", 0, 1),
        lambda: there.create("x", b""), lambda: there.write("x", b""), lambda: list(there.list("")),
        lambda: there.delete("x"),
    ):  # fmt: skip
        with pytest.raises(StoreError, match=f"^no {kind} 'no-such-one-here' for .*: create it, or correct the name$"):
            call()
    with pytest.raises(StoreError, match=f"no {kind} in '{scheme}://'"):
        open_store(f"{scheme}://")


def signature(bucket, **rights):
    """A connection string with a shared access signature for one container."""
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    given = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
    token = generate_container_sas(
        emulators.ACCOUNT, bucket, account_key=emulators.KEY, permission=ContainerSasPermissions(**rights),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )  # fmt: skip
    return f"BlobEndpoint={given.partition('BlobEndpoint=')[2]}SharedAccessSignature={token}"


def test_azure_credentials_that_do_not_suffice_are_one_line(cloud_bucket, monkeypatch, caplog):
    bucket = cloud_bucket("az")
    given = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
    faults = {
        given.replace(emulators.KEY, SECRET): "Server failed to authenticate the request",
        given.replace(emulators.KEY, SECRET[:-1]): "Incorrect padding",
        f"AccountKey={SECRET}": "Connection string missing required connection details",
        signature(bucket, read=True, list=True): "not authorized to perform this operation using this permission",
        signature(bucket, read=True, write=True): "not authorized to perform this operation using this permission",
    }
    for setting, says in faults.items():
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", setting)
        with pytest.raises(StoreError, match=rf"{says}.*; check account and credentials \(AZURE_") as caught:
            open_store(f"az://{bucket}/run").check(must_write=True)
        assert "\n" not in str(caught.value)
        for secret in (SECRET, setting.rpartition("sig=")[2] if "sig=" in setting else SECRET):
            assert secret not in str(caught.value) + caplog.text
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", given)
    allowed = signature(bucket, read=True, list=True, create=True, write=True, delete=True)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", allowed)
    open_store(f"az://{bucket}/run").check(must_write=True)


def test_settings_that_are_missing_or_wrong_are_one_line(scheme, tmp_path, monkeypatch, caplog):
    pytest.importorskip({"gs": "gcsfs", "az": "adlfs"}[scheme])
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # else Google's library looks for a machine of Google's
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "key.json").write_text(f"{{'private_key': '{SECRET}'")
    cases = {
        "gs": [({}, "default credentials were not found"),
               ({"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "none.json")}, "none.json was not found"),
               ({"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json")}, "key.json is not a valid json file"),
               ({"STORAGE_EMULATOR_HOST": f"http://me:{SECRET}@127.0.0.1:1"}, "contains a user or password")],
        "az": [({}, "connection_string or account_name")],
    }  # fmt: skip
    for environment, says in cases[scheme]:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            with pytest.raises(StoreError, match=says) as caught:
                open_store(f"{scheme}://bucket/run").check(must_write=True)
        assert "\n" not in str(caught.value)
        assert SECRET not in str(caught.value) + caplog.text


def test_without_its_package_a_line_says_what_to_install(scheme, dgn, monkeypatch):
    package, extra = {"gs": ("gcsfs", "gcs"), "az": ("adlfs", "azure")}[scheme]
    monkeypatch.setitem(sys.modules, package, None)
    assert_one_line(
        dgn("status", f"{scheme}://bucket/run"), 2, f"{scheme}://bucket/run needs {package}: pip install 'dgn[{extra}]'"
    )


def test_doctor_refuses_a_server_that_overwrites(dgn, monkeypatch, caplog):
    """gcp-storage-emulator does not look at ifGenerationMatch."""
    pytest.importorskip("gcsfs")
    with emulators.running_overwriting_gcs() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        emulators.make_gcs_bucket(environment, "bucket")
        code, out, err = dgn("doctor", "gs://bucket/run", "--discriminator", "vgg16-mini")
        assert code == 2
        assert "store" not in out
        (line,) = err.splitlines()
        assert line.startswith("dgn: gs://bucket/run ignores create-once: 8 of 8 writers at once created one key")
        assert list(open_store("gs://bucket/run").list("", is_hidden=True)) == []
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
