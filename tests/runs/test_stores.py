"""Stores: create-once, whole files, and lines for stores that cannot be used.

S3 is a real server. So are those for Google's and Azure's storage, but they are not Google's and Azure's own: what only
those could show is at the head of test_clouds.py.
"""

import errno
import json
import os
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dgn.errors import StoreError
from dgn.runs.stores import local, open_store, read_url
from dgn.runs.stores.base import HIDDEN, KeyExists, check_create_once
from dgn.runs.stores.local import LocalStore
from dgn.runs.stores.s3 import S3Store
from tests.conftest import free_port, server


@pytest.fixture(params=["local", "s3", "gs", "az"])
def store(request, tmp_path):
    if request.param == "local":
        return LocalStore(str(tmp_path / "run"))
    if request.param != "s3":
        return open_store(f"{request.param}://{request.getfixturevalue('cloud_bucket')(request.param)}/some/run")
    return S3Store(f"s3://{request.getfixturevalue('bucket')}/some/run")


def test_reads_writes_lists_deletes(store):
    store.create("metadata/000001.parquet", b"one")
    store.write("images/000001/ab/x.png", b"picture")
    store.write("images/000001/ab/x.png", b"again")
    assert store.read("images/000001/ab/x.png") == b"again"
    assert list(store.list("metadata")) == ["metadata/000001.parquet"]
    assert list(store.list("images")) == list(store.list("images/")) == ["images/000001/ab/x.png"]
    assert list(store.list("image")) == []  # a folder's name, not the beginning of one
    assert list(store.list("failures")) == []
    store.delete("images/000001/ab/x.png")
    store.delete("images/000001/ab/x.png")
    assert list(store.list("images")) == []
    with pytest.raises(FileNotFoundError):
        store.read("images/000001/ab/x.png")


def test_the_end_of_a_key(store):
    store.write("images/x.png", b"0123456789")
    assert store.read_end("images/x.png", 4) == (b"6789", 10)
    assert store.read_end("images/x.png", 10) == store.read_end("images/x.png", 99) == (b"0123456789", 10)
    store.write("images/none.png", b"")
    assert store.read_end("images/none.png", 4) == (b"", 0)
    with pytest.raises(FileNotFoundError):
        store.read_end("images/missing.png", 4)


def test_a_listing_says_when_a_key_was_written(store):
    before = time.time() - 2  # S3 gives whole seconds
    store.write("images/x.png", b"")
    store.write("images/.dgn-1", b"")
    dated = dict(store.list_dated("images"))
    assert list(dated) == ["images/x.png"]
    assert before <= dated["images/x.png"] <= time.time() + 1
    assert list(dict(store.list_dated("", is_hidden=True))) == ["images/.dgn-1"]
    if isinstance(store, LocalStore):
        os.utime(Path(store.url, "images/x.png"), (0, 1e9))
        assert list(store.list_dated("")) == [("images/x.png", 1e9)]


def test_a_listing_of_a_folder_goes_down_but_not_along_links(tmp_path):
    store = LocalStore(str(tmp_path / "run"))
    store.write("a/b/c.png", b"")
    store.write("d.png", b"")
    (tmp_path / "run" / "loop").symlink_to(tmp_path / "run")
    (tmp_path / "run" / "linked.png").symlink_to(tmp_path / "run" / "d.png")
    assert sorted(store.list("")) == ["a/b/c.png", "d.png", "linked.png"]


def test_of_many_creators_one_wins_and_nothing_else_is_left(store):
    def create(i):
        try:
            store.create("metadata/000000.parquet", b"%d" % i)
        except KeyExists:
            return None
        return i

    with ThreadPoolExecutor(8) as pool:
        winners = [i for i in pool.map(create, range(24)) if i is not None]
    assert len(winners) == 1
    assert store.read("metadata/000000.parquet") == b"%d" % winners[0]
    assert list(store.list("")) == ["metadata/000000.parquet"]


def test_probe_leaves_nothing(store):
    store.check(must_write=True)
    assert list(store.list("")) == []
    if isinstance(store, LocalStore):
        assert not any(p.name.startswith(HIDDEN) for p in Path(store.url).rglob("*"))


