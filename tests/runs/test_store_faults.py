"""Losing storage: faults that pass are waited out, one retry and one log line each; all others are one line at once.

S3 is a real server behind a proxy that injects the faults, the disk that is full a real one of 256 KiB.
tests/cluster/test_runs_on_faulty_s3.py has whole runs on such an S3.
"""

import logging
import os
from functools import partial

import pytest

from dgn.errors import StoreError
from dgn.runs.stores import patience, read_url, retry_observers
from dgn.runs.stores.base import KeyExists, check_create_once
from dgn.runs.stores.local import LocalStore
from dgn.runs.stores.s3 import S3Store
from tests.conftest import free_port
from tests.helpers.disks import small_disk
from tests.helpers.faulty_s3 import ANY_REQUEST, FaultyS3, outlast


@pytest.fixture
def faulty(bucket, s3_server, monkeypatch):
    """A proxy in front of the S3 server; stores that this process opens go through it."""
    with FaultyS3(s3_server["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def s3(faulty, bucket):
    return S3Store(f"s3://{bucket}/some/run")


@pytest.fixture
def retries():
    """Operations that were tried again in this process."""
    seen = []

    def observer(operation, error):
        seen.append(operation)

    retry_observers.append(observer)
    yield seen
    retry_observers.remove(observer)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.02)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", ANY_REQUEST)
def test_every_operation_outlasts_the_fault(fault, faulty, s3, retries):
    operations = outlast(s3, faulty, fault)
    assert retries == [name for name in operations for _ in range(2)]  # one layer: as many retries as faults


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", ANY_REQUEST)
def test_create_is_once_whatever_happens_to_it(fault, faulty, s3, retries):
    """After a reset that came after the write, the retry finds the key there: its writer reads it and knows."""
    faulty.inject(fault, times=2)
    if fault == "reset after":
        with pytest.raises(KeyExists):
            s3.create("metadata/000001.parquet", b"first")
    else:
        s3.create("metadata/000001.parquet", b"first")
    with pytest.raises(KeyExists):
        s3.create("metadata/000001.parquet", b"second")
    assert s3.read("metadata/000001.parquet") == b"first"
    assert list(s3.list("")) == ["metadata/000001.parquet"]
    assert set(retries) == {"create"}


@pytest.mark.usefixtures("quick")
def test_a_conflict_of_two_creators_is_tried_again(faulty, s3, retries):
    """S3 answers 409 while another writer is at the key; whether that one wins is open."""
    faulty.inject("ConditionalRequestConflict", times=2, method="PUT")
    s3.create("metadata/000001.parquet", b"first")  # the other one never wrote
    faulty.inject("ConditionalRequestConflict", method="PUT")
    with pytest.raises(KeyExists):
        s3.create("metadata/000001.parquet", b"second")
    assert s3.read("metadata/000001.parquet") == b"first"
    assert len(retries) == 3


@pytest.mark.usefixtures("quick")
def test_a_truncated_answer_is_not_taken_for_the_whole(faulty, s3, retries):
    data = os.urandom(3_000_000)
    s3.write("images/x.png", data)
    faulty.inject("truncate", times=3, method="GET")
    assert s3.read("images/x.png") == data
    faulty.inject("truncate", times=3, method="GET")
    assert list(s3.list("")) == ["images/x.png"]
    assert retries == ["read"] * 3 + ["list"] * 3


@pytest.mark.usefixtures("quick")
def test_a_long_listing_asks_again_for_the_page_that_failed(faulty, s3, retries):
    for i in range(3):
        s3.write(f"failures/{i}", b"x")
    list_page = s3.client.list_objects_v2
    s3.client.list_objects_v2 = partial(list_page, MaxKeys=1)
    faulty.inject("SlowDown", key="continuation-token")
    assert list(s3.list("failures")) == [f"failures/{i}" for i in range(3)]
    assert retries == ["list"]


def test_a_retry_is_one_line_in_the_log(faulty, s3, caplog):
    faulty.inject("SlowDown")
    with caplog.at_level(logging.WARNING):
        s3.write("images/x.png", b"picture")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "dgn"]
    assert line.startswith(f"write {s3.url}/images/x.png: ")
    assert "SlowDown" in line
    assert "next try in" in line


