"""Networks that cannot draw: one line before Ray and before anything is written."""

import pytest

from dgn.cluster import connection
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
WITHOUT_GRADIENT = "nets.py:Detached passes no gradient from fc to its pictures"


@pytest.fixture
def network(tmp_path, monkeypatch):
    """Flags for a network of that name in a new folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(CODE)
    return lambda name: ("--discriminator", f"nets.py:{name}", "--input-size", 32, "--mean", 0.5, "--std", 0.5)


@pytest.mark.parametrize(
    ("name", "precision", "says"),
    [
        ("Detached", "auto", WITHOUT_GRADIENT),
        ("Detached", "bfloat16", WITHOUT_GRADIENT),
        ("Highest", "float32", "nets.py:Highest passes no gradient from output to its pictures"),
    ],
)
def test_it_is_one_line_before_ray_and_before_anything_is_written(
    name, precision, says, network, dgn, tmp_path, monkeypatch
):
    monkeypatch.setattr(connection, "connect", lambda *_: pytest.fail("Ray starts"))
    answer = dgn("render", "run", *network(name), "--targets", "classes", "--precision", precision)
    assert_one_line(answer, 2, says)
    assert not (tmp_path / "run").exists()


def test_info_says_it_in_one_line(network, dgn):
    assert_one_line(dgn("info", *network("Detached")), 2, WITHOUT_GRADIENT)
    assert_one_line(dgn("info", *network("Highest")), 2, "passes no gradient from output to its pictures")
