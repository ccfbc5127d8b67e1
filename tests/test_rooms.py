"""The architecture, held: layers, the way of one target through the files, what stays free of Ray, size of files."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
SOURCE = ("dgn", "cluster", "jobs")
# docs/architecture.md describes these ways.
TO_THE_FIRST_UPDATE = (
    "dgn.jobs.cli", "dgn.jobs.render", "dgn.cluster.launch", "dgn.cluster.driver", "dgn.cluster.worker",
    "dgn.method.loop",
)  # fmt: skip
FROM_TENSOR_TO_ROW = ("dgn.cluster.worker", "dgn.pictures.scoring", "dgn.pictures.codec", "dgn.runs.rows")


def path_of(module):
    parts = module.split(".")
    return CHECKOUT.joinpath(*(parts[1:] if parts[1] in ("cluster", "jobs") else parts)).with_suffix(".py")


def imports(module):
    """Modules and names that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path_of(module).read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def python_files(*folders):
    for folder in folders:
        for path in (CHECKOUT / folder).rglob("*.py"):
            relative = path.relative_to(CHECKOUT)
            if relative.parts[:2] not in (("dgn", "cluster"), ("dgn", "jobs")):  # links to folders that come anyway
                yield relative


def test_imports_go_downwards():
    """The contracts of pyproject.toml: layers, no circles, Ray in cluster/ only, a pure schedule."""
    lint = Path(sys.executable).parent / "lint-imports"
    finished = subprocess.run([lint, "--no-cache"], cwd=CHECKOUT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "5 kept, 0 broken" in finished.stdout


def test_from_the_command_to_the_first_update_in_six_files():
    assert len(TO_THE_FIRST_UPDATE) <= 6
    loaded_by_name = {("dgn.jobs.cli", "dgn.jobs.render")}  # the command line loads the command that is called
    for module, following in itertools.pairwise(TO_THE_FIRST_UPDATE):
        assert following in imports(module) or (module, following) in loaded_by_name, f"{module} -> {following}"
    assert '"render"' in path_of("dgn.jobs.cli").read_text()
    functions = {node.name for node in ast.parse(path_of("dgn.method.loop").read_text()).body if hasattr(node, "name")}
    assert "update" in functions, "the last of them makes the update"


def test_from_the_tensor_to_the_row_in_four_files():
    assert len(FROM_TENSOR_TO_ROW) <= 4
    worker, scoring, codec, rows = FROM_TENSOR_TO_ROW
    assert {scoring, codec, rows} <= imports(worker)
    assert codec in imports(scoring)


@pytest.mark.parametrize("path", sorted(map(str, python_files(*SOURCE, "tests", "benchmarks", "tools"))))
def test_files_are_short(path):
    assert len((CHECKOUT / path).read_text().splitlines()) <= 400


def test_only_engines_ask_what_kind_of_device_it_is():
    for path in python_files(*SOURCE):
        if path.parts[:2] != ("dgn", "engine"):
            assert not re.search(r'is_cuda|torch\.cuda|"cuda"|device\.type [!=]=', (CHECKOUT / path).read_text()), path


def test_cluster_and_jobs_are_imported_by_their_full_names():
    for path in python_files(*SOURCE, "tests", "benchmarks", "tools"):
        for node in ast.walk(ast.parse((CHECKOUT / path).read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            assert not any(name.split(".")[0] in ("cluster", "jobs") for name in names), path


def run_without(*modules, code):
    """Runs code in a process in which some modules cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({modules!r}));"
    finished = subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_dgn_reads_a_run_and_draws_where_ray_cannot_be_imported(tmp_path):
    from tests.helpers.fake_runs import write_fake_run

    url = str(tmp_path / "run")
    write_fake_run(url, targets=("classes:0-3",), shard_size=2)
    code = f"""
import dgn
run = dgn.open_run({url!r})
assert run.table().num_rows == 4
assert run.best("fc8", 1)[0].image.size == (224, 224)
[picture] = dgn.render("vgg16-mini", "filters:conv1_1:0", updates=1, width=0.125, preset="draft", progress=False)
print(picture.status)
"""
    assert run_without("ray", code=code).strip() in ("ok", "not_converged", "dead")


def test_what_renders_nothing_needs_no_torch():
    modules = "dgn.runs.query, dgn.runs.index, dgn.runs.plan, dgn.runs.config, dgn.runs.lease, dgn.jobs.cli, dgn.errors"
    run_without("torch", "ray", code=f"import {modules}")


@pytest.mark.parametrize("code", ["import dgn", "import sys; sys.argv = ['dgn', '--help']; import dgn.jobs.cli"])
def test_imports_are_light(code):
    """What is loaded decides how long it takes; seconds are measured by people, modules by this test."""
    loaded = run_without(code=f"{code}\nimport sys; print('\\n'.join(sys.modules))").split()
    assert not {"torch", "ray", "numpy", "pyarrow", "pydantic"} & set(loaded)
