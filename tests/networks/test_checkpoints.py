"""Weights out of the files that trainers leave, and the messages about those that hold none."""

import argparse
import json
import os
import pickle
import re
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as distributed
from safetensors.torch import load_file, save_file
from torch import nn

from dgn.errors import WeightsMismatch
from dgn.networks.checkpoints import read_checkpoint
from tests.helpers.hostile import TERMINAL, Payload

DATA = Path(__file__).parent.parent / "data" / "checkpoints"  # tools/make_checkpoints.py writes them
TRUTHS = {name: tensor for path in DATA.glob("weights-*") for name, tensor in load_file(path).items()}
NET = "without the prefix 'net.', without 1 other tensor ('criterion.weight')"
FILES = {
    "accelerate-model.bin": "",
    "accelerate-model.safetensors": "",
    "accelerate-state.safetensors": "",
    "before-1.6.pth": "weights under 'state_dict'",
    "compiled.pth": "weights, without the prefix '_orig_mod.'",
    "compiled-parallel.pth": "weights, without the prefix '_orig_mod.module.'",
    "fastai.pth": "weights under 'model'",
    "fastai-bare.pth": "",
    "lightning.ckpt": f"weights under 'state_dict', {NET}",
    "lightning-namespace.ckpt": f"weights under 'state_dict', {NET}",
    "lightning-path.ckpt": f"weights under 'state_dict', {NET}",
    "module.pth": "weights of a pickled module",
    "module-compiled.pth": "weights of a pickled module",
    "module-parallel.pth": "weights of a pickled module, without the prefix 'module.'",
    "module-timm-convnext.pth": "weights of a pickled module",
    "module-timm-vit.pth": "weights of a pickled module",
    "module-torchvision-mobilenet.pth": "weights of a pickled module",
    "module-wrapped.pth": "weights of a pickled module under 'model'",
    "monai.pt": "weights under 'net'",
    "monai-bare.pt": "",
    "numpy1.pth": "weights under 'model_state_dict'",
    "numpy2.pth": "weights under 'model_state_dict'",
    "timm.pth.tar": "weights under 'state_dict'; 'state_dict_ema' is there too",
    "torchvision-script.pth": "weights under 'model'; 'model_ema' is there too",
    "transformers.safetensors": "",
}
WEIGHTS = {"conv.weight": torch.randn(2, 3, 3, 3), "conv.bias": torch.randn(2), "fc.weight": torch.randn(4, 2)}


def read(path, expected=WEIGHTS):
    return read_checkpoint(path, list(expected), "the network")


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def refused(path, *says, expected=WEIGHTS):
    """Returns the message, which is one line and advises nothing unsafe."""
    with pytest.raises(WeightsMismatch) as caught:
        read(path, expected)
    message = str(caught.value)
    assert message.isprintable()
    assert "weights_only" not in message
    for text in (str(path), "the network", *says):
        assert text in message or (text == "the network" and "the tensor" in message), message
    return message


def same(state, truth):
    assert list(state) == list(truth)
    return all(torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype for name, tensor in truth.items())


def with_pickle(path, pickled):
    """A file of torch.save whose pickle is replaced."""
    with zipfile.ZipFile(saved(path.with_suffix(".whole"), {})) as whole, zipfile.ZipFile(path, "w") as changed:
        for name in whole.namelist():
            changed.writestr(name, pickled if name.endswith("/data.pkl") else whole.read(name))
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_trainers_file_gives_its_weights_to_the_bit(name):
    truth = {key.partition("/")[2]: tensor for key, tensor in TRUTHS.items() if key.startswith(f"{name}/")}
    checkpoint = read_checkpoint(DATA / name, truth.keys(), "tiny")
    assert checkpoint.state.keys() == truth.keys()
    assert all(torch.equal(checkpoint.state[key], tensor) for key, tensor in truth.items())
    assert "".join(checkpoint.remarks) == FILES[name]
    assert {type(tensor) for tensor in checkpoint.state.values()} == {torch.Tensor}


