"""Networks of one's own on the command line: what is wrong is said in one line, before Ray and before any file."""

import pytest
import torch
from torch import nn

from dgn.cluster import connection
from tests.helpers.rows import assert_one_line

CODE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

def backbone():
    return nn.Sequential(nn.Conv2d(3, 4, 5, 3), nn.ReLU())

def for_several():
    return nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten(), nn.BatchNorm1d(4, track_running_stats=False))

def of_five_channels():
    return nn.Conv2d(5, 4, 3)

def broken():
    raise ValueError("no such layer")

def no_module():
    return 3

class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 3, 3, 3))

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight).permute(0, 2, 3, 1)
"""
SEES = ("--input-size", "32", "--mean", "0", "--std", "1")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nets.py").write_text(CODE)
    (tmp_path / "two.txt").write_text("ill\nhealthy\n")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html></html>")
    good = nn.Sequential(nn.Conv2d(3, 4, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        good[4].bias[1] = float("nan")
    torch.save(good.state_dict(), tmp_path / "nan.pth")
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "other.pth")
    return tmp_path


BAD = {
    "no preprocessing": (
        ("build",),
        "nets.py:build does not say what pictures it wants: give --input-size, --mean, --std",
    ),
    "no such function": (("built", *SEES), "has no function 'built'"),
    "a function that fails": (("broken", *SEES), "nets.py:broken() failed: ValueError: no such layer"),
    "no module": (("no_module", *SEES), "nets.py:no_module() returned a int: expected an nn.Module"),
    "five channels": (("of_five_channels", *SEES), "reads pictures of 5 channels: expected 3 (colour) or 1 (grey)"),
    "too small": (
        ("build", "--input-size", "32", "--mean", "0,0", "--std", "1"),
        "mean (0.0, 0.0): expected one number",
    ),
    "only for batches": (("for_several", *SEES), "runs on several pictures and not on one"),
    "without classes": (("backbone", *SEES, "--class-layer", "9"), "unknown class layer '9'"),
    "wrong labels": (
        ("build", *SEES, "--labels", "two.txt"),
        "labels two.txt: nets.py:build: 2 labels for 3 classes in 4; expected one per class",
    ),
    "no labels": (
        ("build", *SEES, "--labels", "none.txt"),
        "none.txt: expected a file, s3://, gs:// or az:// with one label per class",
    ),
    "not a number": (("build", *SEES, "--weights", "nan.pth"), "4.bias"),
    "a web page": (("build", *SEES, "--weights", "page.pth"), "is a web page instead of the file that it links to"),
    "other weights": (("build", *SEES, "--weights", "other.pth"), "other.pth"),
    "no hash": (("build", *SEES, "--weights", "https://localhost/w.pth"), "give --weights-sha256 too"),
    "another hash": (
        ("build", *SEES, "--weights", "other.pth", "--weights-sha256", "0" * 64),
        "not " + "0" * 64 + ": it is another file",
    ),
    "no direction": (("build", *SEES, "--targets", "direction:4:none.npy"), "cannot read the direction"),
}


@pytest.mark.parametrize("name", BAD)
def test_it_is_one_line_before_ray_and_before_anything_is_written(name, folder, dgn, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(connection, "connect", lambda *_: pytest.fail("Ray starts"))
    (function, *flags), says = BAD[name]
    targets = [] if "--targets" in flags else ["--targets", "classes:0"]
    answer = dgn("render", "run", "--discriminator", f"nets.py:{function}", *flags, *targets)
    assert_one_line(answer, 2, says)
    assert not (folder / "run").exists()


def test_info_says_what_the_network_sees(folder, dgn, monkeypatch):
    monkeypatch.chdir(folder)
    network = ("--discriminator", "nets.py:build", *SEES, "--output", "sigmoid")
    code, out, _ = dgn("info", *network)
    assert code == 0
    assert "sees RGB pictures of 32 px, mean 0, std 1, white 1" in out
    assert "classes: 3 units of 4, sigmoid" in out
    code, out, _ = dgn("info", "--discriminator", "nets.py:backbone", *SEES, "--class-layer", "output")
    assert code == 0


@pytest.mark.parametrize(
    ("function", "flags", "says"),
    [
        ("Bare", (), "nets.py:Bare has no layers to draw: it has no classes (its output is a map with channels last"),
        ("Bare", ("--layers",), "nets.py:Bare has no layers to draw"),
        ("build", ("--layer", "nope"), "unknown layer 'nope': --layers lists those of nets.py:build"),
    ],
)
def test_info_refuses_layers_that_are_not_there(function, flags, says, folder, dgn, monkeypatch):
    monkeypatch.chdir(folder)
    assert_one_line(dgn("info", "--discriminator", f"nets.py:{function}", *SEES, *flags), 2, says)
