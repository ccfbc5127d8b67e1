"""From settings to a network: names, preprocessing, files of weights and labels, and addresses of them."""

import pytest
import torch
from safetensors.torch import save_file

from dgn.errors import DgnError, StoreError, WeightsMismatch, WeightsMissing
from dgn.networks.weights import file_sha256
from dgn.runs.config import RunConfig
from dgn.runs.networks import describe_network, load_network
from dgn.runs.stores import open_store
from tests.helpers.own_networks import Plain, seeded

NET = "from tests.helpers.own_networks import Plain\n\ndef build():\n    return Plain(classes=2)\n"
WANTS = {"input_size": 32, "mean": "0.5", "std": "0.25"}


@pytest.fixture
def own(tmp_path):
    """Settings of a network of one's own, with two classes and weights in a file."""
    (tmp_path / "net.py").write_text(NET)
    save_file(seeded(Plain(classes=2)).state_dict(), tmp_path / "w.safetensors")
    return {"discriminator": f"{tmp_path}/net.py:build", **WANTS}


def config(**settings):
    return RunConfig(targets=("classes",), **settings)


def test_a_published_network_needs_no_settings_and_obeys_those_it_gets():
    plain = describe_network(config(discriminator="squeezenet1_1"))
    assert (plain.size, plain.layers.num_classes, plain.labels[668]) == (224, 1000, "mosque")
    own = describe_network(config(discriminator="squeezenet1_1", input_size=64, mean="0.1,0.2,0.3", channel_order="BGR",
                                  output="none"))  # fmt: skip
    assert (own.size, own.means, own.stds, own.channel_order) == (64, (0.1, 0.2, 0.3), plain.stds, "BGR")
    assert own.description()["output"] == "none"
    assert plain.description()["output"] == "softmax"


def test_a_function_of_ones_own_with_weights_and_labels(own, tmp_path):
    (tmp_path / "labels.txt").write_text("ill\nhealthy\n")
    settings = config(**own, weights=f"{tmp_path}/w.safetensors", labels=f"{tmp_path}/labels.txt", output="sigmoid")
    weights = load_network(settings)
    network = weights.network
    assert (network.name, network.size, network.means, network.stds) == ("net.py:build", 32, (0.5,), (0.25,))
    assert network.labels == network.layers.labels == ("ill", "healthy")
    assert (network.layers.class_layer, network.layers.output) == ("fc", "sigmoid")
    assert weights.sha256 == file_sha256(tmp_path / "w.safetensors")
    assert torch.equal(weights.state["fc.weight"], seeded(Plain(classes=2)).fc.weight)
    assert describe_network(settings).layers == network.layers


def test_describing_a_network_builds_no_weights_of_a_published_one(no_internet):
    assert describe_network(config(discriminator="squeezenet1_1")).layers.num_classes == 1000
    with pytest.raises(WeightsMissing, match="--weights FILE"):
        load_network(config(discriminator="squeezenet1_1"))


