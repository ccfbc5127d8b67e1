"""`dgn pretrain` on a real Ray: what it writes, what it survives, what it refuses."""

import contextlib
import hashlib
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from dgn.cluster.training_settings import TrainingSettings
from dgn.cluster.training_worker import _learning_rates
from dgn.jobs.cli import build_app
from dgn.method.architecture import Architecture
from dgn.method.autoencoder import Autoencoder, along_axes, central_crop
from dgn.method.decoder import FORMAT_VERSION, read_decoder
from dgn.method.lapped import Sums, fitted
from dgn.networks.embedded.drawings import LABELS, draw
from dgn.runs.stores import open_store, read_url

EPOCHS = 4
SETTINGS = [
    "--recipe", "paper", "--width", "0.03125", "--epochs", str(EPOCHS), "--batch-size", "8", "--precision", "float32",
]  # fmt: skip
PAPER = ["--recipe", "paper"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """48 drawings in files of every kind, in folders, with two broken ones among them."""
    folder = tmp_path_factory.mktemp("photos")
    stream = np.random.default_rng(0)
    for i in range(48):
        path = folder / f"part{i % 3}" / f"{i:02d}.{('png', 'JPG', 'webp')[i % 3]}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draw(LABELS[i % 24], stream, 256)).save(path)
    whole = (folder / "part1" / "01.JPG").read_bytes()
    (folder / "part1" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.png").write_text("no picture")
    return folder


def trained_in(folder):
    with safe_open(folder / "decoder.safetensors", framework="pt") as file:
        return json.loads(file.metadata()["dgn"])


def arguments(images, folder, *more):
    return ["pretrain", str(images), str(folder / "decoder.safetensors"), *SETTINGS, *more]


def train_into(photos, folder):
    """In this process. Returns what it printed and logged."""
    printed = io.StringIO()
    handler = logging.StreamHandler(printed)
    logging.getLogger("dgn").addHandler(handler)
    try:
        with contextlib.redirect_stdout(printed):
            build_app("pretrain")(arguments(photos, folder), standalone_mode=False)
    finally:
        logging.getLogger("dgn").removeHandler(handler)
    return printed.getvalue()


def command(images, folder, *more):
    """For a process of its own."""
    return [sys.executable, "-m", "jobs", *arguments(images, folder, *more)]


def training_worker(process):
    """The process of Ray Train's worker among the descendants of a driver."""
    for descendant in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(descendant.cmdline()):
                return descendant
    return None


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory, local_ray):
    """A training whose worker is killed at a random moment after the first whole epoch, and continues from the
    checkpoint: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    kept = folder / "decoder.training" / "checkpoint_manager_snapshot.json"
    killed = []

    def kill():
        while not kept.exists():
            time.sleep(0.05)
        time.sleep(random.random() / 2)
        settings = json.loads((kept.parent / "settings.json").read_text())
        training_worker(psutil.Process()).kill()
        killed.append(settings["decoder_format"])

    killer = Thread(target=kill, daemon=True)
    killer.start()
    printed = train_into(photos, folder)
    killer.join(timeout=1)
    assert killed == [FORMAT_VERSION]
    return folder, printed


def test_a_decoder_its_curve_and_its_samples(trained):
    folder, printed = trained
    assert f"48 photographs (2 held out, 2 skipped), {EPOCHS} epochs" in printed
    assert "skipped notes.png: not a picture of a known format" in printed
    assert "skipped part1/cut.jpg: " in printed
    about = trained_in(folder)
    assert [entry["epoch"] for entry in about["history"]] == list(range(1, EPOCHS + 1))
    assert about["validation_error"] == about["history"][-1]["validation"]
    decoder = read_decoder((folder / "decoder.safetensors").read_bytes(), "it")
    assert decoder.width == 0.03125
    assert decoder.generator == "convolutions"
    for name in ("decoder.loss.png", "decoder.samples.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 100
    assert sorted(path.name for path in folder.iterdir()) == [
        "decoder.loss.png", "decoder.safetensors", "decoder.samples.png",
    ]  # fmt: skip


def test_the_papers_kernels_but_the_last_learn_slowly():
    model = Autoencoder(0.03125, seed=0)
    rates = {group["params"][0]: group["lr"] for group in _learning_rates(model, 0.3)}
    kernels = [(name, parameter) for name, parameter in model.named_parameters() if parameter.ndim > 1]
    effects = {name: rates[parameter] * parameter[0].numel() for name, parameter in kernels}
    slow = [f"decoder.conv{i}.weight" for i in range(12)]
    assert effects == {name: pytest.approx(0.01 if name in slow else 0.3) for name in effects}
    assert set(slow) < set(effects)
    assert len(rates) == len(list(model.parameters()))


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """Flags for a judge that knows three photographs."""
    known = tmp_path_factory.mktemp("known")
    for unit in (0, 3, 7):
        Image.fromarray(draw(LABELS[unit], np.random.default_rng(unit), 256)).save(known / f"{unit}_it.png")
    return "--judge", "vgg16-mini-b", "--judge-images", known


def assert_judged(folder, printed):
    [epoch] = trained_in(folder)["history"]
    assert epoch["recognised"] in (0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1)
    assert f"{epoch['recognised']:.0%} recognised" in printed


def test_a_judge_says_what_it_recognises(photos, judge, tmp_path, dgn, local_ray):
    out = tmp_path / "decoder.safetensors"
    code, printed, error = dgn("pretrain", photos, out, *SETTINGS, "--epochs", "1", *judge)
    assert code == 0, error
    assert_judged(tmp_path, printed)


def test_windows_are_fitted_band_by_band_and_judged(photos, judge, tmp_path, dgn, local_ray):
    out = tmp_path / "decoder.safetensors"
    code, printed, error = dgn("pretrain", photos, out, "--width", "0.03", *judge)
    assert code == 0, error
    assert_judged(tmp_path, printed)
    assert "48 photographs (2 held out, 2 skipped), validation error " in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.safetensors", "decoder.samples.png"]
    decoder = read_decoder(out.read_bytes(), "it")
    assert (decoder.generator, decoder.width) == ("windows", 0.03)
    about = trained_in(tmp_path)
    assert about["settings"] == {"recipe": "standard", "width": 0.03}
    files = [path for path in photos.rglob("*.*") if path.name not in ("cut.jpg", "notes.png")]
    files.sort(key=lambda path: hashlib.sha256(path.read_bytes()).digest())  # the first two are held out
    fitted_to = [np.asarray(Image.open(path).convert("RGB")) for path in files[2:]]
    pictures = along_axes(central_crop(torch.from_numpy(np.stack(fitted_to))))
    windows = None
    for channels in Architecture("pretrained", 0.03, generator="windows").window_channels:
        windows = fitted(Sums.of(pictures, windows), channels, windows)
    torch.testing.assert_close(decoder.weights["code.deviations"], windows.deviations_K, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(decoder.weights["windows.colours"], windows.transform.colours_3, rtol=1e-4, atol=1e-4)
    starts = windows.starts(pictures)
    wanted = torch.sort(starts.clamp(-127 / 42, 127 / 42), 0).values
    torch.testing.assert_close(torch.sort(decoder.weights["code.starts"], 0).values, wanted, atol=0.02, rtol=0)
    assert 0 < about["validation_error"] < 5


@pytest.mark.parametrize("given", [("--epochs", "3"), ("--resume",), ("--workers", "2"), ("--learning-rate", "1")])
def test_settings_of_the_papers_recipe_are_not_ignored(given, photos, tmp_path, dgn):
    code, _, error = dgn("pretrain", photos, tmp_path / "out" / "d.safetensors", *given)
    assert (code, error) == (2, f"dgn: {given[0]} is for recipe paper: leave it out, or give --recipe paper\n")
    assert not (tmp_path / "out").exists()


def test_a_judge_and_its_photographs_come_together(photos, tmp_path, dgn):
    out = tmp_path / "out" / "d.safetensors"
    for given, message in (
        (("--judge", "vgg16-mini-b"), "--judge vgg16-mini-b needs photographs: give --judge-images FOLDER"),
        (("--judge-images", photos), "--judge is missing"),
        (("--judge", "vgg16-mini-b", "--judge-images", photos / "part0"), "has no photographs with a class"),
    ):
        code, _, error = dgn("pretrain", photos, out, *given)
        assert code == 2, error
        assert message in error
        assert error.count("\n") == 1
        assert not out.parent.exists()


def same_file(ours, theirs):
    assert trained_in(ours) == trained_in(theirs), "the curve continues as if nothing had happened"
    return (ours / "decoder.safetensors").read_bytes() == (theirs / "decoder.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(photos, trained, tmp_path):
    """A training that nothing disturbs gives the same file."""
    train_into(photos, tmp_path)
    assert same_file(tmp_path, trained[0])


@pytest.mark.slow
def test_driver_and_worker_killed_and_resumed_give_the_same_file(photos, trained, tmp_path):
    kept = tmp_path / "decoder.training" / "checkpoint_manager_snapshot.json"
    first = subprocess.Popen(command(photos, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not kept.exists():
            assert first.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    assert not (tmp_path / "decoder.safetensors").exists()
    second = subprocess.Popen(
        command(photos, tmp_path, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    seen: list[str] = []
    for text in second.stderr:
        seen += [text] if " epoch " in text else []
        if len(seen) == 1 and text == seen[0]:
            training_worker(psutil.Process(second.pid)).kill()
    assert second.wait() == 0, seen
    assert f"epoch 1 of {EPOCHS}" not in seen[0], "the first epoch was kept"
    assert same_file(tmp_path, trained[0])


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_parquet_in_a_bucket_to_the_same(scheme, photos, request):
    bucket = request.getfixturevalue("bucket") if scheme == "s3" else request.getfixturevalue("cloud_bucket")(scheme)
    fs, _ = open_store(f"{scheme}://{bucket}").arrow()
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(photos.rglob("*.*")) if path.is_file()]
    for part in range(2):
        with fs.open(f"{bucket}/photos/{part}.parquet", "wb") as file:
            pq.write_table(pa.table({"image": images[part::2], "label": list(range(len(images[part::2])))}), file)
    out = f"{scheme}://{bucket}/out/decoder.safetensors"
    train = [sys.executable, "-m", "jobs", "pretrain", f"{scheme}://{bucket}/photos", out, *SETTINGS]
    ended = subprocess.run([*train, "--epochs", "1", "--workers", "2"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "48 photographs (2 held out, 2 skipped), 1 epochs" in ended.stdout
    assert read_decoder(read_url(out), out).width == 0.03125
    assert not fs.exists(f"{bucket}/out/decoder.training")


def test_a_column_that_holds_no_pictures(tmp_path, dgn, local_ray):
    pq.write_table(pa.table({"label": [1, 2]}), tmp_path / "0.parquet")
    for column, message in (("label", "holds int64: expected the bytes"), ("image", "has no column 'image'")):
        code, _, error = dgn("pretrain", tmp_path, tmp_path / "out" / "d.safetensors", "--column", column)
        assert code == 2
        assert message in error


def test_bad_input_is_one_line_and_writes_nothing(photos, tmp_path, dgn, local_ray):
    broken = tmp_path / "broken"
    broken.mkdir()
    source = next(Path(photos, "part0").iterdir()).read_bytes()
    for i in range(8):
        (broken / f"{i}.png").write_bytes(source[: None if i else 100])
    (tmp_path / "empty").mkdir()
    for images, out, message in (
        (tmp_path / "empty", "d.safetensors", "no pictures in"),
        (tmp_path / "nowhere", "d.safetensors", "nowhere is not there: expected a folder of photographs, or s3://"),
        (photos, "d.pth", "ending in .safetensors"),
        (broken, "d.safetensors", "1 of 8 pictures in"),
    ):
        code, _, error = dgn("pretrain", images, tmp_path / "out" / out)
        assert code == 2, error
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("flag", "value"), [("width", "9"), ("learning_rate", "-1"), ("precision", "fp16")])
def test_settings_out_of_range_are_one_line(flag, value, tmp_path, dgn):
    code, _, error = dgn("pretrain", tmp_path, tmp_path / "d.safetensors", f"--{flag.replace('_', '-')}", value)
    assert code == 2
    assert f"setting {flag}: expected " in error
    assert error.count("\n") == 1


def test_an_unfinished_training_is_not_overwritten(photos, tmp_path, dgn, local_ray):
    code, _, error = dgn("pretrain", photos, tmp_path / "d.safetensors", *PAPER, "--resume")
    assert code == 2
    assert "nothing to resume" in error
    folder = tmp_path / "d.training"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(TrainingSettings(recipe="paper").model_dump()))
    code, _, error = dgn("pretrain", photos, tmp_path / "d.safetensors", *PAPER)
    assert code == 2
    assert "give --resume to continue it" in error
    code, _, error = dgn("pretrain", photos, tmp_path / "d.safetensors", *PAPER, "--width", "0.5", "--resume")
    assert code == 2
    assert "width is 1.0 there, 0.5 here" in error
    settings = TrainingSettings(recipe="paper", precision="float32").model_dump()
    (folder / "settings.json").write_text(json.dumps(settings))
    code, _, error = dgn("pretrain", photos, tmp_path / "d.safetensors", *PAPER, "--precision", "float32", "--resume")
    assert code == 2
    assert f"decoder_format is None there, {FORMAT_VERSION} here" in error
    (tmp_path / "d.safetensors").touch()
    code, _, error = dgn("pretrain", photos, tmp_path / "d.safetensors")
    assert code == 2
    assert "exists" in error
