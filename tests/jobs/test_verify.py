"""`dgn verify` finds what is broken; `dgn gc` deletes only what no row names."""

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from dgn.cluster import verifying as on_cluster
from dgn.errors import StoreError
from dgn.networks.registry import network_named
from dgn.runs import lease, readers, verifying
from dgn.runs.lease import Lease
from dgn.runs.run import Run
from dgn.runs.stores import LocalStore, open_store
from dgn.runs.verifying import Reading, read_shards
from tests.helpers.fake_runs import write_fake_run
from tests.helpers.rows import assert_one_line, edit_rows


@pytest.fixture
def copy(rendered, tmp_path):
    shutil.copytree(rendered, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def reading_of():
    """All committed shards of a run."""

    def make(folder):
        run = Run.at(str(folder))
        info = run.info()
        return Reading(run.store.url, info.run_id, list(run.committed(info.num_shards)), {}, 8)

    return make


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


def test_verify_continues_past_shards_that_cannot_be_read(copy, dgn):
    shards = sorted((copy / "metadata").iterdir())
    picture = copy / pq.read_table(shards[4])["file_name"][0].as_py()
    shards[0].write_bytes(shards[0].read_bytes()[:-9])
    shards[1].write_bytes(b"")
    picture.unlink()
    code, out, _ = dgn("verify", copy)
    first, second, third, last = out.splitlines()
    assert code == 1
    assert first.startswith(f"{shards[0]} is not what was committed: ")
    assert second.startswith(f"{shards[1]} is not what was committed: ")
    assert third == f"{picture} is missing"
    found = sum(pq.read_metadata(path).num_rows for path in shards[2:])
    assert last == f"8 targets expected, {found} found, 0 duplicate or stray, 0 scored again, 3 problems"


def test_a_shard_that_disappears_is_a_problem_of_its_own(copy, reading_of):
    reading = reading_of(copy)
    (copy / "metadata" / "000003.parquet").unlink()
    say = f"{copy}/metadata/000003.parquet disappeared after it was listed"
    assert [list(read.damage) for read in read_shards(reading)] == [[], [], [], [say], []]


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


def test_an_interrupted_verify_continues(copy, dgn, monkeypatch, caplog):
    """The pictures of shards that were found intact are not read again, unless the shard was rendered again."""
    caplog.set_level(logging.INFO, "dgn")
    read, interrupted = list[str](), list[str]()
    whole = dgn("verify", copy)[1]

    def note(store, key, read_file=LocalStore.read):
        read.append(key)
        if key == "metadata/000003.parquet" and not interrupted:
            interrupted.append(key)
            raise KeyboardInterrupt
        return read_file(store, key)

    monkeypatch.setattr(verifying, "SHARDS_PER_TASK", 1)
    monkeypatch.setattr(LocalStore, "read", note)
    assert_one_line(dgn("verify", copy, "--sample", 0), 130, "repeat the command to continue")
    assert json.loads((copy / "verified.json").read_text())["shards"].keys() == {"0", "1", "2"}
    edit_rows(copy, lambda row: row | {"seconds": 1.0} if row["shard"] == 1 else None)
    read.clear()
    code, out, _ = dgn("verify", copy, "--sample", 0)
    assert (code, out) == (0, whole.replace("8 scored", "0 scored"))
    assert "pictures of 3 shards are not read again" in caplog.text
    assert {key.split("/")[1] for key in read if key.startswith("images/")} == {"000001", "000003", "000004"}
    assert not (copy / "verified.json").exists()
    read.clear()
    dgn("verify", copy, "--sample", 0)
    assert sum(key.startswith("images/") for key in read) == 8


def test_notes_that_cannot_be_read_or_written_do_not_end_a_verify(copy, dgn, monkeypatch, caplog):
    monkeypatch.setattr("dgn.runs.verified.WRITE_EVERY_S", -1)
    (copy / "verified.json").write_text("[]")
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "write", refuse)
        patch.setattr(LocalStore, "delete", refuse)
        code, out, _ = dgn("verify", copy, "--sample", 0)
    assert (code, out.split(", ")[-1]) == (0, "0 problems\n")
    assert "verified.json is not what was written: all shards are checked" in caplog.text
    assert caplog.text.count("what was checked is not noted") == 1
    assert "delete verified.json, or the next dgn verify continues this one" in caplog.text


def refuse(*_):
    raise StoreError("no permission")


