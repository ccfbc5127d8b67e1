"""The wheel, installed into an environment of its own and used outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent


def run(*command, cwd, **more):
    finished = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300, **more)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the source archive, as `python -m build` does, so this tests the archive as well."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, CHECKOUT, cwd=folder)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with nothing but the wheel; dgn's dependencies come from this one, without its editable dgn."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    [packages] = folder.glob("lib/python*/site-packages")
    # A folder that a .pth file adds is not searched for .pth files itself, so the editable install stays out.
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    uv = Path(sys.executable).parent / "uv"
    run(uv, "pip", "install", "--python", folder / "bin" / "python", "--no-deps", "--offline", wheel, cwd=folder)
    return folder


def test_the_wheel_holds_dgn_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [archive.read(name).decode() for name in names if name.endswith("dist-info/METADATA")]
    assert {name.split("/")[0] for name in names} == {"dgn", next(n for n in names if "dist-info" in n).split("/")[0]}
    for name in ("dgn/py.typed", "dgn/cluster/driver.py", "dgn/jobs/cli.py", "dgn/jobs/galleries/web/index.html"):
        assert name in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    for line in ("License-Expression: Apache-2.0", "Project-URL: Paper, https://", "Classifier: Typing :: Typed"):
        assert line in metadata


def test_an_editable_install_is_found_beside_a_clone_of_the_same_name(tmp_path):
    """`git clone` makes a folder `dgn`, which Python takes for a package of that name from the folder above."""
    (tmp_path / "dgn").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "import dgn, dgn.cost; print(dgn.__file__)"
    assert "__init__.py" in run(sys.executable, "-c", code, cwd=tmp_path, env=environment)


def test_a_users_own_cluster_and_jobs_stay_theirs(installed, tmp_path):
    """dgn's folders of these names are importable as dgn.cluster and dgn.jobs only."""
    for name in ("cluster", "jobs"):
        (tmp_path / f"{name}.py").write_text("OWNER = 'user'\n")
    code = "import dgn.cluster.schedule, dgn.jobs.cli, cluster, jobs; print(cluster.OWNER, jobs.OWNER, dgn.__file__)"
    out = run(installed / "bin" / "python", "-c", code, cwd=tmp_path)
    assert out.startswith("user user ")
    assert str(installed) in out


def test_it_renders_outside_the_checkout(installed, tmp_path):
    """From the command line, with a Ray of its own, and from Python."""
    dgn = installed / "bin" / "dgn"
    options = ["--discriminator", "vgg16-mini", "--preset", "draft", "--updates", "2", "--width", "0.125"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    render = [dgn, "render", "run", "--targets", "classes:star,heart", *options, "--workers", "1"]
    assert "2 of 2 pictures in " in run(*render, cwd=tmp_path, env=environment)
    assert " 0 problems" in run(dgn, "verify", "run", cwd=tmp_path, env=environment)
    run(dgn, "gallery", "build", "run", cwd=tmp_path, env=environment)
    assert (tmp_path / "run" / "gallery" / "index.html").is_file()
    code = (
        "import dgn; [picture] = dgn.render('vgg16-mini', 'classes:star', preset='draft', updates=2, width=0.125,"
        " progress=False); print(picture.image.size, len(dgn.open_run('run').pictures()))"
    )
    assert run(installed / "bin" / "python", "-c", code, cwd=tmp_path, env=environment) == "(224, 224) 2\n"