def test_a_store_that_overwrites_is_refused(bucket, tmp_path):
    """rclone's S3 server ignores If-None-Match."""
    rclone = Path(sys.executable).parent / "rclone"
    if not rclone.exists():
        pytest.skip("no rclone beside the tests' Python")
    port = free_port()
    (tmp_path / "s3" / "bucket").mkdir(parents=True)
    address = f"127.0.0.1:{port}"
    with server(
        [str(rclone), "serve", "s3", str(tmp_path / "s3"), "--addr", address, "--auth-key", "test,test"], port
    ) as url:
        os.environ["AWS_ENDPOINT_URL"] = url
        store = S3Store("s3://bucket/run")
        with pytest.raises(StoreError, match="ignores create-once"):
            store.check(must_write=True)
        assert list(store.list("")) == []


def test_unusable_places_are_one_line(bucket, tmp_path):
    (tmp_path / "file").write_text("")
    places = {
        str(tmp_path / "file"): "is a file",
        str(tmp_path / "file" / "below"): "cannot write",
        "/proc/dgn-run": "cannot write",
        "s3://no-such-bucket-here/run": "no bucket 'no-such-bucket-here'",
        "ftp://host/run": "unknown kind of run",
        "s3://": "no bucket in",
    }
    for url, says in places.items():
        with pytest.raises(StoreError, match=says) as caught:
            open_store(url).check(must_write=True)
        assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="no run at"):
        open_store(str(tmp_path / "nowhere")).check(must_write=False)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("127.0.0.1:9000", "its endpoint is not an address"),
        ("user:secret@127.0.0.1:9000", "its endpoint is not an address"),
        ("http://user:secret@127.0.0.1:9000", "its endpoint contains a user or password"),
    ],
)
def test_an_endpoint_that_cannot_be_used_is_one_line_without_its_password(endpoint, says, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StoreError, match=says) as caught:
        open_store("s3://bucket/run")
    printed = "".join(traceback.format_exception(caught.value))
    assert "secret" not in printed
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_folder_without_permission_is_one_line(tmp_path):
    """Seen by a user who is not root: root may write everywhere."""
    code = (
        "import os, sys, pathlib, difflib, hashlib, uuid\n"
        "from dgn.runs.stores import open_store\n"
        "os.setuid(65534)\n"
        "try: open_store(sys.argv[1]).check(must_write=True)\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code, "/usr/share/dgn-run"], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("StoreError cannot write to /usr/share: no permission"), done.stderr
    assert not Path("/usr/share/dgn-run").exists()


def test_a_run_in_a_file_is_one_line(tmp_path):
    (tmp_path / "notes").write_text("here")
    with pytest.raises(StoreError, match=r"notes/run: \S+notes is a file; give another folder$"):
        open_store(str(tmp_path / "notes" / "run")).check(must_write=True)


def test_a_file_that_somebody_names_may_be_a_link(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").write_bytes(b"a")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there" / "a")
    monkeypatch.chdir(tmp_path / "here")
    assert read_url("link") == read_url(str(tmp_path / "here" / "link")) == read_url("../there/a") == b"a"
    with pytest.raises(FileNotFoundError):
        read_url("none")
    with pytest.raises(StoreError):
        read_url("..")


def test_keys_cannot_leave_the_run(store):
    with pytest.raises(StoreError, match="leads out of the run"):
        store.write("../outside", b"")
    with pytest.raises(StoreError, match="leads out of the run"):
        store.read("images/../../outside")


def test_create_once_check_is_what_it_says(tmp_path):
    check_create_once(LocalStore(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def refuses(*_, **__):
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_without_hard_links_a_file_is_still_created_once(tmp_path, monkeypatch):
    """As on exFAT in the kernel, whose `link` fails with EPERM: `renameat2` takes its place, here on this disk."""
    monkeypatch.setattr(os, "link", refuses)
    store = LocalStore(str(tmp_path / "run"))
    check_create_once(store)
    store.create("metadata/000000.parquet", b"first")
    with pytest.raises(KeyExists):
        store.create("metadata/000000.parquet", b"second")
    assert store.read("metadata/000000.parquet") == b"first"
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == ["000000.parquet"]


def test_a_file_system_that_creates_nothing_once_is_one_line(tmp_path, monkeypatch):
    """As exFAT by FUSE (exfat-fuse 1.3.0): `link` fails with EPERM and `renameat2` with EINVAL."""
    monkeypatch.setattr(os, "link", refuses)
    monkeypatch.setattr(local, "_NOREPLACE", 1 << 30)  # a flag that the kernel does not know: EINVAL
    store = LocalStore(str(tmp_path / "run"))
    with pytest.raises(StoreError, match="has no hard links") as raised:
        store.check(must_write=True)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir()), "nothing is left"


# Buckets of others, on the real server: it lets other accounts do what the bucket's policy allows, and denies the rest.

READS = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"]}
ENCRYPTED_WRITES = {
    "Effect": "Allow", "Principal": "*", "Action": "s3:PutObject",
    "Condition": {"StringEquals": {"s3:x-amz-server-side-encryption": "aws:kms"}},
}  # fmt: skip


def allow(bucket, *statements):
    """Sets the bucket's policy."""
    resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    policy = {"Version": "2012-10-17", "Statement": [{**one, "Resource": resources} for one in statements]}
    S3Store(f"s3://{bucket}").client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))


