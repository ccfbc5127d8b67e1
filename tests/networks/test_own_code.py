"""Networks of one's own: FILE.py:FUNCTION and package.module:FUNCTION."""

import pickle
import sys

import pytest
import torch
from torch import nn

from dgn.errors import DgnError
from dgn.networks import own_code as own_code_module
from dgn.networks.network import Network
from dgn.networks.own_code import is_code, own_code

NET = """
from torch import nn

class Net(nn.Sequential):
    pass

def build():
    return Net(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
"""


@pytest.fixture
def file(tmp_path):
    """Writes a file of Python and gives its path."""

    def write(text, name="net.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("name", "is_it"),
    [("net.py:build", True), ("package.module:build", True), ("/a/b.py:C", True), ("vgg16", False),
     ("timm:resnet18", False)],
)  # fmt: skip
def test_a_name_with_a_colon_is_code_unless_it_is_timms(name, is_it):
    assert is_code(name) is is_it


def test_a_function_of_a_file_builds_the_network(file, monkeypatch):
    path = file(NET)
    for name in (f"{path}:build", "net.py:build", "~/net.py:build"):
        monkeypatch.chdir(path.parent)
        monkeypatch.setenv("HOME", str(path.parent))
        code = own_code(name)
        assert code.name == "net.py:build"
        network = Network(code, size=32, mean=0, std=1)
        assert network.name == "net.py:build"
        assert network.layers.num_classes == 2


def test_a_class_is_a_function_too(file):
    assert isinstance(own_code(f"{file(NET)}:Net")(), nn.Sequential)


def test_a_function_of_a_package_builds_the_network(file, monkeypatch):
    path = file(NET, "ownpackage_a/nets.py")
    monkeypatch.syspath_prepend(str(path.parent.parent))
    assert isinstance(own_code("ownpackage_a.nets:build")(), nn.Module)
    assert isinstance(own_code("torchvision.models:squeezenet1_1")(), nn.Module)


def test_a_package_in_the_working_directory_is_found(file, monkeypatch):
    path = file(NET, "ownpackage_b/nets.py")
    monkeypatch.chdir(path.parent.parent)
    before = list(sys.path)
    assert isinstance(own_code("ownpackage_b.nets:build")(), nn.Module)
    assert sys.path == before


def test_nothing_runs_before_it_is_called(file, tmp_path):
    text = f"open({str(tmp_path / 'ran')!r}, 'a').write('x')\n" + NET
    code = own_code(f"{file(text)}:build")
    Network(code, size=32, mean=0, std=1, name=code.name).with_settings(size=64)
    pickle.dumps(code)
    assert not (tmp_path / "ran").exists()
    code(), code()
    assert (tmp_path / "ran").read_text() == "x", "once per process"


@pytest.mark.parametrize("where", ["at the top", "inside the function"])
def test_modules_beside_the_file_can_be_imported(where, file):
    beside = f"beside_{where.replace(' ', '_')}"
    file("from torch import nn\nHEAD = nn.Linear(4, 7)\n", f"{beside}.py")
    line = f"from {beside} import HEAD\n"
    text = (
        line + "def build():\n    return HEAD\n"
        if where == "at the top"
        else f"def build():\n    {line}    return HEAD\n"
    )
    before = list(sys.path)
    assert own_code(f"{file(text, f'uses_{beside}.py')}:build")().out_features == 7
    assert sys.path == before


