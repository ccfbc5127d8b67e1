"""A run, its index, its judgements and a decoder that the version before the rooms wrote: still read, and continued.

tests/data/run-0.1.0-before-rooms.tar.gz: four targets of vgg16-mini, a shard each, in both modes, judged by
vgg16-mini-b, with its decoder. Made by that version's `dgn pretrain`, `dgn render` and `dgn judge`; a path in run.json
was shortened.
"""

import json
import tarfile
from pathlib import Path

import pytest

import dgn as front_door
from dgn.method.decoder import read_decoder

ARCHIVE = Path(__file__).parent.parent / "data" / "run-0.1.0-before-rooms.tar.gz"
DECODER_SHA256 = "79c94c645456b5eb40334bcf31f02a5796a3af54fe34b03af030d385ebd22b3e"


@pytest.fixture
def earlier(tmp_path):
    """The folder with `run` and `decoder.safetensors`."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_it_is_queried(earlier, dgn):
    code, out, err = dgn("query", earlier / "run", "--columns", "target_id,status,rank,activation", "--format", "json")
    assert code == 0, err
    rows = {row.pop("target_id"): row for row in json.loads(out)}
    assert rows["fc8-00004-pretrained-s5"] == {
        "status": "not_converged", "rank": 2, "activation": pytest.approx(2.204, abs=1e-3),
    }  # fmt: skip
    assert rows["fc8-00007-untrained-s5"] == {"status": "dead", "rank": 19, "activation": 0}
    assert len(rows) == 4
    run = front_door.open_run(str(earlier / "run"))
    assert [picture.rank for picture in run.best("fc8", 1)] == [2]
    assert run.picture("fc8-00004-untrained-s5").image.size == (224, 224)


def test_its_judgements_are_read(earlier, dgn):
    code, out, err = dgn("judge", earlier / "run", "--summary", "--json")
    assert code == 0, err
    by_mode = {one["mode"]: one for one in json.loads(out)}
    assert {mode: one["num_pictures"] for mode, one in by_mode.items()} == {"untrained": 2, "pretrained": 2}
    assert by_mode["untrained"]["judge_top5"] == 0.5
    assert by_mode["pretrained"]["blur_first"] == 0.5
    code, out, _ = dgn("query", earlier / "run", "--sql", "SELECT count(*) AS n FROM judged", "--format", "json")
    assert (code, json.loads(out)) == (0, [{"n": 4}])


def test_it_is_verified(earlier, dgn):
    code, out, _ = dgn("verify", earlier / "run", "--sample", "4")
    assert code == 0
    assert out == "4 targets expected, 4 found, 0 duplicate or stray, 4 scored again, 0 problems\n"


def test_its_decoder_is_read(earlier):
    decoder = read_decoder((earlier / "decoder.safetensors").read_bytes(), "decoder")
    assert (decoder.width, decoder.sha256) == (0.03, DECODER_SHA256)


@pytest.mark.usefixtures("local_ray")
def test_it_is_resumed(earlier, dgn):
    """Two of its shards are taken away, one of each mode; what is whole stays as it is."""
    run = earlier / "run"
    kept = (run / "metadata" / "000001.parquet").read_bytes()
    for shard in ("000000", "000002"):
        (run / "metadata" / f"{shard}.parquet").unlink()
    code, out, err = dgn("resume", run, "--decoder", earlier / "decoder.safetensors", "--workers", 1)
    assert code == 0, err
    assert out.startswith("4 of 4 pictures in ")
    assert (run / "metadata" / "000001.parquet").read_bytes() == kept
    code, out, _ = dgn("verify", run, "--sample", "4")
    assert (code, out) == (0, "4 targets expected, 4 found, 0 duplicate or stray, 4 scored again, 0 problems\n")
    code, out, _ = dgn("index", run, "--rebuild")
    assert (code, out.startswith("4 of 4 rows in 1 part")) == (0, True)
