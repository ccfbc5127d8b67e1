"""A network of one's own on a cluster of two machines: its code, weights, labels and preprocessing reach every worker,
and every command that reads the run afterwards."""

import io
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from dgn import open_run

CODE = """
import torch
from torch import nn
from beside import CHANNELS

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, CHANNELS, 5, 3), nn.BatchNorm2d(CHANNELS), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 3),
    )
"""
SEES = ("--input-size", "40", "--mean", "0.5", "--std", "0.25", "--output", "sigmoid")
QUICK = ("--preset", "draft", "--updates", "2", "--views", "1", "--width", "0.03125", "--precision", "float32")


@pytest.fixture
def own(tmp_path):
    """A folder with a network's code, two files of weights, and labels."""
    (tmp_path / "nets.py").write_text(CODE)
    (tmp_path / "beside.py").write_text("CHANNELS = 6\n")
    (tmp_path / "labels.csv").write_text("index,label\n0,healthy\n2,both\n1,ill\n")
    build = {}
    sys.path.insert(0, str(tmp_path))
    exec(CODE, build)
    sys.path.remove(str(tmp_path))
    model = build["build"]()
    for name in ("own", "other"):
        torch.nn.init.normal_(model[5].weight)
        model[1].running_var.uniform_(0.5, 2)
        torch.save({"model": {f"module.{key}": tensor for key, tensor in model.state_dict().items()}, "epoch": 3},
                   tmp_path / f"{name}.pth")  # fmt: skip
    return tmp_path


def test_it_is_drawn_queried_judged_and_shown(own, shared_machines, dgn):
    shared_machines.top_up(2)
    run, code = own / "run", f"{own / 'nets.py'}:build"
    network = ("--discriminator", code, "--weights", own / "own.pth", "--labels", own / "labels.csv", *SEES)
    line = ("render", run, *network, "--targets", "classes", "filters", *QUICK, "--shard-size", "3", "--workers", "2")
    done = subprocess.run(
        [sys.executable, "-m", "dgn.jobs", *map(str, line)], cwd=own, capture_output=True, text=True, check=False,
        env={**shared_machines.environment, "RAY_ADDRESS": shared_machines.address},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "9 of 9 pictures" in done.stdout
    assert "own.pth: weights under 'model', without the prefix 'module.'" in done.stderr
    rows = {row["unit"]: row for row in open_run(run).table("layer=5").to_pylist()}
    assert {unit: row["label"] for unit, row in rows.items()} == {0: "healthy", 1: "ill", 2: "both"}
    assert {row["discriminator"] for row in rows.values()} == {"nets.py:build"}
    assert all(0 < row["probability"] < 1 for row in rows.values())
    assert sum(row["probability"] for row in rows.values()) != pytest.approx(1)
    filters = open_run(run).table("layer=1").to_pylist()
    assert len(filters) == 6, "what the convolution passes on, after its norm"
    for row in [*rows.values(), *filters]:
        image = Image.open(io.BytesIO((run / row["file_name"]).read_bytes()))
        assert (image.mode, image.size, row["width"]) == ("L", (40, 40), 40)

    named = ("--discriminator", code)
    assert dgn("verify", run)[2].endswith("to run it, name it again with --discriminator nets.py:build\n")
    code_, out, err = dgn("verify", run, *named)
    assert (code_, err) == (0, "")
    assert "8 scored again, 0 problems" in out
    assert dgn("resume", run)[0] == 2, "a run from elsewhere runs nothing unasked"
    by = ("--by", code, "--weights", own / "other.pth", "--labels", own / "labels.csv", *SEES)
    code_, out, err = dgn("judge", run, *by, *named, "--json")
    assert code_ == 0, err
    assert {one["layer"]: one["num_pictures"] for one in json.loads(out)} == {"1": 6, "5": 3}
    assert dgn("gallery", "build", run)[0] == 0
    assert dgn("sheet", run, own / "sheet.png")[0] == 0
