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


GENERATOR = """
import torch
from torch import nn

class Flat(nn.Module):
    code_shape = (2, 3)

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(6, 3)

    def forward(self, codes):
        return torch.sigmoid(self.mix(codes.flatten(1)))[:, :, None, None].expand(-1, -1, 16, 16)
"""


def test_a_generator_of_ones_own_draws(tmp_path, shared_machines, dgn):
    """Its weights are random in each process: workers draw with the driver's, and resuming with others is refused."""
    shared_machines.top_up(2)
    (tmp_path / "gen.py").write_text(GENERATOR)
    run, code = tmp_path / "run", f"{tmp_path / 'gen.py'}:Flat"
    line = ("render", run, "--discriminator", "vgg16-mini", "--targets", "classes:0-3", "--modes", "pretrained",
            "--updates", "3", "--precision", "float32", "--shard-size", "1", "--workers", "2")  # fmt: skip
    environment = {**shared_machines.environment, "RAY_ADDRESS": shared_machines.address}

    def in_a_process(*line):
        return subprocess.run(
            [sys.executable, "-m", "dgn.jobs", *map(str, line)], cwd=tmp_path, capture_output=True, text=True,
            check=False, env=environment,
        )  # fmt: skip

    done = in_a_process(*line, "--generator", code)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 pictures" in done.stdout
    for row in open_run(run).table().to_pylist():
        image = Image.open(io.BytesIO((run / row["file_name"]).read_bytes()))
        assert image.size == (224, 224)
        assert all(low == high for low, high in image.getextrema())
    assert dgn("verify", run)[0] == 0, "which draws nothing"
    refused = dgn("resume", run)
    assert refused[0] == 2
    assert refused[2].endswith("this run's generator is code, gen.py:Flat: to run it, name it again with --generator "
                               "gen.py:Flat\n")  # fmt: skip
    other = in_a_process("resume", run, "--generator", code)
    assert other.returncode == 2
    assert "its decoder or generator is not the one" in other.stderr


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
