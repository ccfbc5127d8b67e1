"""dgn's own processes do not import PyTorch's compiler, unless something needs it. Each test has its own process."""

import subprocess
import sys

import pytest

LEFT_OUT = """
import sys
from dgn.compiler import COMPILER, UTILITIES, leave_out_compiler
leave_out_compiler()
def is_there():
    return hasattr(sys.modules[COMPILER], "__file__")
"""
WHAT_DGN_DOES = """
import torch
from dgn.networks.registry import network_named
print(network_named("squeezenet1_1").layers.num_classes, is_there())
weight = torch.zeros(3, requires_grad=True)
optimiser = torch.optim.Adamax([weight], lr=0.5)
weight.sum().backward()
optimiser.step()
optimiser.zero_grad()
print(weight.tolist(), is_there())
"""
DETECTION = """
import torch
from torchvision.ops import roi_align
assert roi_align(torch.rand(1, 1, 8, 8), [torch.tensor([[0.0, 0, 4, 4]])], 2).shape == (1, 1, 2, 2)
print(is_there())
sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
print(is_there(), torch._dynamo.utils is sys.modules[UTILITIES])
"""
COMPILED = """
import torch
print(is_there())
print(torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(2)).tolist(), is_there())
"""
OTHER_WAYS = {
    "a name": "from torch._dynamo import config; print(config.suppress_errors)",
    "an attribute": "import torch; print(torch._dynamo.config.suppress_errors)",
    "a module": "import torch._dynamo.config as config; print(config.suppress_errors)",
    "a decorator": "import torch; print(torch.compiler.disable()(lambda: False)())",
    "a decorator with settings": "import torch; print(torch.compiler.disable(recursive=False)(lambda: False)())",
    "a name of its utilities": "from torch._dynamo.utils import counters; print(bool(counters))",
}


def python(code):
    finished = subprocess.run([sys.executable, "-c", LEFT_OUT + code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_networks_and_optimisers_do_without():
    assert python(WHAT_DGN_DOES) == "1000 False\n[-0.5, -0.5, -0.5] False\n"


def test_torchvisions_detection_imports_it_when_it_asks_about_it():
    assert python(DETECTION) == "False\nTrue True\n"


def test_code_of_ones_own_may_compile():
    assert python(COMPILED) == "False\n[2.0, 2.0] True\n"


def test_it_is_found_and_functions_are_marked_once_it_is_there():
    code = """
from importlib.util import find_spec
import torch
optimiser = torch.optim.SGD([torch.zeros(1)], lr=1)
torch._dynamo.graph_break("here")
print(find_spec(COMPILER).name, is_there())
torch._dynamo.config
mark = torch.optim.Optimizer.add_param_group.__wrapped__
print(is_there(), hasattr(mark, "__dynamo_disable"))
torch.optim.SGD([torch.zeros(1)], lr=1)
print(mark.__dynamo_disable is mark)
"""
    assert python(code) == "torch._dynamo False\nTrue False\nFalse\n"


@pytest.mark.parametrize("code", OTHER_WAYS.values(), ids=OTHER_WAYS)
def test_whoever_asks_for_more_gets_it(code):
    assert python(f"{code}; print(is_there())") == "False\nTrue\n"
