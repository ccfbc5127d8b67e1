"""`dgn.render`: pictures in this process, and a process that stays as it was."""

import contextlib
import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dgn
from dgn.networks.weights import load_weights

QUICK = {"preset": "draft", "width": 0.125, "updates": 3, "progress": False}


@pytest.fixture(scope="module")
def pictures():
    targets = ["classes:star,heart", "filters:conv1_1:3", "group:conv1_1:3*0.5+5"]
    return dgn.render("vgg16-mini", targets, seed=4, **QUICK)


def test_one_picture_per_target_in_order_of_depth(pictures):
    assert [picture.target_id for picture in pictures] == [
        "conv1_1-00003-untrained-s4", "conv1_1-3x0.5_5-untrained-s4", "fc8-00004-untrained-s4",
        "fc8-00007-untrained-s4",
    ]  # fmt: skip
    star = pictures[2]
    assert (star.layer, star.unit, star.label, star.mode) == ("fc8", 4, "star", "untrained")
    assert isinstance(star.status, dgn.Status)
    assert star.image.size == (224, 224)
    assert len(star.row["activation_curve"]) == 3
    assert (star.row["file_name"], star.row["run_id"]) == (None, None), "it is in no run"


def test_the_scores_are_those_of_the_saved_picture(pictures, mini):
    """Scored again from the PNG by a plain forward pass."""
    star = pictures[2]
    rgb_N3HW = torch.from_numpy(np.array(Image.open(io.BytesIO(star.png)))).permute(2, 0, 1)[None] / 255
    logits_U = mini.model((rgb_N3HW - mini.mean_c11) / mini.std_c11)[0]
    assert star.activation == pytest.approx(max(logits_U[4].item(), 0), rel=1e-4)
    assert star.rank == 1 + int((logits_U > logits_U[4]).sum())
    assert star.probability == pytest.approx(logits_U.softmax(0)[4].item(), rel=1e-4)


@pytest.mark.usefixtures("local_ray")
def test_the_command_draws_the_same_pictures(pictures, tmp_path, monkeypatch, capsys):
    from dgn.jobs.render import render
    from dgn.runs.config import RunConfig

    settings = {name: value for name, value in QUICK.items() if name != "progress"}
    config = RunConfig(targets="classes:star,heart", discriminator="vgg16-mini", seed=4, workers="1", **settings)
    render(str(tmp_path / "run"), config)
    run = dgn.open_run(str(tmp_path / "run"))
    for picture in pictures[2:]:
        assert run.picture(picture.target_id).png == picture.png


def test_both_modes(decoder, tmp_path):
    from dgn.method.decoder import serialise

    path = tmp_path / "decoder.safetensors"
    path.write_bytes(serialise(decoder, {"width": 0.125}))
    quick = QUICK | {"width": None}
    found = dgn.render("vgg16-mini", "filters:conv1_1:0", modes="untrained,pretrained", decoder=path, **quick)
    assert [picture.mode for picture in found] == ["untrained", "pretrained"]


def test_the_callers_process_stays_as_it_was(monkeypatch):
    """Random states, thread counts and, since they cannot be restored, malloc's settings."""
    from dgn.engine.cpu import heap

    monkeypatch.setattr(heap, "kept", lambda: pytest.fail("malloc's settings are changed"))
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(1)
    before = (torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_default_dtype())
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    dgn.render("vgg16-mini", "filters:conv1_1:0", **QUICK)
    assert before == (torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_default_dtype())
    assert torch.equal(state[0], torch.random.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])
    assert state[2] == random.getstate()


@contextlib.contextmanager
def switched(switches, precision):
    """float32 arithmetic that is less exact, by one of PyTorch's switches."""
    before, switches.fp32_precision = switches.fp32_precision, precision
    try:
        yield
        assert switches.fp32_precision == precision, "the switch stays as it was"
    finally:
        switches.fp32_precision = before