def test_nothing_of_the_trainers_is_imported(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    read_checkpoint(DATA / "module-timm-vit.pth", ["cls_token"], "tiny")
    assert "timm" not in sys.modules
    assert {path.name for path in DATA.iterdir() if not path.name.startswith("weights-")} == set(FILES)


def test_the_versions_of_the_modules_come_along(tmp_path):
    model = nn.Sequential(nn.BatchNorm2d(2))
    names = list(model.state_dict())
    inner = nn.ModuleDict({"net": nn.DataParallel(model)}).state_dict()
    for content in (model.state_dict(), {"model": inner}):
        state = read(saved(tmp_path / "w.pth", content), names).state
        assert state._metadata["0"] == {"version": 2}
        model.load_state_dict(state)
    added = read(tmp_path / "w.pth", [f"backbone.{name}" for name in names]).state
    assert added._metadata["backbone.0"] == {"version": 2}


@pytest.mark.parametrize(
    ("content", "remark"),
    [
        ({f"model.backbone.{k}": v for k, v in WEIGHTS.items()}, "weights, without the prefix 'model.backbone.'"),
        ({"a": {"b": {"c": WEIGHTS}}}, "weights under 'a/b/c'"),
        ([{"epoch": 1}, WEIGHTS], "weights under '1'"),
        ({"ema": WEIGHTS, "net": dict(WEIGHTS)}, "weights under 'net'; 'ema' is there too"),
        ({"ema": WEIGHTS, "epoch": torch.tensor(1)}, "weights under 'ema'"),
        ({"net": {"fc.weight": WEIGHTS["fc.weight"]}, "model_ema": WEIGHTS}, "weights under 'model_ema'"),
        (
            {**{f"teacher.{k}": v for k, v in WEIGHTS.items()}, **{f"student.{k}": v for k, v in WEIGHTS.items()}},
            "weights, without the prefix 'student.', without 3 other tensors ('teacher.conv.weight', "
            "'teacher.conv.bias', 'teacher.fc.weight'); 'teacher.' is there too",
        ),
        ({**WEIGHTS, "epoch": 3, "note": None}, ""),
    ],
)  # fmt: skip
def test_the_mapping_and_the_prefix_that_fit_best(content, remark, tmp_path):
    checkpoint = read(saved(tmp_path / "w.pth", content))
    assert same(checkpoint.state, WEIGHTS)
    assert "".join(checkpoint.remarks) == remark


def test_a_prefix_is_put_on(tmp_path):
    expected = {f"model.{name}": tensor for name, tensor in WEIGHTS.items()}
    for content, remark in (
        (WEIGHTS, "weights, with the prefix 'model.' in front"),
        (
            {f"module.{name}": tensor for name, tensor in WEIGHTS.items()},
            "weights, without the prefix 'module.', with the prefix 'model.' in front",
        ),
    ):
        checkpoint = read(saved(tmp_path / "w.pth", content), expected)
        assert same(checkpoint.state, expected)
        assert checkpoint.remarks == (remark,)


def test_names_outside_the_network_stay_where_no_prefix_was_taken_off(tmp_path):
    """Otherwise the weights of another architecture would pass for the network's."""
    assert "head.weight" in read(saved(tmp_path / "w.pth", {**WEIGHTS, "head.weight": torch.ones(1)})).state


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype, tmp_path):
    rounded = {name: tensor.to(dtype) for name, tensor in WEIGHTS.items()}
    rounded |= {"num": torch.tensor(3), "is_on": torch.tensor([True]), "none": torch.zeros(0, 3)}
    truth = {name: t.float() if t.is_floating_point() else t for name, t in rounded.items()}
    assert same(read(saved(tmp_path / "w.pth", rounded)).state, truth)
    save_file(rounded, tmp_path / "w.safetensors")
    assert read(tmp_path / "w.safetensors").state["fc.weight"].dtype == torch.float32


def test_the_content_counts_not_the_suffix(tmp_path):
    save_file(WEIGHTS, tmp_path / "safetensors.pth")
    for path in (tmp_path / "safetensors.pth", saved(tmp_path / "pickle.safetensors", WEIGHTS)):
        assert read(path).state.keys() == WEIGHTS.keys()


def test_archives_without_checksums_and_compressed_ones_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        plain = saved(tmp_path / "plain.pth", WEIGHTS)
    finally:
        torch.serialization.set_crc32_options(True)
    small = tmp_path / "small.pth"
    with zipfile.ZipFile(plain) as whole, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as archive:
        for info in whole.infolist():
            archive.writestr(info.filename, torch._C.PyTorchFileReader(str(plain)).get_record(info.filename[6:]))
    assert same(read(plain).state, WEIGHTS)
    assert same(read(small).state, WEIGHTS)


class Settings(dict):
    """Its items are set, and it has a state."""

    class Inner:
        """A pickle gets this class with `getattr`."""


