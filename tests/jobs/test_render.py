"""`dgn render` and `dgn resume`: rows as documented, plans, and one line for settings that are wrong."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dgn.method.decoder import serialise
from dgn.runs.schema import SCHEMA
from tests.conftest import WIDTH
from tests.helpers.rows import assert_one_line, every_row

MINI = ["--discriminator", "vgg16-mini"]
QUICK = [*MINI, "--updates", "3", "--views", "1", "--precision", "float32", "--workers", "1"]

pytestmark = pytest.mark.usefixtures("local_ray")


def test_rows_hold_everything_that_is_documented(rendered):
    rows = every_row(rendered)
    assert [row["target_id"] for row in rows] == [
        "conv1_1-00000-untrained-s0", "conv1_1-00001-untrained-s0", "conv5_1-3x0.5_17-untrained-s0",
        "fc8-00000-untrained-s0", "fc8-00001-untrained-s0", "fc8-00002-untrained-s0", "fc8-00007-untrained-s0",
        "fc8-1_2-untrained-s0",
    ]  # fmt: skip
    heart, mix, group = rows[6], rows[7], rows[2]
    filled = {name for name, value in heart.items() if value is not None}
    assert filled >= set(SCHEMA.names) - {"reason"}
    assert (heart["label"], heart["discriminator"], heart["updates"]) == ("heart", "vgg16-mini", 6)
    assert len(heart["top5"]) == 5
    assert (mix["unit"], mix["label"]) == (None, "ring + triangle")
    assert (group["unit"], group["label"], group["probability"]) == (None, None, None)
    assert [(one["unit"], one["weight"]) for one in group["units"]] == [(3, 0.5), (17, 1.0)]
    described = json.loads(pq.read_schema(rendered / "metadata" / "000000.parquet").metadata[b"dgn"])
    assert described["weights_sha256"]
    assert described["render"]["untrained"]["width"] == WIDTH


def test_a_whole_run_and_other_settings_are_seen_before_ray_starts(rendered, dgn, monkeypatch):
    monkeypatch.delattr("dgn.cluster.connection.connect")
    code, out, _ = dgn("resume", rendered)
    assert code == 0
    assert "8 of 8 pictures" in out
    assert "all were there already" in out
    assert_one_line(dgn("render", rendered, *QUICK, "--targets", "classes:0"), 2, "holds a run with other settings")


def test_a_dry_run_prints_the_plan_and_writes_nothing(dgn, tmp_path):
    code, out, _ = dgn("render", tmp_path / "run", "--targets", "all", *MINI, "--dry-run")
    assert code == 0
    assert "576 targets" in out
    assert "the pretrained mode needs --decoder FILE" in out
    assert "PFLOP" in out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_looks_at_the_run_and_at_the_cluster(rendered, dgn, tmp_path):
    own = ["--targets", "classes:0-2,heart", "mix:classes:1+2", "filters:conv1_1:0-1", "group:conv5_1:3*0.5+17",
           "--width", WIDTH, "--updates", 6, "--views", 1, "--shard-size", 2, *MINI]  # fmt: skip
    code, out, err = dgn("render", rendered, *own, "--dry-run", "--workers", "2")
    assert code == 0, err
    assert f"  {rendered} has 5 of its 5 shards\n  2 workers, each with 0 GPU, " in out
    refused = "holds a run with other settings: render.preset is standard there, draft here"
    assert_one_line(dgn("render", rendered, *own, "--preset", "draft", "--dry-run"), 2, refused)
    answer = dgn("render", tmp_path / "run", *own, "--dry-run", "--gpus-per-worker", "1")
    assert_one_line((answer[0], "", answer[2]), 2, "--gpus-per-worker 1: the cluster has no GPU")


def test_the_decoder_that_ships_is_known_by_name(dgn, tmp_path):
    run, command = tmp_path / "run", ["--targets", "classes:star", "--modes", "pretrained", "--decoder", "drawings"]
    code, out, err = dgn("render", run, *command, *QUICK)
    assert code == 0, err
    assert "1 of 1 picture in " in out
    assert json.loads((run / "run.json").read_text())["config"]["decoder"] == "drawings"
    assert "all were there already" in dgn("resume", run)[1]


def test_the_pretrained_mode_renders_with_a_decoder(dgn, tmp_path, decoder):
    """Beside the untrained mode: on a contact sheet each unit's two pictures stand side by side."""
    run, file = tmp_path / "run", tmp_path / "decoder.safetensors"
    file.write_bytes(serialise(decoder, {"width": WIDTH}))
    command = [
        "render", run, "--targets", "classes:star,heart", "--modes", "untrained,pretrained", "--decoder", file, *QUICK,
    ]  # fmt: skip
    code, out, err = dgn(*command, "--width", WIDTH)
    assert code == 0, err
    assert "4 of 4 pictures" in out
    assert_one_line(dgn(*command, "--width", "0.25"), 2, f"decoder {file} has width 0.125, not 0.25")
    other = tmp_path / "other.safetensors"
    other.write_bytes(serialise({"conv0.weight": torch.zeros(1)}, {"width": WIDTH}))
    command[command.index(file)] = other
    assert_one_line(dgn(*command), 2, "does not fit its width 0.125: conv0.weight is (1,)")
    assert dgn("sheet", run, tmp_path / "sheet.png", "--columns", 2)[0] == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        for row, unit in enumerate((4, 7)):
            for column, mode in enumerate(("untrained", "pretrained")):
                left, top = 6 + column * (224 + 6), 6 + row * (224 + 3 * 18 + 6)
                [path] = (run / "images").rglob(f"fc8-{unit:05d}-{mode}-s0.png")
                with Image.open(path) as picture:
                    assert sheet.crop((left, top, left + 224, top + 224)).tobytes() == picture.tobytes()


