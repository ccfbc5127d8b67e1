"""No file executes anything: weights, decoders, a run's own files, settings, photographs, checkpoints of a training."""

import contextlib
import io
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.train
import torch
from PIL import Image
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType
from safetensors.torch import save as save_safetensors

from dgn.cluster.dataset import _read_table
from dgn.cluster.training_worker import _load_state
from dgn.errors import DgnError, WeightsMismatch
from dgn.method.decoder import expected_shapes, read_decoder, serialise
from dgn.networks.embedded.drawings import LABELS, draw
from dgn.pictures.photographs import UnreadablePhotograph, load_photograph
from tests.conftest import WIDTH
from tests.helpers.hostile import QUICK, Payload, ends_in_one_line, png_of_size
from tests.helpers.own_ray import short_folder, start, wait_for


def test_weights_files_execute_nothing(pickles, marker, run, dgn, tmp_path):
    for path in pickles:
        for line in (
            ("render", tmp_path / "new", "--targets", "classes:0", *QUICK, "--weights", path),
            ("resume", run, "--weights", path),
            ("verify", run, "--weights", path),
            ("doctor", "--discriminator", "vgg16-mini", "--weights", path),
        ):
            ends_in_one_line(dgn(*line), path.name)
            assert not marker.exists()
    assert not (tmp_path / "new").exists()


def test_decoder_files_execute_nothing(pickles, marker, dgn, tmp_path):
    for path in pickles:
        disguised = tmp_path / f"{path.stem}.safetensors"
        shutil.copy(path, disguised)
        for decoder in (path, disguised):
            line = ("--targets", "classes:0", "--modes", "pretrained", *QUICK, "--decoder", decoder)
            ends_in_one_line(dgn("render", tmp_path / "new", *line), "is not a whole decoder file")
            assert not marker.exists()


@pytest.mark.parametrize("width", ["x", None, -1, 0, 1e308, float("nan"), [1], {}])
def test_a_decoders_header_is_not_believed(width, decoder):
    with pytest.raises(WeightsMismatch, match="does not give its width in its header"):
        read_decoder(serialise(decoder, {"width": width}), "file")


def test_a_decoders_header_of_another_kind_is_one_line(decoder):
    assert set(decoder) == set(expected_shapes(WIDTH, "windows"))
    for header in ("[]", "1", '"x"', "{", "[" * 100_000):
        with pytest.raises(WeightsMismatch) as caught:
            read_decoder(save_safetensors(decoder, metadata={"dgn": header}), "file")
        assert "\n" not in str(caught.value)


def test_a_runs_files_execute_nothing(pickles, marker, run, dgn):
    """Each of a run's files in turn is a pickle."""
    [rows] = (run / "metadata").iterdir()
    png = next((run / "images").rglob("*.png"))
    note = run / "failures" / "000000" / "aaaaaaaa.json"
    note.parent.mkdir(parents=True)
    for path, command, code in (
        (run / "run.json", "status", 2), (rows, "query", 1), (rows, "verify", 1), (rows, "gc", 1),
        (note, "failed", 1), (png, "verify", 1), (png, "sheet", 1),
    ):  # fmt: skip
        before = path.read_bytes() if path.exists() else b"{}"
        for source in pickles:
            shutil.copy(source, path)
            ended = dgn(command, run, *([run.parent / "sheet.png"] if command == "sheet" else []))
            assert ended[0] == code, ended
            assert ended[2].count("\n") == 1, ended
            assert not marker.exists()
        path.write_bytes(before)


def test_settings_in_yaml_execute_nothing(marker, dgn, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"targets: !!python/object/apply:builtins.open ['{marker}', 'w']\n")
    ends_in_one_line(dgn("render", tmp_path / "new", "--config", path), "is not YAML")
    assert not marker.exists()


@pytest.mark.parametrize("place", ["column", "field beside the bytes", "bytes"])
def test_photographs_in_parquet_execute_nothing(place, marker, tmp_path):
    """Ray Data registers a type of Arrow whose values are pickles, for every Parquet file that its process reads."""
    pickled = pa.array([pickle.dumps(Payload(marker))], pa.large_binary())
    evil = pa.ExtensionArray.from_storage(ArrowPythonObjectType(), pickled)
    column = {
        "column": evil,
        "field beside the bytes": pa.StructArray.from_arrays([pa.array([b"x"]), evil], ["bytes", "path"]),
        "bytes": pa.StructArray.from_arrays([evil], ["bytes"]),
    }[place]
    pq.write_table(pa.table({"image": column}), tmp_path / "0.parquet")
    pq.read_table(tmp_path / "0.parquet").to_pylist()[0]
    assert marker.exists(), "read carelessly, the file executes"
    marker.unlink()
    with contextlib.suppress(DgnError):
        rows = list(_read_table(str(tmp_path), "image", {"key": "0.parquet"}))
        assert rows == [{"name": "0.parquet row 0", "bytes": b"x", "error": ""}]
    assert not marker.exists()


def test_a_trainings_state_executes_nothing(marker, tmp_path, monkeypatch):
    torch.save({"model": Payload(marker)}, tmp_path / "state.pt")
    monkeypatch.setattr("ray.train.get_checkpoint", lambda: ray.train.Checkpoint.from_directory(tmp_path))
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        _load_state()
    assert not marker.exists()


@pytest.mark.slow
def test_a_resumed_training_executes_nothing(marker, tmp_path):
    """A real training is killed after its first epoch, its checkpoint replaced, and the training resumed."""
    photos = tmp_path / "photos"
    photos.mkdir()
    stream = np.random.default_rng(0)
    for i, label in enumerate(LABELS[:8]):
        Image.fromarray(draw(label, stream, 256)).save(photos / f"{i}.png")
    line = ["pretrain", str(photos), str(tmp_path / "d.safetensors"), "--width", "0.03125", "--epochs", "10000"]
    line += ["--recipe", "paper", "--batch-size", "4", "--precision", "float32"]
    with short_folder() as folder:
        training = start(line, folder, tmp_path / "log")
        checkpoints = tmp_path / "d.training"
        # Ray Train writes this after the checkpoint itself; without it, the training would begin anew.
        wait_for((checkpoints / "checkpoint_manager_snapshot.json").exists, training, tmp_path / "log")
        training.kill()
        training.wait()
    states = list(checkpoints.rglob("state.pt"))
    for state in states:
        torch.save({"model": Payload(marker)}, state)
    with short_folder() as folder:
        resumed = start([*line, "--resume"], folder, tmp_path / "log")
        code = resumed.wait(timeout=200)
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("dgn: ")]
    assert states
    assert not marker.exists()
    assert code == 1
    assert len(lines) == 1
    assert "training ended: " in lines[0]


def test_pictures_that_claim_to_be_huge_are_not_decoded(run, dgn, tmp_path):
    with pytest.raises(UnreadablePhotograph, match="at most 89 million"):
        load_photograph(png_of_size(60_000, 60_000))
    png = next((run / "images").rglob("*.png"))
    for side, says in ((60_000, "exceeds limit"), (9_000, "is 9000 x 9000 px")):
        png.write_bytes(png_of_size(side, side))
        ends_in_one_line(dgn("sheet", run, tmp_path / "sheet.png"), says, with_code=1)


def test_no_photograph_starts_another_program():
    """Pillow hands EPS to Ghostscript, whatever the file's name says."""
    eps = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(eps, "EPS")
    with pytest.raises(UnreadablePhotograph, match="not a picture of a known format"):
        load_photograph(eps.getvalue())
