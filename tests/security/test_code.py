"""The project's own code neither unpickles nor evaluates anything."""

import ast
import os

from tests.helpers.hostile import ROOT

FOLDERS = ("dgn", "cluster", "jobs", "tools")
FORBIDDEN = {
    "pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "eval", "exec", "os.system", "os.popen",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "pandas.read_pickle", "torch.hub.load",
}  # fmt: skip


# A network of the user's own is code that the user names and wants to be run.
WANTED = {"dgn/networks/own_code.py": ["exec"]}


def unsafe_calls(source):
    """Names of what must not be in the project's code, found in its syntax tree."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN)
        elif isinstance(node, ast.ImportFrom):
            yield from (n for n in [node.module, *(f"{node.module}.{a.name}" for a in node.names)] if n in FORBIDDEN)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in FORBIDDEN:
                yield name
            if name == "torch.load" and given.get("weights_only") != "True":
                yield "torch.load without weights_only=True"
            if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
                yield f"{name} with allow_pickle or shell"


def sources():
    """Every Python file once: dgn/ has links to cluster/ and jobs/, which are not followed."""
    for folder in FOLDERS:
        for place, _, names in os.walk(ROOT / folder, followlinks=False):
            yield from (f"{place}/{name}" for name in names if name.endswith(".py"))


def test_the_code_unpickles_and_evaluates_nothing():
    found = {}
    for path in sources():
        with open(path) as file:
            if unsafe := list(unsafe_calls(file.read())):
                found[os.path.relpath(path, ROOT)] = unsafe
    assert found == WANTED


def test_the_check_looks_at_every_file_of_the_package_once():
    paths = [os.path.relpath(path, ROOT) for path in sources()]
    assert {"dgn/method/loop.py", "cluster/driver.py", "jobs/cli.py", "jobs/galleries/server.py"} <= set(paths)
    assert not [path for path in paths if path.startswith(("dgn/cluster", "dgn/jobs"))]
    assert len({os.path.realpath(ROOT / path) for path in paths}) == len(paths)
    followed = {
        os.path.realpath(f"{place}/{name}")
        for place, _, names in os.walk(ROOT / "dgn", followlinks=True)
        for name in names
        if name.endswith(".py")
    }
    assert followed <= {os.path.realpath(ROOT / path) for path in paths}, "whatever `import dgn` can reach"


def test_the_check_finds_what_it_looks_for():
    for source in (
        "import pickle", "import ray.cloudpickle as p\nfrom ray import cloudpickle\nimport cloudpickle", "eval('1')",
        "from yaml import load", "import yaml; yaml.load(x)", "import torch; torch.load(x)",
        "import torch; torch.load(x, weights_only=False)", "import numpy as np; np.load(x, allow_pickle=True)",
        "import subprocess; subprocess.run(x, shell=True)", "from os import system",
    ):  # fmt: skip
        assert list(unsafe_calls(source)), source
    assert not list(unsafe_calls("import torch; torch.load(x, weights_only=True); model.eval()"))
