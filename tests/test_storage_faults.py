"""Losing storage: what passes is waited out, once per fault and in sight; what does not is one line at once.

S3 is a real server behind a proxy that injects the faults, the disk that is full a real one of 256 KiB.
"""

import logging
import os
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from cluster import driver, storage, store
from cluster.context import RunContext
from cluster.driver import Driver
from cluster.fleet import Workers
from cluster.plan import RunConfig, fingerprint, make_plan
from cluster.run import Run
from cluster.storage import KeyExists, LocalStore, S3Store, check_create_once, open_store
from dgn.discriminator import layout, load_weights
from dgn.errors import StoreError
from tests import fakes
from tests.conftest import free_port
from tests.faulty_s3 import FaultyS3
from tests.reliability import lost_and_twice

ANY_REQUEST = ("SlowDown", "InternalError", "reset before", "reset after")


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
    told = []

    def observer(operation, error):
        told.append(operation)

    storage.retry_observers.append(observer)
    yield told
    storage.retry_observers.remove(observer)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(store, "FIRST_WAIT_S", 0.02)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", ANY_REQUEST)
def test_every_operation_outlasts_the_fault(fault, faulty, s3, retries):
    operations = {
        "write": lambda: s3.write("images/x.png", b"picture"),
        "read": lambda: s3.read("images/x.png"),
        "list": lambda: list(s3.list("images")),
        "exists": lambda: s3.exists("images/x.png"),
        "delete": lambda: s3.delete("images/x.png"),
    }
    answers = {}
    for name, call in operations.items():
        faulty.inject(fault, times=2)
        answers[name] = call()
    assert answers["read"] == b"picture"
    assert answers["list"] == ["images/x.png"]
    assert answers["exists"]
    assert list(s3.list("")) == []
    assert faulty.num_waiting == 0
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
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("cluster")]
    assert line.startswith(f"write {s3.url}/images/x.png: ")
    assert "SlowDown" in line
    assert "next try in" in line


@pytest.mark.usefixtures("quick")
def test_patience_ends(faulty, s3, retries, monkeypatch):
    monkeypatch.setattr(store, "PATIENCE_S", 1.0)
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