@pytest.fixture
def damaged(copy):
    """Without a picture and without a shard."""
    min((copy / "images" / "000004").rglob("*.png")).unlink()
    (copy / "metadata" / "000001.parquet").unlink()
    return copy


def test_processes_find_the_same(damaged, reading_of, dgn, monkeypatch):
    expected = dgn("verify", damaged)
    assert "2 problems" in expected[1]
    monkeypatch.setattr(verifying, "SHARDS_PER_TASK", 2)
    monkeypatch.setattr(verifying, "FEW_SHARDS", 0)
    reading = reading_of(damaged)
    with verifying.read_here(reading) as read:
        assert list(itertools.chain.from_iterable(read)) == read_shards(reading)
    assert dgn("verify", damaged) == expected


def test_a_killed_process_ends_a_verify_in_one_line(copy, dgn, monkeypatch):
    monkeypatch.setattr(verifying, "FEW_SHARDS", 0)
    monkeypatch.setattr(readers, "_begin", partial(os._exit, 9))
    assert_one_line(dgn("verify", copy, "--sample", 0), 1, "was killed", "the same command continues")


def test_an_interrupted_verify_ends_in_one_line_at_any_moment(tmp_path):
    """While processes start, too: a terminal sends Ctrl-C to all of them. Slow machines come less far in that time."""
    write_fake_run(str(tmp_path / "run"), targets=("classes",), shard_size=6, are_flat=True)
    verify = [sys.executable, "-m", "dgn.jobs", "verify", str(tmp_path / "run"), "--sample", "0"]
    codes = []
    for moment_s in [*np.linspace(0.1, 0.8, 15), 2, 4, 8]:  # the last three on a machine that is busy
        if moment_s > 1 and 130 in codes:
            break
        checking = subprocess.Popen(verify, stdout=-1, stderr=-1, text=True, start_new_session=True)
        time.sleep(moment_s)
        os.killpg(checking.pid, signal.SIGINT)
        *_, said = checking.communicate()
        codes.append(checking.returncode)
        if codes[-1] == 130:
            assert re.fullmatch(r"(.* INFO continues .*\n)?dgn: interrupted; repeat .*\n", said), said
        else:  # done, or before Python has come to dgn
            assert codes[-1] in (0, -signal.SIGINT)
    assert 130 in codes


def test_a_cluster_finds_the_same(damaged, reading_of, dgn, monkeypatch):
    expected = dgn("verify", damaged)
    reading = reading_of(damaged)
    monkeypatch.setattr(verifying, "SHARDS_PER_TASK", 2)
    monkeypatch.setattr(on_cluster, "TASKS_PER_CPU", 1 / ray.cluster_resources()["CPU"])
    assert list(itertools.chain.from_iterable(on_cluster.read_on_cluster(reading))) == read_shards(reading)
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setattr(verifying, "read_shards", refuse)  # of this process
    assert dgn("verify", damaged) == expected
    with pytest.raises(StoreError, match="instead of the run another"):
        list(on_cluster.read_on_cluster(replace(reading, run_id="another")))


def test_without_a_sample_neither_network_nor_pytorch_is_needed(copy, dgn):
    """Also of a network that is code, which nobody has to name again."""
    code = "import sys; sys.argv = ['dgn', 'verify', *sys.argv[1:]]; from dgn.jobs.cli import main\n"
    code += "try: main()\nfinally: print('torch' in sys.modules)"
    path = copy / "run.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"config": content["config"] | {"discriminator": "/nowhere/net.py:make"}}))
    checks = [sys.executable, "-c", code, str(copy), "--sample"]
    shown = subprocess.run([*checks, "0"], capture_output=True, text=True, check=True).stdout
    assert shown == "8 targets expected, 8 found, 0 duplicate or stray, 0 scored again, 0 problems\nFalse\n"
    assert_one_line(dgn("verify", copy), 2, "this run's network is code")


def test_layers_that_give_other_targets_are_refused(copy, dgn):
    path = copy / "run.json"
    content = json.loads(path.read_text())
    content["layers"]["labels"][0:2] = reversed(content["layers"]["labels"][0:2])  # of classes that are not named
    path.write_text(json.dumps(content))
    assert dgn("verify", copy, "--sample", "0")[0] == 0
    content["layers"]["class_layer"] = "conv5_2"
    path.write_text(json.dumps(content))
    assert_one_line(dgn("verify", copy, "--sample", "0"), 2, "do not give its own target list", "it was edited")


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