def test_objects_of_all_sorts_stand_beside_the_weights(tmp_path):
    settings = Settings(rate=1)
    settings.inner = Settings.Inner()
    settings.inner.rate = 1
    image = torch.ones(2).as_subclass(type("Image", (torch.Tensor,), {"__module__": __name__}))
    globals()["Image"] = type(image)
    content = {"settings": settings, "image": image, "error": ValueError("x"), "range": range(3), "state": WEIGHTS}
    before = set(torch.serialization.get_safe_globals())
    assert same(read(saved(tmp_path / "w.pth", content)).state, WEIGHTS)
    assert set(torch.serialization.get_safe_globals()) == before


def test_files_are_read_in_threads(tmp_path):
    path = saved(tmp_path / "w.pth", {"args": argparse.Namespace(a=1), "state": WEIGHTS})
    read_names = []
    threads = [threading.Thread(target=lambda: read_names.append(list(read(path).state))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_names == [list(WEIGHTS)] * 8


def test_a_hostile_file_runs_nothing(tmp_path):
    marker = tmp_path / "marker"
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        path = saved(tmp_path / "w.pth", {"args": Payload(marker), "state": WEIGHTS}, **options)
        assert same(read(path).state, WEIGHTS)
        refused(saved(tmp_path / "w.pth", Payload(marker), **options), "holds no weights")
    assert not marker.exists()


class Where:
    def __reduce__(self):
        return os.getcwd, ()


def test_names_that_torch_blocks_are_one_line(tmp_path):
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        refused(saved(tmp_path / "w.pth", [Where(), WEIGHTS], **options), "'posix.getcwd'", "which torch never reads")


def test_what_has_no_end_is_one_line(tmp_path):
    circle = {}
    circle["itself"] = circle
    refused(saved(tmp_path / "w.pth", circle), "0 tensors")
    module = nn.Sequential(nn.ReLU())
    module.add_module("itself", module)
    refused(saved(tmp_path / "w.pth", module), "its modules hold one another without end")
    twice = b"\x80\x02" + b")" + b"q\x00h\x00\x86" * 40 + b"."  # 2 ** 40 tuples
    deep = b"\x80\x02" + b")" + b"\x85" * 200 + b"."
    for pickled in (twice, deep):
        refused(with_pickle(tmp_path / "w.pth", pickled), "tuples in tuples without end")


@pytest.mark.parametrize(
    ("pickled", "says"),
    [
        (b"\x80\x02.", "IndexError"),
        (b"\x80\x02h\x05.", "KeyError"),
        (b"\x80\x02}", "ValueError"),
        (b"\x80\x04}.", "protocol 4"),
        (b"\x80\x02(lp0\n.", "which torch.save does not write"),
        (b"\x80\x02cbuiltins\nlist\n)R(K\x01e.", "0 tensors"),
    ],
)
def test_a_damaged_pickle_is_one_line(pickled, says, tmp_path):
    refused(with_pickle(tmp_path / "w.pth", pickled), says)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: torch.tensor([1, float("nan"), float("inf")]), "NaN or infinity in 2 of 3 values"),
        (lambda: torch.tensor([1e300], dtype=torch.float64), "NaN or infinity in 1 of 1 value"),
        (lambda: torch.ones(2, dtype=torch.complex64), "is of type torch.complex64"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "is of type torch.qint8"),
        (lambda: torch.eye(2).to_sparse(), "is sparse"),
        (lambda: torch.ones(2, device="meta"), "has no values"),
        (lambda: torch.ones(1).expand(10**12), "claims more values than the file has"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_that_are_not_plain_numbers_are_refused(make, says, tmp_path):
    refused(saved(tmp_path / "w.pth", {**WEIGHTS, "odd": make()}), "'odd'", says)
    assert same(read(saved(tmp_path / "w.pth", {"state": WEIGHTS, "other": {"odd": make()}})).state, WEIGHTS)


def test_other_weights_are_named(tmp_path):
    other = {f"encoder.{i}.{TERMINAL}": torch.ones(1) for i in range(5)}
    says = ("holds no weights", "it has 5 tensors ('encoder.0.", ", ...)", "such as 'conv.weight', 'conv.bias'")
    refused(saved(tmp_path / "w.pth", {"model": other}), *says)
    refused(saved(tmp_path / "w.pth", {"epoch": 3}), "it has 0 tensors,")


def test_what_holds_no_weights_is_named(tmp_path):
    whole = saved(tmp_path / "whole.pth", WEIGHTS).read_bytes()
    old = saved(tmp_path / "old.pth", WEIGHTS, _use_new_zipfile_serialization=False).read_bytes()
    save_file(WEIGHTS, tmp_path / "whole.safetensors")
    path = tmp_path / "w.pth"
    for content, says in (
        (b"", "is empty"),
        (whole[:-200], "not a whole weights file"),
        (whole.replace(b"PK\x01\x02", b"PK\x01\x00"), "not a whole weights file"),
        (whole.replace(b"whole/", b"who\xffe/"), "not a whole weights file"),
        (old[:-20], "not a whole weights file"),
        (old[:300], "cannot be read safely"),
        ((tmp_path / "whole.safetensors").read_bytes()[:-9], "not a whole weights file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "`git lfs pull`"),
        (b"\n<!DOCTYPE html><html></html>", "a web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "Keras"),
        (b"\x08\x08\x12\x07pytorch" + bytes(100), "ONNX"),
        (pickle.dumps({"w": 1}), "a pickle that torch.save did not write"),
        (b"no weights", "neither safetensors nor torch's"),
    ):
        path.write_bytes(content)
        refused(path, says)
    refused(tmp_path, "is a folder")
    refused(saved(path, nn.Linear(1, 1), _use_new_zipfile_serialization=False), "a whole module in torch's format")
    refused(saved(path, WEIGHTS, pickle_protocol=4), "protocol 4")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/cat.jpg", b"")
    refused(path, "a zip archive without weights ('cat.jpg')")


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 2, 3), nn.Linear(2, 4, bias=False)

    def forward(self, images_N3HW):
        return self.fc(self.conv(images_N3HW).mean((2, 3)))


@pytest.mark.filterwarnings("ignore")
def test_the_line_in_a_refusal_makes_a_file_that_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, images_N3HW = Network(), torch.zeros(1, 3, 8, 8)
    model.load_state_dict(WEIGHTS)
    torch.jit.save(torch.jit.trace(model, images_N3HW), "script.pt")
    torch.export.save(torch.export.export(model, (images_N3HW,)), "exported.pt2")
    distributed.save({"model": WEIGHTS}, checkpoint_id="distributed", no_dist=True)
    for kind, save, suffix in (("model", save_file, "safetensors"), ("pytorch_model", torch.save, "bin")):
        names = [f"{kind}-0000{i}-of-00003.{suffix}" for i in (1, 2, 3)]
        for part, (name, tensor) in zip(names, WEIGHTS.items(), strict=True):
            save({name: tensor}, part)
        index = {"metadata": {}, "weight_map": dict(zip(WEIGHTS, names, strict=True))}
        Path(f"{kind}.{suffix}.index.json").write_text(json.dumps(index))
    for path, is_a in (
        ("script.pt", "a TorchScript archive"),
        ("exported.pt2", "an archive of torch.export"),
        ("distributed", "a checkpoint of torch.distributed"),
        ("distributed/.metadata", "a checkpoint of torch.distributed"),
        ("distributed/__0_0.distcp", "a checkpoint of torch.distributed"),
        ("model.safetensors.index.json", "the list of the files"),
        ("pytorch_model.bin.index.json", "the list of the files"),
    ):
        message = refused(Path(path), is_a)
        exec(message[re.search(r": (import|from) ", message).start() + 2 :], {})
        [made] = Path().glob("weights.*")
        state = read(made).state
        assert state.keys() == WEIGHTS.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in WEIGHTS.items())
        made.unlink()


def test_a_changed_weight_is_noticed(tmp_path):
    """PyTorch reads it as it is; files without check sums are read too."""
    path, values = tmp_path / "w.pth", torch.arange(1000, dtype=torch.float32)
    torch.save({"weight": values}, path)
    data = bytearray(path.read_bytes())
    data[data.find(values.numpy().tobytes()) + 400] ^= 1
    (tmp_path / "changed.pth").write_bytes(data)
    changed = torch.load(tmp_path / "changed.pth", weights_only=True)["weight"]
    assert not torch.equal(changed, values)
    with pytest.raises(
        WeightsMismatch, match=r"changed.pth is not a whole weights file for own: 'Bad CRC-32 .*copy it again"
    ):
        read_checkpoint(tmp_path / "changed.pth", ["weight"], "own")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": values}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(path, ["weight"], "own").state["weight"], values)