@pytest.mark.usefixtures("quick")
def test_patience_ends(faulty, s3, retries, monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE_S", 1.0)
    faulty.inject("InternalError", times=1000)
    with pytest.raises(StoreError) as caught:
        s3.write("images/x.png", b"picture")
    assert "write images/x.png failed" in str(caught.value)
    assert f"{len(retries) + 1} times in " in str(caught.value)  # 0 or 1 s: waits are drawn at random
    assert "InternalError" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_does_not_pass_is_not_tried_again(faulty, s3, retries, bucket):
    faulty.inject("AccessDenied", method="PUT")
    with pytest.raises(StoreError, match=r"AccessDenied.*check endpoint and credentials"):
        s3.write("images/x.png", b"picture")
    with pytest.raises(StoreError, match="no bucket 'no-such-bucket'"):
        S3Store("s3://no-such-bucket/run").write("images/x.png", b"picture")
    with pytest.raises(FileNotFoundError):
        s3.read("images/x.png")
    faulty.inject("AccessDenied", method="HEAD")
    with pytest.raises(StoreError, match=r"HeadBucket.*check endpoint and credentials"):
        s3.check(must_write=True)
    assert retries == []


def test_a_server_without_the_newer_checksums_is_one_line_that_names_the_settings(faulty, s3, retries, monkeypatch):
    """As third-party servers answer to every upload with a checksum that they do not know; and to none without."""
    faulty.inject("XAmzContentSHA256Mismatch", times=1000, method="PUT", having="x-amz-checksum-")
    for call in (s3.create, s3.write):
        with pytest.raises(
            StoreError, match="set AWS_REQUEST_CHECKSUM_CALCULATION=when_required and AWS_RES"
        ) as caught:
            call("images/x.png", b"picture")
        assert "\n" not in str(caught.value)
        assert "credentials" not in str(caught.value)
    assert retries == []
    assert len(faulty.injected) == 2
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    obedient = S3Store(s3.url)
    obedient.check(must_write=True)
    obedient.create("images/x.png", b"picture")
    with obedient.fs.open(f"{s3.bucket}/some/run/y.png", "wb") as file:
        file.write(b"another")
    assert obedient.read("images/x.png") + obedient.read("y.png") == b"pictureanother"
    assert len(faulty.injected) == 2


@pytest.mark.usefixtures("quick")
def test_a_body_that_was_damaged_on_its_way_is_sent_again(faulty, s3, retries):
    faulty.inject("BadDigest", times=2, method="PUT")
    s3.write("images/x.png", b"picture")
    assert retries == ["write", "write"]


def test_a_command_does_not_wait_for_a_wrong_endpoint(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(patience, "PATIENCE_S", 1e6)
    monkeypatch.setattr(patience, "CHECK_PATIENCE_S", 1.0)
    there = S3Store(f"s3://{bucket}/run")
    for start in (partial(there.check, must_write=True), partial(read_url, f"s3://{bucket}/decoder")):
        with pytest.raises(StoreError, match=r"Could not connect.*check endpoint and credentials") as caught:
            start()
        assert "\n" not in str(caught.value)


def test_the_start_of_a_run_says_why_the_bucket_cannot_be_written(faulty, s3, retries, monkeypatch):
    """Not why the probe could not be deleted, which was never written."""
    faulty.inject("AccessDenied", times=1000, method="PUT", lacking="x-amz-server-side-encryption")
    faulty.inject("AccessDenied", method="DELETE")
    with pytest.raises(StoreError, match=r"PutObject.*; a bucket that demands encryption needs DGN_S3_ENCRYPTION$"):
        s3.check(must_write=True)
    faulty.inject("AccessDenied", method="DELETE")
    with pytest.raises(StoreError, match=r"DeleteObject.*; check endpoint and credentials \(AWS_\*\)$"):
        s3.delete("images/x.png")
    monkeypatch.setenv("DGN_S3_ENCRYPTION", "AES256")
    S3Store(s3.url).check(must_write=True)
    assert retries == []


@pytest.mark.usefixtures("quick")
def test_the_probe_of_create_once_survives_a_lost_answer(faulty, s3):
    faulty.inject("reset after", method="PUT")
    check_create_once(s3)
    assert list(s3.list("", is_hidden=True)) == []


def test_a_store_where_two_can_win_at_once_is_refused(faulty, s3):
    """It honours create-once for writers one after the other, and looks too early where they come at once."""
    faulty.inject("race", times=1000, method="PUT", having="if-none-match")
    s3.create("first.png", b"one")
    with pytest.raises(KeyExists):
        s3.create("first.png", b"two")
    s3.delete("first.png")
    with pytest.raises(StoreError, match=r"ignores create-once: 2 of 8 writers at once created one"):
        s3.check(must_write=True)
    assert list(s3.list("", is_hidden=True)) == []


def test_a_bucket_says_whether_deleted_pictures_stay(faulty, s3):
    assert s3.remark() == "the bucket is not versioned: what is deleted is gone"
    for status, says in (("Enabled", "the bucket keeps versions: "), ("Suspended", "the bucket kept versions once: ")):
        s3.client.put_bucket_versioning(Bucket=s3.bucket, VersioningConfiguration={"Status": status})
        assert s3.remark().startswith(says)
        s3.check(must_write=True)  # a deleted key does not exist, whatever versions it has
        assert list(s3.list("", is_hidden=True)) == []
    faulty.inject("AccessDenied", key="?versioning")
    assert s3.remark().endswith("is unknown: no right to see it (s3:GetBucketVersioning)")


# A disk


@pytest.fixture
def disk(tmp_path):
    """A disk of 256 KiB, and a function that mounts it again."""
    with small_disk(tmp_path / "disk", "256k") as remount:
        yield tmp_path / "disk", remount


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refusals(store, match):
    """What creating and writing say, each at once."""
    for call in (store.create, store.write):
        with pytest.raises(StoreError, match=match) as caught:
            call("metadata/000001.parquet", b"x" * 100_000)
        assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_at_once(disk, retries):
    folder, _ = disk
    there = LocalStore(str(folder / "run"))
    there.write("images/x.png", b"x" * 100_000)
    (folder / "other").write_bytes(b"x" * 100_000)
    refusals(there, "no space left on .*: free some")
    assert files(folder) == ["other", "run/images/x.png"]  # neither half a key nor a temporary
    assert retries == []
    (folder / "other").unlink()
    there.create("metadata/000001.parquet", b"x" * 100_000)
    assert there.read("metadata/000001.parquet") == b"x" * 100_000


def test_a_folder_that_becomes_read_only_is_one_line_at_once(disk, retries):
    folder, remount = disk
    there = LocalStore(str(folder / "run"))
    there.write("images/x.png", b"picture")
    remount("ro")
    refusals(there, "is read-only: make it writable")
    with pytest.raises(StoreError, match="is read-only: make it writable"):
        there.check(must_write=True)
    assert there.read("images/x.png") == b"picture"
    assert files(folder) == ["run/images/x.png"]
    assert retries == []
    remount("rw")
    there.create("metadata/000001.parquet", b"rows")
    assert files(folder) == ["run/images/x.png", "run/metadata/000001.parquet"]


@pytest.mark.usefixtures("quick")
def test_an_io_error_of_a_disk_may_pass(tmp_path, retries):
    """/proc/self/mem answers EIO to a read at address 0, as a network file system does in trouble."""
    folder = tmp_path / "run"
    folder.symlink_to("/proc/self")  # the run's own folder may be a link, what is inside may not lead out of it

    def repair(operation, error):
        folder.unlink()
        folder.mkdir()
        (folder / "mem").write_bytes(b"picture")

    retry_observers.append(repair)
    try:
        assert LocalStore(str(folder)).read("mem") == b"picture"
    finally:
        retry_observers.remove(repair)
    assert retries == ["read"]


@pytest.mark.usefixtures("quick")
def test_an_io_error_that_stays_ends(tmp_path, monkeypatch, retries):
    monkeypatch.setattr(patience, "PATIENCE_S", 0.3)
    with pytest.raises(StoreError, match=r"read mem failed \d+ times in 0 s, at last: \[Errno 5\]"):
        LocalStore("/proc/self").read("mem")
    assert retries