BAD = {
    "unknown class": (["--targets", "classes:unicorn"], "unknown class 'unicorn'"),
    "unknown layer": (["--targets", "filters:conv7_1"], "unknown layer 'conv7_1'"),
    "unknown unit": (["--targets", "classes:24"], "unknown unit 24"),
    "unknown mode": (["--targets", "classes", "--modes", "trained"], "unknown mode 'trained'"),
    "two classes": (["--targets", "classes:cardigan", "--discriminator", "vgg16"], "names 2 classes, 264 and 474"),
    "no decoder": (["--targets", "classes:1", "--modes", "pretrained"], "dgn pretrain IMAGES FILE makes one"),
    "missing decoder": (["--targets", "classes:1", "--modes", "pretrained", "--decoder", "no"], "no decoder at "),
    "missing weights": (["--targets", "classes:1", "--weights", "no.pth"], "/no.pth: expected a .safetensors"),
    "unknown preset": (["--targets", "classes:1", "--preset", "best"], "unknown preset 'best'"),
    "unknown network": (["--targets", "classes:1", "--discriminator", "vgg17"], "unknown network 'vgg17'"),
    "bad number": (["--targets", "classes:1", "--shard-size", "0"], "expected 'auto' or at least 1, got '0'"),
    "bad batch": (["--targets", "classes:1", "--batch-size", "many"], "setting batch_size"),
    "no such file": (["--config", "no.yaml"], "cannot read the settings in no.yaml"),
    "no GPU": (["--targets", "classes:1", "--gpus-per-worker", "1"], "the cluster has no GPU"),
    "two runs": (["classes:1"], "unexpected 'classes:1': targets come after --targets, and RUN is one folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(name, dgn, tmp_path):
    if name == "no GPU" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    arguments, says = BAD[name]
    network = [] if "--discriminator" in arguments else MINI
    code, _, err = dgn("render", tmp_path / "run", *arguments, *network)
    [line] = [line for line in err.splitlines() if line.startswith("dgn: ")]
    assert code == 2
    assert says in line
    assert not (tmp_path / "run").exists()


def test_other_settings_are_refused(rendered, dgn):
    code, _, err = dgn("render", rendered, "--targets", "classes:1", *QUICK)
    assert code == 2
    assert "holds a run with other settings" in err