@contextlib.contextmanager
def medium():
    """Matrix products in bfloat16, by PyTorch's older switch."""
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("around", [
    torch.no_grad(), torch.inference_mode(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16), medium(),
    switched(torch.backends, "tf32"), switched(torch.backends.cudnn.conv, "ieee"),
    switched(torch.backends.mkldnn.matmul, "bf16"),
])  # fmt: skip
def test_the_callers_pytorch_changes_no_picture(around):
    quick = QUICK | {"precision": "float32"}
    plain = dgn.render("vgg16-mini", "classes:star", **quick)
    torch.set_default_dtype(torch.float64)
    try:
        with around:
            found = dgn.render("vgg16-mini", "classes:star", **quick)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert found[0].png == plain[0].png
    assert found[0].row["activation"] == plain[0].row["activation"]


def test_looking_up_a_network_draws_no_random_numbers():
    before = torch.random.get_rng_state()
    with pytest.raises(dgn.WeightsMissing):
        load_weights("squeezenet1_0", Path("nowhere.safetensors"))
    assert dgn.layers("swin_t").units
    assert torch.equal(torch.random.get_rng_state(), before)


def test_its_settings_are_a_runs_settings():
    """The same names and defaults as RunConfig, whose fields for clusters and files it has no use for; what describes
    a network is in dgn.Network."""
    import inspect

    from dgn.runs.config import NETWORK_SETTINGS, RunConfig

    parameters = inspect.signature(dgn.render).parameters
    of_a_run = set(RunConfig.model_fields) - {"shard_size", "pack", "workers", "gpus_per_worker", "log_format"}
    of_a_run -= set(NETWORK_SETTINGS) - {"weights"}
    assert set(parameters) - {"network", "device", "progress"} == of_a_run
    for name in of_a_run - {"targets"}:
        assert parameters[name].default == RunConfig.model_fields[name].default, name


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"targets": "classes:nope"}, dgn.TargetError, "unknown class 'nope'"),
        ({"network": "vgg17"}, dgn.DgnError, "unknown network 'vgg17'"),
        (
            {"network": torch.nn.Linear(1, 1)},
            dgn.DgnError,
            "Linear does not say what pictures it wants",
        ),
        ({"preset": "nice"}, dgn.DgnError, "unknown preset 'nice'"),
        ({"seeds": 0}, dgn.DgnError, "setting seeds: "),
        ({"modes": "pretrained"}, dgn.DgnError, "needs a decoder: give --decoder FILE (in Python decoder="),
        ({"device": "nonsense"}, dgn.DgnError, "unknown device 'nonsense': expected cpu"),
        ({"device": "xpu"}, dgn.DgnError, "cannot draw on device 'xpu': expected cpu"),
        ({"weights": "~/nowhere.pth"}, dgn.WeightsMissing, f"no weights file at {Path.home()}/nowhere.pth"),
        ({"device": "cuda:99"}, dgn.DgnError, "this machine has no device cuda:99"),
        ({"decoder": "drawings"}, dgn.DgnError, "no target is in the pretrained mode"),
        ({"weights": "nowhere.pth"}, dgn.WeightsMissing, "no weights file at nowhere.pth"),
    ],
)
def test_bad_input_is_one_line(arguments, error, says):
    with pytest.raises(error) as raised:
        dgn.render(**{"network": "vgg16-mini", "targets": "classes:star", **QUICK, **arguments})
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


class Exact(torch.nn.Conv2d):
    def forward(self, images):
        return super().forward(images.float()).mean((2, 3))


def test_a_network_that_does_not_run_in_bfloat16_is_drawn_in_float32_or_refused(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    network = dgn.Network(Exact(3, 2, 5), size=32, mean=0.5, std=0.5)
    [picture] = dgn.render(network, "classes:0", **QUICK)
    assert len(picture.row["activation_curve"]) == 3
    with pytest.raises(dgn.DgnError, match=r"Exact does not run on 1 picture .* in bfloat16"):
        dgn.render(network, "classes:0", precision="bfloat16", **QUICK)
