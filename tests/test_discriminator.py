"""D: layers, weights, depth, and the lines for weights that do not fit."""

import pytest
import torch
from safetensors.torch import save_file

from dgn import discriminator as discriminators
from dgn.discriminator import Discriminator, FrozenWeights, build_network, layout, load_weights
from dgn.errors import DgnError, WeightsMismatch, WeightsMissing


@pytest.mark.parametrize(
    ("network", "class_layer", "num_filter_layers"),
    [
        ("vgg16", "fc8", 13),
        ("mobilenet_v2", "classifier.1", 52),
        ("squeezenet1_0", "classifier.1", 25),
        ("resnet18", "fc", 20),
        ("regnet_x_400mf", "fc", 71),  # whose constructor calculates widths with tensors
    ],
)
def test_layouts_of_torchvisions_networks(network, class_layer, num_filter_layers):
    found = layout(network)
    assert found.class_layer == class_layer
    assert len(found.filter_layers) == num_filter_layers
    assert len(found.labels) == found.units[class_layer] == 1000


def test_only_as_deep_as_needed(mini):
    cut = mini._as_deep_as(("conv2_1",))
    assert sum(isinstance(m, torch.nn.Conv2d) for m in cut.modules()) == 3


def test_responses_are_taken_before_the_relu_and_equal_the_hooked_ones(mini):
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for layer in ("conv3_3", "fc6", "fc8"):
        response = mini.responses(images, [layer])[layer]
        hooked, _ = mini.scores(images, layer)
        torch.testing.assert_close(response, hooked, rtol=1e-4, atol=1e-4)
        assert response.min() < 0


def test_d_is_frozen(mini):
    assert not any(p.requires_grad for p in mini.model.parameters())
    assert not mini.model.training


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_a_file(suffix, tmp_path, mini_weights):
    path = tmp_path / f"w{suffix}"
    save_file(mini_weights.state, path) if suffix == ".safetensors" else torch.save(mini_weights.state, path)
    loaded = load_weights("vgg16-mini", path)
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in mini_weights.state.items())
    assert loaded.sha256 == discriminators.file_sha256(path)


def test_a_batch_norms_counter_may_lack(tmp_path):
    state = {k: v.clone() for k, v in build_network("resnet18").state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "w.safetensors")
    weights = load_weights("resnet18", tmp_path / "w.safetensors")
    d = Discriminator(weights)
    assert d.responses(torch.rand(1, 3, 224, 224), ["fc"])["fc"].shape == (1, 1000)


def test_bad_weights_say_so_in_one_line(tmp_path, mini_weights):
    good = tmp_path / "good.safetensors"
    save_file(mini_weights.state, good)
    truncated = tmp_path / "cut.safetensors"
    truncated.write_bytes(good.read_bytes()[:-1000])
    pickled = tmp_path / "code.pth"
    torch.save({"w": FrozenWeights}, pickled)
    text = tmp_path / "text.pth"
    text.write_text("no weights")
    for network, path, error, says in (
        ("vgg16", good, WeightsMismatch, "another architecture"),
        ("vgg16-mini", truncated, WeightsMismatch, "no whole weights file"),
        ("vgg16-mini", pickled, WeightsMismatch, "no weights file"),
        ("vgg16-mini", text, WeightsMismatch, "no weights file"),
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
    with pytest.raises(WeightsMissing, match="give --weights FILE"):
        load_weights("squeezenet1_0")


def test_unknown_network():
    with pytest.raises(DgnError, match="unknown discriminator 'vgg17'"):
        layout("vgg17")
