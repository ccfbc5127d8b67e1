"""`dgn pretrain` on a real Ray: what it writes, what it survives, what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors import safe_open

from cluster.storage import read_url
from dgn.decoder import read_decoder
from dgn.embedded.drawings import LABELS, draw

SETTINGS = ["--width", "0.03125", "--epochs", "3", "--batch-size", "8", "--precision", "float32"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """48 drawings of every kind of file, in folders, with two broken ones among them."""
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


def line(images, out, *more):
    return [sys.executable, "-m", "jobs", "pretrain", str(images), str(out), *SETTINGS, *more]


def pretrain(images, out, *more):
    return subprocess.run(line(images, out, *more), capture_output=True, text=True, check=False)


def losses(out):
    with safe_open(out, framework="pt") as file:
        return json.loads(file.metadata()["dgn"])["history"]


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "decoder.safetensors"
    ended = pretrain(photos, out)
    assert ended.returncode == 0, ended.stderr
    return out, ended


def test_a_decoder_its_curve_and_its_samples(trained):
    out, ended = trained
    assert "48 photographs (2 held out, 2 skipped), 3 epochs" in ended.stdout
    assert "skipped notes.png: no picture of a known kind" in ended.stdout
    assert "skipped part1/cut.jpg: " in ended.stdout
    assert ended.stderr.count("validation") == 3
    decoder = read_decoder(out.read_bytes(), str(out))
    assert decoder.width == 0.03125
    assert decoder.weights["code.std"].min() >= 0
    assert len(losses(out)) == 3
    for name in ("decoder.loss.png", "decoder.samples.png"):
        with Image.open(out.with_name(name)) as image:
            assert min(image.size) > 100
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "decoder.loss.png", "decoder.safetensors", "decoder.samples.png",
    ]  # fmt: skip


def test_the_driver_killed_and_resumed_gives_the_same_file(photos, trained, tmp_path):
    out = tmp_path / "decoder.safetensors"
    driver = subprocess.Popen(line(photos, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        for text in driver.stderr:
            if "epoch 1 of 3" in text:
                break
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    again = pretrain(photos, out)
    assert again.returncode == 2
    assert "--resume goes on with it" in again.stderr
    resumed = pretrain(photos, out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch 1 of 3" not in resumed.stderr
    assert losses(out) == losses(trained[0])
    assert out.read_bytes() == trained[0].read_bytes()


def test_a_killed_worker_is_replaced_and_the_curve_goes_on(photos, trained, tmp_path):
    out = tmp_path / "decoder.safetensors"
    driver = subprocess.Popen(line(photos, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = ""
    for text in driver.stderr:
        errors += text
        if "epoch 1 of 3" in text:
            descendants = psutil.Process(driver.pid).children(recursive=True)
            next(process for process in descendants if "RayTrainWorker" in " ".join(process.cmdline())).kill()
    assert driver.wait() == 0, errors
    assert losses(out) == losses(trained[0])
    assert out.read_bytes() == trained[0].read_bytes()


def test_parquet_on_s3_to_s3(photos, bucket):
    import s3fs

    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(photos.rglob("*.*")) if path.is_file()]
    for part in range(2):
        with fs.open(f"{bucket}/photos/{part}.parquet", "wb") as file:
            pq.write_table(pa.table({"image": images[part::2], "label": list(range(len(images[part::2])))}), file)
    out = f"s3://{bucket}/out/decoder.safetensors"
    ended = pretrain(f"s3://{bucket}/photos", out, "--epochs", "1", "--workers", "2")
    assert ended.returncode == 0, ended.stderr
    assert "48 photographs (2 held out, 2 skipped), 1 epochs" in ended.stdout
    assert read_decoder(read_url(out), out).width == 0.03125
    wrong = pretrain(f"s3://{bucket}/photos", f"s3://{bucket}/out/other.safetensors", "--column", "label")
    assert wrong.returncode == 2
    assert "column 'label'" in wrong.stderr


def test_bad_input_is_one_line_and_writes_nothing(photos, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for i in range(8):
        source = next(Path(photos, "part0").iterdir())
        (broken / f"{i}.png").write_bytes(source.read_bytes()[: None if i else 100])
    cases = [
        (tmp_path / "empty", "d.safetensors", "no pictures in"),
        (tmp_path / "nowhere", "d.safetensors", "no pictures in"),
        (photos, "d.pth", "ends in .safetensors"),
        (broken, "d.safetensors", "1 of 8 pictures in"),
    ]
    (tmp_path / "empty").mkdir()
    for images, out, message in cases:
        start = time.monotonic()
        ended = pretrain(images, tmp_path / "out" / out)
        assert ended.returncode == 2, ended.stderr
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr
        assert time.monotonic() - start < 120
        assert not (tmp_path / "out").exists()