def test_a_file_with_fewer_classes_has_labels_of_its_own(tmp_path):
    from dgn.networks.registry import network_named

    state = network_named("timm:test_efficientnet").model.with_classes(2)().state_dict()
    torch.save(state, tmp_path / "w.pth")
    (tmp_path / "labels.csv").write_text("index,label\n1,dog\n0,cat\n")
    (tmp_path / "three.json").write_text('["cat", "dog", "cow"]')
    settings = {"discriminator": "timm:test_efficientnet", "weights": f"{tmp_path}/w.pth"}
    assert describe_network(config(**settings)).layers.labels == ()
    assert describe_network(config(**settings, labels=f"{tmp_path}/labels.csv")).labels == ("cat", "dog")
    with pytest.raises(
        DgnError, match="timm:test_efficientnet: 3 labels for 2 classes in classifier; expected one per"
    ):
        describe_network(config(**settings, labels=f"{tmp_path}/three.json"))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"input_size": None, "std": None}, DgnError, "does not say what pictures it wants: give --input-size, --std"),
        ({"labels": "none.txt"}, DgnError, "no labels file at none.txt: expected a file, s3://, gs:// or az:// with"),
        ({"labels": "three.txt"}, DgnError, "3 labels for 2 classes in fc; expected one per class"),
        ({"labels": "."}, DgnError, "no labels file at .: expected a file"),
        ({"labels": "/dev/zero"}, DgnError, "no labels file at /dev/zero: expected a file"),
        ({"labels": "https://localhost/l.txt"}, DgnError, "labels https://localhost/l.txt: expected a file, s3://"),
        ({"weights": "none.pth"}, WeightsMissing, "no weights file at none.pth"),
        ({"weights": "w.safetensors", "weights_sha256": "0" * 64}, WeightsMismatch,
         r"w.safetensors has the SHA-256 [0-9a-f]{64}, not 0{64}: it is another file"),
        ({"weights": "http://host/w.pth"}, DgnError, "weights http://host/w.pth: expected a file, s3://, gs://, az://"),
        ({"weights": "ftp://b/w.pth"}, DgnError, "weights ftp://b/w.pth: expected a file, s3://, gs://, az:// or https://"),
        ({"weights": "https://host/w.pth"}, DgnError, "weights https://host/w.pth: give --weights-sha256 too"),
        ({"class_layer": "head"}, DgnError, "unknown class layer 'head'"),
        ({"mean": "0.5,0.5"}, DgnError, "expected one number, or three"),
        ({"discriminator": "none.py:build"}, DgnError, "cannot read none.py"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_in_one_line(change, error, says, own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    for act in (describe_network, load_network):
        with pytest.raises(error, match=says) as caught:
            act(config(**own | change)).layers  # noqa: B018
        assert "\n" not in str(caught.value)


def test_https_without_internet_is_one_line(own, no_internet):
    with pytest.raises(WeightsMissing, match=r"w.pth: the download failed") as caught:
        load_network(config(**own, weights="https://host.invalid/w.pth", weights_sha256="0" * 64))
    assert "\n" not in str(caught.value)


def test_what_was_downloaded_once_is_used_again_if_it_is_whole(own, tmp_path, no_internet):
    content = (tmp_path / "w.safetensors").read_bytes()
    sha256 = file_sha256(tmp_path / "w.safetensors")
    cached = tmp_path / "hub" / "checkpoints" / f"{sha256[:16]}-w.safetensors"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(content)
    settings = config(**own, weights="https://host.invalid/a/w.safetensors?download=true", weights_sha256=sha256)
    assert load_network(settings).sha256 == sha256
    cached.write_bytes(content[:-1])
    with pytest.raises(WeightsMissing, match="the download failed"):
        load_network(settings)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_weights_and_labels_from_a_bucket(scheme, own, tmp_path, request):
    bucket = request.getfixturevalue("bucket") if scheme == "s3" else request.getfixturevalue("cloud_bucket")(scheme)
    path = tmp_path / "w.safetensors"
    address = f"{scheme}://{bucket}/models"
    open_store(address).write("w.safetensors", path.read_bytes())
    open_store(address).write("labels.json", b'{"0": "ill", "1": "healthy"}')
    settings = {**own, "weights": f"{address}/w.safetensors", "labels": f"{address}/labels.json"}
    weights = load_network(config(**settings, weights_sha256=file_sha256(path)))
    assert weights.sha256 == file_sha256(path)
    assert weights.network.labels == ("ill", "healthy")
    for change, error, says in (
        ({"weights_sha256": "1" * 64}, WeightsMismatch, f"{address}/w.safetensors has the SHA-256 .* not 1111"),
        ({"weights": f"{address}/none.pth"}, WeightsMissing, f"no weights at {address}/none.pth"),
        ({"labels": f"{address}/none.txt"}, DgnError, f"no labels at {address}/none.txt"),
        (
            {"weights": f"{scheme}://no-such-bucket-of-ours/w.pth"},
            (WeightsMissing, StoreError),
            "no-such-bucket-of-ours",
        ),
    ):
        with pytest.raises(error, match=says) as caught:
            load_network(config(**settings | change))
        assert "\n" not in str(caught.value)


def test_a_hash_is_checked_without_a_file_too():
    with pytest.raises(WeightsMismatch, match=r"has the SHA-256 .*, not 0000"):
        load_network(RunConfig(discriminator="vgg16-mini", weights_sha256="0" * 64))
