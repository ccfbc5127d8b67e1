"""What `ray job submit --working-dir .` uploads from a checkout in which somebody has worked."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from dgn.jobs.galleries.build import build_page
from tests.helpers.fake_runs import write_fake_run

ROOT = Path(__file__).parent.parent.parent
LEFT_AT_HOME = ("docs/", "tests/")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """This checkout's files, and what people put beside them."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folder = tmp_path_factory.mktemp("checkout")
    for name in listed:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def packed(checkout, to):
    """The files that Ray's job client uploads, with their contents."""
    create_package(str(checkout), to, include_gitignore=True)
    with zipfile.ZipFile(to) as package:
        return {name: package.read(name) for name in package.namelist() if not name.endswith("/")}


def test_the_code_travels_whole(checkout, tmp_path):
    found = packed(checkout, tmp_path / "code.zip")
    code = {str(path.relative_to(checkout)): path for path in (checkout / "dgn").rglob("*") if path.is_file()}
    for name in ("cluster", "jobs"):  # links in dgn/
        code |= {str(path.relative_to(checkout)): path for path in (checkout / name).rglob("*") if path.is_file()}
    assert len(code) > 200
    for name, path in code.items():
        assert found[name] == path.read_bytes()
    assert {"pyproject.toml", "dgn/networks/embedded/vgg16-mini.safetensors"} <= found.keys()
    assert not [name for name in found if name.startswith(LEFT_AT_HOME)]


def test_runs_weights_and_photographs_stay_at_home(checkout, tmp_path):
    before = packed(checkout, tmp_path / "before.zip").keys()
    run = write_fake_run(str(checkout / "my-run"), targets=["classes:0-9"])
    build_page(run, for_files=True)
    shutil.copytree(checkout / "my-run", checkout / "runs" / "second")
    for name in ("dogs.pth", "decoder.safetensors", "photos/a/dog.JPG", "photos/cat.tiff", "sheet.png", "run.tar"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(bytes(1000))
    (checkout / "dogs.txt").write_text("dog\nother\n")  # labels are small, and a job may name them
    after = packed(checkout, tmp_path / "after.zip").keys()
    assert after - before == {"dogs.txt"}
