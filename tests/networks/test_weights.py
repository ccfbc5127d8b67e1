"""A network's weights from files, and the messages about those that do not fit."""

import pytest
import torch
from safetensors.torch import save_file

from dgn.errors import WeightsMismatch, WeightsMissing
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import build_network
from dgn.networks.weights import NetworkWeights, file_sha256, load_weights


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_a_file(suffix, tmp_path, mini_weights):
    path = tmp_path / f"w{suffix}"
    save_file(mini_weights.state, path) if suffix == ".safetensors" else torch.save(mini_weights.state, path)
    loaded = load_weights("vgg16-mini", path)
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in mini_weights.state.items())
    assert loaded.sha256 == file_sha256(path)


def test_a_batch_norms_counter_may_be_missing(tmp_path):
    state = {k: v.clone() for k, v in build_network("resnet18").state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "w.safetensors")
    weights = load_weights("resnet18", tmp_path / "w.safetensors")
    network = FrozenNetwork(weights)
    assert network.responses(torch.rand(1, 3, 224, 224), ["fc"])["fc"].shape == (1, 1000)


def test_bad_weights_say_so_in_one_line(tmp_path, mini_weights):
    good = tmp_path / "good.safetensors"
    save_file(mini_weights.state, good)
    truncated = tmp_path / "cut.safetensors"
    truncated.write_bytes(good.read_bytes()[:-1000])
    pickled = tmp_path / "code.pth"
    torch.save({"w": NetworkWeights}, pickled)
    text = tmp_path / "text.pth"
    text.write_text("no weights")
    for network, path, error, says in (
        ("vgg16", good, WeightsMismatch, "another architecture"),
        ("vgg16-mini", truncated, WeightsMismatch, "not a whole weights file"),
        ("vgg16-mini", pickled, WeightsMismatch, "cannot be read safely as weights"),
        ("vgg16-mini", text, WeightsMismatch, "cannot be read safely as weights"),
        ("vgg16-mini", tmp_path / "none.pth", WeightsMissing, "no weights file at"),
    ):
        with pytest.raises(error, match=says) as caught:
            load_weights(network, path)
        assert "\n" not in str(caught.value)


def test_no_internet_is_one_line(monkeypatch, tmp_path):
    """The download is really tried, through a proxy that nobody serves."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(WeightsMissing, match="--weights FILE"):
        load_weights("squeezenet1_0")
