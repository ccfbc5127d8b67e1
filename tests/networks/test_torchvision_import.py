"""torchvision is imported without PyTorch's compiler: no classifier needs it, and it takes longer than the rest."""

import subprocess
import sys

import pytest

MODELS = "import sys\nfrom dgn.networks.torchvision_networks import COMPILER, torchvision_names\n"
NEEDED_LATER = """
print(len(torchvision_names()), "torch._dynamo" in sys.modules)
import torch
from torchvision.ops import roi_align
box = [torch.tensor([[0.0, 0, 4, 4]])]
picture = torch.arange(64.0).reshape(1, 1, 8, 8)
assert roi_align(picture, box, 2).shape == (1, 1, 2, 2)
assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu") is not None
import torch._dynamo.utils
assert torch._dynamo.utils is sys.modules[COMPILER] and torch._dynamo.utils.__file__
"""
ANOTHER_TORCHVISION = """
torchvision_names.__globals__["_models"]()
print(sys.modules["torchvision"].counters is sys.modules[COMPILER].counters)
"""


def python(code, **environment):
    return subprocess.run([sys.executable, "-c", MODELS + code], capture_output=True, text=True, **environment)


def test_the_compiler_is_imported_when_it_is_needed():
    finished = python(NEEDED_LATER)
    assert (finished.stdout, finished.returncode) == ("80 False\n", 0), finished.stderr


@pytest.mark.parametrize("asked", ["counters", "counters, is_compile_supported"])
def test_a_torchvision_that_wants_more_of_it_gets_it(tmp_path, asked):
    """Which none does today: a package in its place that asks for something else."""
    (tmp_path / "torchvision" / "models").mkdir(parents=True)
    (tmp_path / "torchvision" / "__init__.py").write_text(f"from torch._dynamo.utils import {asked}\n")
    (tmp_path / "torchvision" / "models" / "__init__.py").write_text("")
    code = f"sys.path.insert(0, {str(tmp_path)!r})\n" + ANOTHER_TORCHVISION
    finished = python(code)
    assert (finished.stdout, finished.returncode) == ("True\n", 0), finished.stderr