def test_code_finds_files_beside_its_own(file, tmp_path, monkeypatch):
    """From any folder, and also where the same text lies in two."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = (
        "from pathlib import Path\nfrom torch import nn\n\n"
        "def build():\n    return nn.Linear(4, int((Path(__file__).parent / 'classes.txt').read_text()))\n"
    )
    for name, classes in (("a", 2), ("b", 7)):
        path = file(text, f"{name}/net.py")
        (path.parent / "classes.txt").write_text(str(classes))
        assert own_code(f"{path}:build")().out_features == classes


def test_a_machine_without_the_file_names_the_one_that_the_code_looks_for(file):
    path = file("from pathlib import Path\n\ndef build():\n    Path(__file__).with_name('w.pth').read_bytes()\n")
    sent = pickle.dumps(own_code(f"{path}:build"))
    path.unlink()
    with pytest.raises(DgnError, match=f"failed: FileNotFoundError: .*{path.with_name('w.pth')}"):
        pickle.loads(sent)()


@pytest.mark.parametrize(
    ("text", "function", "says"),
    [
        ("def build(:\n", "build", r"cannot load net.py:build: SyntaxError: .*net.py"),
        ("import no_such_package_at_all\n", "build", "net.py:build: ModuleNotFoundError: No module named 'no_such"),
        ("1 / 0\n", "build", "cannot load net.py:build: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit('usage: net.py FILE')\n", "build", "net.py:build: SystemExit: usage: net.py FILE"),
        (NET, "biuld", "net.py:biuld: net.py has no function 'biuld'; expected one that returns an nn.Module"),
        ("build = 3\n", "build", "net.py has no function 'build'"),
        ("def build():\n    raise ValueError('a\\nb')\n", "build", r"net.py:build\(\) failed: ValueError: b"),
        ("def build():\n    raise SystemExit(2)\n", "build", r"net.py:build\(\) failed: SystemExit: 2"),
        ("def build(classes):\n    return 3\n", "build", r"net.py:build\(\) failed: TypeError: .*'classes'"),
        ("def build():\n    return {'weights': 3}\n", "build", r"build\(\) returned a dict: expected an nn.Module"),
        ("def build():\n    pass\n", "build", "returned a NoneType: expected an nn.Module"),
    ],
)  # fmt: skip
def test_code_that_builds_no_network_is_refused_in_one_line(text, function, says, file):
    code = own_code(f"{file(text)}:{function}")
    with pytest.raises(DgnError, match=says) as caught:
        code()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere/net.py:build", r"network 'nowhere/net.py:build': cannot read nowhere/net.py \(FileNotFoundError"),
        (".py:build", "cannot read .py"),
        ("net.py:", "expected FILE.py:FUNCTION or package.module:FUNCTION"),
        (":build", "expected FILE.py:FUNCTION"),
        ("net.py:a b", "expected FILE.py:FUNCTION"),
        ("net.py:Net.build", "expected FILE.py:FUNCTION"),
    ],
)
def test_names_of_nothing_are_refused_at_once(name, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DgnError, match=says) as caught:
        own_code(name)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "net.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DgnError, match=r"cannot read .*UnicodeDecodeError"):
        own_code(f"{tmp_path / 'net.py'}:build")


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(DgnError, match=r"cannot load no_such_package.nets:build: ModuleNotFoundError"):
        own_code("no_such_package.nets:build")()


def test_an_error_in_the_code_shows_its_line(file):
    """A traceback, as with --debug, has the line of the person's own file."""
    import traceback

    code = own_code(f"{file('def build():' + chr(10) + '    return missing_name' + chr(10))}:build")
    with pytest.raises(DgnError) as caught:
        code()
    assert "return missing_name" in "".join(traceback.format_exception(caught.value.__cause__))


def test_another_process_needs_no_file(file):
    """The text travels with the network; what it was traced to, too."""
    path = file(NET)
    network = Network(own_code(f"{path}:build"), size=32, mean=0, std=1)
    assert network.layers.num_classes == 2
    sent = pickle.dumps(network)
    path.unlink()
    forget()
    there = pickle.loads(sent)
    assert not [name for name in sys.modules if name.startswith("dgn_network_")], "nothing of it has run"
    assert there.layers.num_classes == 2
    assert [type(module).__name__ for module in there.built()] == [
        "Conv2d", "ReLU", "AdaptiveAvgPool2d", "Flatten", "Linear",
    ]  # fmt: skip


def forget():
    """This process is as one that has run no code of anybody's."""
    own_code_module._run_once.cache_clear()
    for name in [name for name in sys.modules if name.startswith("dgn_network_")]:
        del sys.modules[name]


def test_each_caller_has_a_module_of_its_own_with_the_same_weights(file):
    """The function runs once, so that random weights are the same wherever a process asks for them."""
    code = own_code(f"{file(NET)}:build")
    one, other = code(), code()
    assert torch.equal(one[0].weight, other[0].weight)
    one[0].weight.data.zero_()
    assert other[0].weight.abs().sum() > 0
    assert code()[0].weight.abs().sum() > 0


def test_a_module_that_cannot_be_copied_is_refused_in_one_line(file):
    text = NET + "    net.latest = [net[0](__import__('torch').rand(1, 3, 8, 8))]\n    return net\n"
    code = own_code(f"{file(text.replace('return Net', 'net = Net'))}:build")
    with pytest.raises(DgnError, match=r"net.py:build\(\) returned a module that cannot be copied") as caught:
        code()
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_computed_from_others_are_each_callers_own(file):
    text = NET.replace("return Net(nn.Conv2d(3, 4, 3)", "return Net(nn.utils.weight_norm(nn.Conv2d(3, 4, 3))")
    code = own_code(f"{file(text)}:build")
    one, other = code(), code()
    assert torch.equal(one[0].weight_g, other[0].weight_g)
    one[0].weight_g.data.zero_()
    assert other[0].weight_g.abs().sum() > 0
