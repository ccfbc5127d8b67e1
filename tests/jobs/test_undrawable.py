"""Networks that cannot draw, or not in bfloat16: one line before Ray and before anything is written, or float32."""

import json
import logging

import pytest

from dgn.cluster import connection, launch
from tests.helpers.rows import assert_one_line

CODE = """
import torch
from torch import nn

class Exact(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 5, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.conv(x.float()).mean((2, 3)))

class Detached(Exact):
    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)).detach())

class Highest(Exact):
    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3))).argmax(1)
"""
IN_BFLOAT16 = "nets.py:Exact does not run on 1 picture of 32 x 32 px in bfloat16"
WITHOUT_GRADIENT = "nets.py:Detached passes no gradient from fc to its pictures"


@pytest.fixture
def network(tmp_path, monkeypatch):
    """Flags for a network of that name in a new folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(CODE)
    return lambda name: ("--discriminator", f"nets.py:{name}", "--input-size", 32, "--mean", 0.5, "--std", 0.5)


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("name", "precision", "says"),
    [
        ("Exact", "bfloat16", IN_BFLOAT16),
        ("Detached", "auto", WITHOUT_GRADIENT),
        ("Detached", "bfloat16", WITHOUT_GRADIENT),
        ("Highest", "float32", "nets.py:Highest passes no gradient from output to its pictures"),
    ],
)
def test_it_is_one_line_before_ray_and_before_anything_is_written(
    name, precision, says, flags, network, dgn, tmp_path, monkeypatch
):
    monkeypatch.setattr(connection, "connect", lambda *_: pytest.fail("Ray starts"))
    answer = dgn("render", "run", *network(name), "--targets", "classes", "--precision", precision, *flags)
    assert_one_line(answer, 2, says)
    assert not (tmp_path / "run").exists()


def test_auto_is_float32_where_bfloat16_does_not_run(network, dgn, tmp_path, monkeypatch, local_ray, caplog):
    monkeypatch.setattr(launch, "resolve_precision", lambda asked, *_: asked.replace("auto", "bfloat16"))
    settings = ("--targets", "classes:0", "--preset", "draft", "--updates", 2, "--views", 1, "--width", 0.03125)
    with caplog.at_level(logging.INFO, "dgn"):
        code, _, err = dgn("render", "run", *network("Exact"), *settings)
    assert code == 0, err
    assert [line for line in caplog.messages if "it runs in float32" in line]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["precision"] == "float32"
    for precision in ("float32", "auto"):
        code, out, err = dgn("render", "run", *network("Exact"), *settings, "--precision", precision)
        assert code == 0, err
        assert "all were there already" in out


def test_a_dry_run_and_info_say_what_does_not_run(network, dgn):
    code, out, _ = dgn("render", "run", *network("Exact"), "--targets", "classes", "--dry-run")
    assert code == 0
    assert "nets.py:Exact does not run in bfloat16: with precision auto it runs in float32" in out
    assert_one_line(dgn("info", *network("Exact"), "--precision", "bfloat16"), 2, IN_BFLOAT16)
    assert_one_line(dgn("info", *network("Detached")), 2, WITHOUT_GRADIENT)
    assert_one_line(dgn("info", *network("Highest")), 2, "passes no gradient from output to its pictures")
