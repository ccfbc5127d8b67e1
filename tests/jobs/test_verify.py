"""`dgn verify` finds what is broken; `dgn gc` deletes only what no row names."""

import hashlib
import json
import os
import shutil
import time

import pytest

from dgn.networks.registry import network_named
from dgn.runs import lease
from dgn.runs.lease import Lease
from dgn.runs.stores import open_store
from tests.helpers.rows import assert_one_line, edit_rows


@pytest.fixture
def copy(rendered, tmp_path):
    shutil.copytree(rendered, tmp_path / "run")
    return tmp_path / "run"


def test_verify_finds_what_is_broken(rendered, copy, dgn):
    code, out, _ = dgn("verify", rendered)
    assert (code, out.strip()) == (0, "8 targets expected, 8 found, 0 duplicate or stray, 8 scored again, 0 problems")
    pictures = sorted((copy / "images").rglob("*.png"))
    pictures[0].write_bytes(pictures[0].read_bytes()[:-1])
    pictures[1].unlink()
    (copy / "metadata" / "000002.parquet").unlink()
    code, out, err = dgn("verify", copy)
    assert code == 1
    assert "have another sha256" in out
    assert "is missing" in out
    assert "shard 000002 is missing (2 targets)" in out
    assert "is not whole" in err


def test_verify_finds_rows_that_were_edited(copy, dgn):
    """A score that is not the picture's, and a row without the sha256 that would prove its picture."""
    scores = {"fc8-00007-untrained-s0": {"activation": 99.0}}
    edit_rows(copy, lambda row: row | scores.get(row["target_id"], {}))
    code, out, _ = dgn("verify", copy)
    assert code == 1
    assert "fc8-00007-untrained-s0: scored " in out
    assert "but its row has 99" in out
    edit_rows(copy, lambda row: row | {"sha256": None} if row["unit"] == 7 else None)
    code, out, _ = dgn("verify", copy)
    assert code == 1
    assert "have another sha256" in out


def test_verify_names_a_file_that_is_no_picture_though_its_row_agrees(copy, dgn):
    picture = min((copy / "images").rglob("*.png"))
    picture.write_bytes(b"GIF89a")
    name = str(picture.relative_to(copy))
    own = {"sha256": hashlib.sha256(b"GIF89a").hexdigest()}
    edit_rows(copy, lambda row: row | (own if row["file_name"] == name else {}))
    code, out, _ = dgn("verify", copy)
    assert code == 1
    assert f"{name}: not a PNG file\n" in out


def test_verify_counts_by_the_target_list_not_by_an_edited_file(copy, dgn):
    content = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**content, "num_targets": 9}))
    assert_one_line(dgn("verify", copy), 2, "it was edited")


def test_other_labels_than_the_runs_are_refused(copy, tmp_path, dgn):
    (tmp_path / "labels.txt").write_text("\n".join(["another", *network_named("vgg16-mini").labels[1:]]))
    say = "the labels of vgg16-mini are not those of this run's rows: give none"
    assert_one_line(dgn("verify", copy, "--labels", tmp_path / "labels.txt"), 2, say)
    assert_one_line(
        dgn("judge", copy, "--by", "vgg16-mini-b", "--discriminator-labels", tmp_path / "labels.txt"), 2, say
    )
    content = json.loads((copy / "run.json").read_text())
    content["config"]["labels"] = str(tmp_path / "labels.txt")
    (copy / "run.json").write_text(json.dumps(content))
    (copy / "metadata" / "000002.parquet").unlink()
    assert_one_line(dgn("resume", copy), 2, "its labels are not those that it was started with")
    content["fingerprint"]["labels_sha256"] = "0" * 64
    (copy / "run.json").write_text(json.dumps(content))
    say = "are not those of this run's rows: give theirs with --labels FILE"
    assert_one_line(dgn("verify", copy), 2, say)


def test_gc_deletes_only_what_no_row_names(copy, dgn):
    stray = copy / "images" / "000000" / "deadbeef" / "x.png"
    underway = copy / "images" / "000007" / "deadbeef" / "x.png"
    for path in (stray, underway):
        path.parent.mkdir(parents=True)
        path.touch()
    assert "1 picture would be deleted" in dgn("gc", copy, "--dry-run")[1]
    assert stray.exists()
    assert dgn("gc", copy)[1] == "1 picture deleted, 9 pictures kept\n"
    assert not stray.exists()
    everything = ("gc", copy, "--uncommitted", "--older-than", 0)
    assert dgn(*everything)[1] == "1 picture and 0 unfinished files deleted, 8 pictures kept\n"
    assert dgn("verify", copy)[0] == 0


def test_gc_spares_what_a_worker_may_still_be_writing(copy, dgn):
    """As when only the driver was killed: its lease is quiet."""
    names = ("images/000007/deadbeef/x.png", "images/000007/deadbeef/.dgn-1")
    young, old = ([copy / name.replace("7", number) for name in names] for number in "78")
    for path in (*young, *old):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for path in old:
        os.utime(path, (0, time.time() - 25 * 3600))
    (copy / "images" / "000000" / "deadbeef").mkdir()
    (copy / "images" / "000000" / "deadbeef" / "x.png").touch()  # young, but its shard is committed
    said = (
        "2 pictures and 1 unfinished file {}deleted, 8 pictures kept; 2 files spared, written less than 24 hours ago\n"
    )
    assert dgn("gc", copy, "--uncommitted", "--dry-run")[1].endswith(said.format("would be "))
    assert dgn("gc", copy, "--uncommitted")[1] == said.format("")
    assert [path.exists() for path in (*young, *old)] == [True, True, False, False]
    hours = ("--older-than", 0.5)
    assert "; 2 files spared, written less than 0.5 hours ago" in dgn("gc", copy, "--uncommitted", *hours)[1]
    os.utime(young[0], (0, time.time() - 3600))
    assert "1 picture and 0 unfinished files deleted" in dgn("gc", copy, "--uncommitted", *hours)[1]
    assert_one_line(dgn("gc", copy, *hours), 2, "--older-than is for unfinished shards and files")


def test_gc_spares_what_a_driver_is_making(copy, dgn, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    monkeypatch.setattr(lease, "LOOK_S", 0.1)
    with Lease(open_store(str(copy))):
        while not (copy / "lease.json").exists():
            time.sleep(0.01)
        assert_one_line(dgn("gc", copy, "--uncommitted"), 2, "a driver is at work")
    monkeypatch.setattr(lease, "QUIET_S", 0.5)
    (copy / "lease.json").write_text('{"driver": "killed", "beats": 7}')
    assert dgn("gc", copy, "--uncommitted")[0] == 0