@pytest.fixture
def public(bucket, monkeypatch):
    """The name of another account's bucket. The server takes unsigned requests for those of its first account."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "123456789012")
    S3Store(f"s3://{bucket}-public").client.create_bucket(Bucket=f"{bucket}-public")
    S3Store(f"s3://{bucket}-public/photographs").write("a.png", b"picture")
    return f"{bucket}-public"


@pytest.fixture
def no_credentials(bucket, monkeypatch, tmp_path):
    """Called, takes them all away."""

    def take_away():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            monkeypatch.setenv(name, str(tmp_path / "none"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    return take_away


def test_a_public_bucket_is_read_without_credentials_if_a_setting_names_it(public, no_credentials, monkeypatch):
    allow(public, READS)
    no_credentials()
    url = f"s3://{public}/photographs"
    with pytest.raises(StoreError, match=f"locate credentials; .*, or set DGN_S3_UNSIGNED={public} to read a public"):
        S3Store(url).read("a.png")
    monkeypatch.setenv("DGN_S3_UNSIGNED", f"another,{public}")
    photographs = S3Store(url)
    photographs.check(must_write=False)
    assert list(photographs.list("")) == ["a.png"]
    assert photographs.read("a.png") == photographs.fs.cat(f"{public}/photographs/a.png") == b"picture"
    with pytest.raises(StoreError, match=r"PutObject.*; the request was not signed, because DGN_S3_UNSIGNED names"):
        photographs.write("b.png", b"")


def test_a_private_bucket_is_not_read_without_credentials(public, no_credentials, monkeypatch):
    no_credentials()
    monkeypatch.setenv("DGN_S3_UNSIGNED", public)
    with pytest.raises(StoreError, match=r"AccessDenied.*; the request was not signed, because DGN_S3_UNSIGNED names"):
        S3Store(f"s3://{public}/photographs").read("a.png")


def test_a_bucket_that_demands_encryption_is_written_with_the_setting(bucket, monkeypatch):
    allow(bucket, READS, ENCRYPTED_WRITES)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "123456789012")  # another account's
    with pytest.raises(StoreError, match=r"PutObject.*AccessDenied|AccessDenied.*PutObject") as caught:
        S3Store(f"s3://{bucket}/run").write("a.png", b"picture")
    assert str(caught.value).endswith("; a bucket that demands encryption needs DGN_S3_ENCRYPTION")
    monkeypatch.setenv("DGN_S3_ENCRYPTION", "aws:kms")
    monkeypatch.setenv("DGN_S3_KMS_KEY", "arn:aws:kms:us-east-1:000000000000:key/ours")
    store = S3Store(f"s3://{bucket}/run")
    store.create("a.png", b"picture")
    store.write("b.png", b"picture")
    store.fs.pipe_file(f"{bucket}/run/c.png", b"picture")
    for key in ("a.png", "b.png", "c.png"):
        answer = store.client.head_object(Bucket=bucket, Key=f"run/{key}")
        assert (answer["ServerSideEncryption"], answer["SSEKMSKeyId"]) == (
            "aws:kms", "arn:aws:kms:us-east-1:000000000000:key/ours"
        )  # fmt: skip