def test_a_command_does_not_wait_for_a_wrong_endpoint(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(store, "PATIENCE_S", 1e6)
    monkeypatch.setattr(store, "CHECK_PATIENCE_S", 1.0)
    there = S3Store(f"s3://{bucket}/run")
    for start in (partial(there.check, must_write=True), partial(storage.read_url, f"s3://{bucket}/decoder")):
        with pytest.raises(StoreError, match=r"Could not connect.*check endpoint and credentials") as caught:
            start()
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("quick")
def test_the_probe_of_create_once_survives_a_lost_answer(faulty, s3):
    faulty.inject("reset after", method="PUT")
    check_create_once(s3)
    assert list(s3.list("", is_hidden=True)) == []


# A whole run


class Losses:
    """Runs of eight shards of two targets through the proxy, and when their workers tried again."""

    def __init__(self, proxy, url, folder):
        self.proxy, self.folder = proxy, folder
        config = RunConfig(targets=("classes:0-15",), discriminator="vgg16-mini", shard_size=2)
        plan = make_plan(config, layout("vgg16-mini"))
        sha256 = load_weights("vgg16-mini").sha256
        identity = fingerprint(plan, config.render_config("float32"), "vgg16-mini", sha256, None)
        self.run = Run(open_store(url))
        self.info = self.run.start(identity, config, plan.num_targets, plan.num_shards)
        self.context = RunContext(url, self.info.run_id, plan, config.render_config("float32"), identity, 1)

    def render(self):
        """Returns: the progress, and when the run was whole."""
        endpoint, observer = self.proxy.url, partial(note_retry, str(self.folder))

        class ThroughProxy(fakes.FakeActor):  # by value to the workers, which belong to a Ray that other tests share
            def __init__(self, *arguments):
                os.environ["AWS_ENDPOINT_URL"] = endpoint
                storage.retry_observers.append(observer)
                super().__init__(*arguments)

        progress = Driver(
            self.run, self.info, self.context, None, None, Workers(2, 0, 1), actor_class=ThroughProxy
        ).loop()
        return progress, time.monotonic()

    @property
    def retried(self):
        """When, in order."""
        return sorted(int(path.name.partition("-")[0]) / 1e9 for path in self.folder.iterdir())


def note_retry(folder, operation, error):
    Path(folder, f"{time.monotonic_ns()}-{operation}-{os.getpid()}").touch()


@pytest.fixture
def losses(faulty, bucket, tmp_path, local_ray, monkeypatch):
    monkeypatch.setattr(driver, "STRAGGLER_FACTOR", 1e9)  # a duplicate killed at the end would leave pictures for gc
    folder = tmp_path / "retried"
    folder.mkdir()
    observer = partial(note_retry, str(folder))
    storage.retry_observers.append(observer)
    yield Losses(faulty, f"s3://{bucket}/run", folder)
    storage.retry_observers.remove(observer)


def assert_whole(losses, progress, dgn):
    """Nothing left over, every sha256 right. Returns how many targets are lost and how many twice."""
    url = losses.run.store.url
    assert (progress.shards_done, progress.quarantined, progress.retries) == (8, [], 0)
    assert len(list(losses.run.store.list("images"))) == 16
    assert list(losses.run.store.list("failures")) == []
    code, out, err = dgn("verify", url, "--sample", 0)
    assert code == 0, err
    return lost_and_twice(out)


@pytest.mark.parametrize("fault", ANY_REQUEST)
def test_a_run_outlasts_the_fault(fault, losses, faulty, dgn, reliability):
    faulty.inject(fault, times=6, method="PUT", key="/images/")
    faulty.inject(fault, times=3, method="PUT", key="/metadata/")
    faulty.inject(fault, times=2, method="GET", key="list-type=2")
    progress, whole_at = losses.render()
    assert faulty.num_waiting == 0
    assert len(losses.retried) == len(faulty.injected) == 11
    outcome = assert_whole(losses, progress, dgn)
    names = {
        "SlowDown": "S3 answers SlowDown", "InternalError": "S3 answers 500",
        "reset before": "S3 resets before the write", "reset after": "S3 resets after the write was applied",
    }  # fmt: skip
    reliability(
        names[fault], "11 times in a run: 6 pictures, 3 commits, 2 listings", "11 retries, nothing rendered again",
        losses.retried[0] - faulty.injected[0], whole_at - faulty.injected[0], *outcome,
    )  # fmt: skip


def test_a_run_outlasts_truncated_reads(losses, faulty, dgn, reliability):
    """A commit whose answer was lost is read back; that read, the listings and verify's reads end in the middle."""
    faulty.inject("reset after", times=2, method="PUT", key="/metadata/")
    faulty.inject("truncate", times=3, method="GET", key="/metadata/0")
    faulty.inject("truncate", times=2, method="GET", key="list-type=2")
    progress, whole_at = losses.render()
    assert faulty.num_waiting == 0
    assert len(losses.retried) == len(faulty.injected) == 7
    faulty.inject("truncate", times=3, method="GET", key="/images/")
    outcome = assert_whole(losses, progress, dgn)
    assert faulty.num_waiting == 0
    reliability(
        "S3 truncates a read", "3 reads of commits, 2 listings, 3 pictures", "8 retries, no half read taken for whole",
        losses.retried[0] - faulty.injected[0], whole_at - faulty.injected[0], *outcome,
    )  # fmt: skip


@pytest.mark.parametrize("seconds", [3, pytest.param(120, marks=pytest.mark.slow)])
def test_a_run_outlasts_s3_being_away(seconds, losses, faulty, dgn, reliability):
    """Connections are reset in the middle of the run, then refused."""
    faulty.inject("away", method="PUT", key="/images/000003", seconds=seconds)
    progress, whole_at = losses.render()
    assert whole_at - faulty.injected[0] > seconds
    outcome = assert_whole(losses, progress, dgn)
    reliability(
        "S3 is away", f"{seconds} s in the middle of a run", f"{len(losses.retried)} retries, nothing rendered again",
        losses.retried[0] - faulty.injected[0], whole_at - faulty.injected[0], *outcome,
    )  # fmt: skip


# A disk


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB of its own; `remount` makes it read-only and back."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a disk here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refusals(store, match):
    """What creating and writing say, each at once."""
    for call in (store.create, store.write):
        with pytest.raises(StoreError, match=match) as caught:
            call("metadata/000001.parquet", b"x" * 100_000)
        assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_at_once(small_disk, retries):
    there = LocalStore(str(small_disk / "run"))
    there.write("images/x.png", b"x" * 100_000)
    (small_disk / "other").write_bytes(b"x" * 100_000)
    refusals(there, "no space left on .*: free some")
    assert files(small_disk) == ["other", "run/images/x.png"]  # neither half a key nor a temporary
    assert retries == []
    (small_disk / "other").unlink()
    there.create("metadata/000001.parquet", b"x" * 100_000)
    assert there.read("metadata/000001.parquet") == b"x" * 100_000


def test_a_folder_that_becomes_read_only_is_one_line_at_once(small_disk, retries):
    there = LocalStore(str(small_disk / "run"))
    there.write("images/x.png", b"picture")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    refusals(there, "is read-only: make it writable")
    with pytest.raises(StoreError, match="is read-only: make it writable"):
        there.check(must_write=True)
    assert there.read("images/x.png") == b"picture"
    assert files(small_disk) == ["run/images/x.png"]
    assert retries == []
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    there.create("metadata/000001.parquet", b"rows")
    assert files(small_disk) == ["run/images/x.png", "run/metadata/000001.parquet"]


@pytest.mark.usefixtures("quick")
def test_an_io_error_of_a_disk_may_pass(tmp_path, retries):
    """/proc/self/mem answers EIO to a read at address 0, as a network file system does in trouble."""
    folder = tmp_path / "run"
    folder.symlink_to("/proc/self")  # the run's own folder may be a link, what is inside may not lead out of it

    def mend(operation, error):
        folder.unlink()
        folder.mkdir()
        (folder / "mem").write_bytes(b"picture")

    storage.retry_observers.append(mend)
    try:
        assert LocalStore(str(folder)).read("mem") == b"picture"
    finally:
        storage.retry_observers.remove(mend)
    assert retries == ["read"]


@pytest.mark.usefixtures("quick")
def test_an_io_error_that_stays_ends(tmp_path, monkeypatch, retries):
    monkeypatch.setattr(store, "PATIENCE_S", 0.3)
    with pytest.raises(StoreError, match=r"read mem failed \d+ times in 0 s, at last: \[Errno 5\]"):
        LocalStore("/proc/self").read("mem")
    assert retries
