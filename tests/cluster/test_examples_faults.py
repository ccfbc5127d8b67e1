"""Examples on Ray: a killed driver and killed workers change no byte of the result."""

import shutil
import subprocess
import sys
import time

import psutil
import pytest

from dgn.runs.run import Run
from dgn.runs.stores import open_store
from tests.helpers.photographs import write_drawings

NUM_PHOTOGRAPHS = 1000  # four shards


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_drawings(tmp_path_factory.mktemp("photographs"), NUM_PHOTOGRAPHS)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A run whose pictures nobody has drawn yet."""
    from dgn.networks.weights import load_weights
    from dgn.runs.config import RunConfig
    from dgn.runs.plan import fingerprint, make_plan

    url = str(tmp_path_factory.mktemp("bare") / "run")
    config = RunConfig(targets=("classes", "filters:conv3_1"), discriminator="vgg16-mini", shard_size=2)
    weights = load_weights("vgg16-mini")
    plan = make_plan(config, weights.network.layers)
    identity = fingerprint(plan, config.render_config("float32"), weights.network, weights.sha256, None)
    Run(open_store(url)).start(identity, config, plan.num_targets, plan.num_shards)
    return url


def start(run, photographs, log, workers):
    command = [sys.executable, "-m", "dgn.jobs", "examples", run, photographs, "--workers", workers]
    with log.open("w") as file:
        return subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, start_new_session=True)


def result(run):
    """The files of the result, and their bytes."""
    folder = run / "examples"
    paths = [
        folder / "examples.parquet",
        folder / "photographs.parquet",
        folder / "done.json",
        *folder.glob("sheets/*"),
    ]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def workers_of(driver):
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::ExamplesWorker"):
            found.append(process)
    return found


def test_no_byte_changes(bare, photographs, tmp_path, local_ray):
    from dgn.cluster.examples import find_examples

    runs = [tmp_path / name for name in ("calm", "rough")]
    for run in runs:
        shutil.copytree(bare, run)
    calm, rough = runs
    undisturbed = find_examples(Run.at(str(calm)), str(photographs), "image", {}, (1, 1), None, lambda progress: None)
    assert undisturbed.done is not None
    first = start(rough, photographs, tmp_path / "first.log", workers=1)
    try:
        until = time.monotonic() + 200
        while not list(rough.glob("examples/metadata/*.parquet")):
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        first.kill()
        first.wait()
    assert not (rough / "examples" / "done.json").exists()
    kept = {path: path.read_bytes() for path in rough.glob("examples/metadata/*.parquet")}
    second = start(rough, photographs, tmp_path / "second.log", workers=2)
    try:
        until = time.monotonic() + 200
        while not (alive := workers_of(second)):
            assert second.poll() is None, (tmp_path / "second.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.02)
        alive[0].kill()
        assert second.wait(300) == 0, (tmp_path / "second.log").read_text()
    finally:
        second.kill()
        second.wait()
    assert {path: path.read_bytes() for path in kept} == kept, "what was looked at is not looked at again"
    assert result(rough) == result(calm)
    assert len(list(rough.glob("examples/sheets/*"))) > 24
