"""A network's weights from files, and the messages about those that do not fit."""

import re
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dgn.errors import TargetError, WeightsMismatch, WeightsMissing
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import network_named
from dgn.networks.specs import parse_targets
from dgn.networks.weights import NetworkWeights, file_sha256, load_weights
from tests.helpers.own_networks import Plain, network, seeded


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_a_file(suffix, tmp_path, mini_weights):
    path = tmp_path / f"w{suffix}"
    save_file(mini_weights.state, path) if suffix == ".safetensors" else torch.save(mini_weights.state, path)
    loaded = load_weights("vgg16-mini", path)
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in mini_weights.state.items())
    assert loaded.sha256 == file_sha256(path)


def test_a_batch_norms_counter_may_be_missing(tmp_path):
    state = {name: tensor for name, tensor in built("mnasnet0_5").items() if "num_batches" not in name}
    network = FrozenNetwork(loaded("mnasnet0_5", state, tmp_path, ".safetensors"))
    assert network.responses(torch.rand(1, 3, 224, 224), ["classifier.1"])["classifier.1"].shape == (1, 1000)


def test_bad_weights_say_so_in_one_line(tmp_path, mini_weights):
    good = tmp_path / "good.safetensors"
    save_file(mini_weights.state, good)
    truncated = tmp_path / "cut.safetensors"
    truncated.write_bytes(good.read_bytes()[:-1000])
    pickled = tmp_path / "code.pth"
    torch.save({"w": NetworkWeights}, pickled)
    text = tmp_path / "text.pth"
    text.write_text("no weights")
    for name, path, error, says in (
        ("vgg16", good, WeightsMismatch, "another architecture"),
        ("vgg16-mini", truncated, WeightsMismatch, "not a whole weights file"),
        ("vgg16-mini", pickled, WeightsMismatch, "holds no weights of vgg16-mini"),
        ("vgg16-mini", text, WeightsMismatch, "it is neither safetensors nor torch's"),
        ("vgg16-mini", tmp_path / "none.pth", WeightsMissing, "no weights file at"),
    ):
        with pytest.raises(error, match=says) as caught:
            load_weights(name, path)
        assert "\n" not in str(caught.value)


def test_no_internet_is_one_line(no_internet):
    with pytest.raises(WeightsMissing, match="--weights FILE"):
        load_weights("squeezenet1_0")


def built(name, num_classes=None, seed=0):
    """Random weights of a named network, as a file of it would hold them."""
    builder = network_named(name).model
    torch.manual_seed(seed)
    return (builder if num_classes is None else builder.with_classes(num_classes))().state_dict()


def loaded(name, state, folder, suffix=".pth"):
    path = folder / f"w{suffix}"
    save_file(dict(state), path) if suffix == ".safetensors" else torch.save(state, path)
    return load_weights(name, path)


def without(state, *parts):
    return {name: tensor for name, tensor in state.items() if name.partition(".")[0] not in parts}


def assert_same(weights, state):
    for name, tensor in state.items():
        assert torch.equal(weights.state[name], tensor), name


@pytest.mark.parametrize(
    ("name", "class_layer"),
    [("squeezenet1_1", "classifier.1"), ("efficientnet_lite0", "_fc"), ("timm:test_vit", "head"),
     ("timm:test_efficientnet", "classifier")],
)  # fmt: skip
def test_the_number_of_classes_is_the_files(name, class_layer, tmp_path):
    state = built(name, 2)
    weights = loaded(name, state, tmp_path)
    found = weights.network.layers
    assert (found.class_layer, found.num_classes, found.labels) == (class_layer, 2, ())
    assert (weights.network.size, weights.network.means) == (network_named(name).size, network_named(name).means)
    assert_same(weights, state)
    assert network_named(name).layers.num_classes > 2
    with pytest.raises(TargetError, match="has units 0 to 1"):
        parse_targets(["classes:2"], found, None)


@pytest.mark.parametrize(
    ("name", "num_classes", "left_out", "remark"),
    [
        ("googlenet", None, (), None),
        ("googlenet", 5, ("aux1", "aux2"), None),
        ("inception_v3", None, ("AuxLogits",), None),
        ("googlenet", None, ("aux1", "aux2", "fc"), "no weights for fc, so classes cannot be drawn"),
    ],
)
def test_heads_for_training_may_be_there_or_not(name, num_classes, left_out, remark, tmp_path):
    state = without(built(name, num_classes), *left_out)
    weights = loaded(name, state, tmp_path, ".safetensors")
    assert weights.network.layers.num_classes == (0 if remark else num_classes or 1000)
    assert weights.remarks == ((remark,) if remark else ())
    assert_same(weights, state)


@pytest.mark.parametrize("name", ["squeezenet1_1", "timm:test_vit", "efficientnet_lite0"])
def test_a_backbones_file_has_filters_and_no_classes(name, tmp_path):
    head = network_named(name).layers.class_layer.partition(".")[0]
    weights = loaded(name, without(built(name), head), tmp_path)
    found = weights.network.layers
    assert weights.remarks == (f"no weights for {head}, so classes cannot be drawn",)
    assert parse_targets(["filters"], found, None) == parse_targets(["all"], found, None)
    assert not [layer for layer in found.units if layer.partition(".")[0] == head]
    with pytest.raises(TargetError, match=f"{name} has no classes: w.pth has no weights for {head}; its filters"):
        parse_targets(["classes:0"], found, None)
    network = FrozenNetwork(weights)
    layer = found.filter_layers[0]
    response = network.responses(torch.rand(1, 3, network.size_px, network.size_px), [layer])[layer]
    assert response.shape[:2] == (1, found.units[layer])
    assert response.isfinite().all()


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("resnet18", lambda state: built("resnet34"), "does not fit resnet18 .layer1.2.conv1.weight is not a"),
        ("squeezenet1_1", lambda state: state | {"features.0.weight": torch.zeros(64, 4, 3, 3)},
         r"features.0.weight is \(64, 4, 3, 3\) instead of \(64, 3, 3, 3\)\)"),
        ("squeezenet1_1", lambda state: {n: t for n, t in state.items() if n != "features.3.squeeze.bias"},
         "features.3.squeeze.bias is missing[)]; give weights of squeezenet1_1"),
        ("squeezenet1_1", lambda state: state | {"features.3.squeeze.bias": torch.full((16,), float("nan"))},
         "'features.3.squeeze.bias' has NaN or infinity in 16 of 16 values"),
        ("efficientnet_lite0", lambda state: built("efficientnet_lite1"), "is not a weight of efficientnet_lite0"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_in_one_line(name, change, says, tmp_path):
    with pytest.raises(WeightsMismatch, match=says) as caught:
        loaded(name, change(dict(built(name))), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "head", "says"),
    [
        ("resnet18", {"fc": nn.Linear(512, 2, bias=False)}, "resnet18 but for fc .fc.bias is missing[)]"),
        ("resnet18", {"fc": nn.Sequential(nn.Dropout(), nn.Linear(512, 2))},
         "resnet18 but for fc .fc.1.weight is not a weight of resnet18 and 1 more difference[)]"),
        ("mobilenet_v2", {"classifier": nn.Linear(1280, 2)},
         "mobilenet_v2 but for classifier .classifier.weight is not a weight of mobilenet_v2 and 1 more difference[)]"),
    ],
)  # fmt: skip
def test_a_head_of_another_structure_is_refused_with_the_way_to_build_it(name, head, says, tmp_path):
    model = network_named(name).model()
    for part, module in head.items():
        setattr(model, part, module)
    with pytest.raises(WeightsMismatch, match=f"{says}; .*--discriminator FILE.py:FUNCTION") as caught:
        loaded(name, model.state_dict(), tmp_path)
    assert "\n" not in str(caught.value)
    assert load_weights(network(lambda: model), tmp_path / "w.pth").network.layers.num_classes == 2


def test_weights_of_another_network_beside_are_left_out_and_named(tmp_path):
    state = built("squeezenet1_1")
    weights = loaded("squeezenet1_1", {**state, "projector.weight": torch.ones(2, 2)}, tmp_path)
    assert weights.remarks == ("left out 1 tensor of projector",)
    assert weights.state.keys() == state.keys()


def test_densenets_published_names_are_read(tmp_path):
    """`norm.1` became `norm1` in 2017; the published files have no counters either."""
    state = {name: tensor for name, tensor in built("densenet121").items() if "num_batches" not in name}
    old = {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12])\.", r"\1.\2.", name): t for name, t in state.items()}
    assert len(old.keys() - state.keys()) == 58 * 10  # 2 norms of 4 tensors, 2 convolutions
    assert_same(loaded("densenet121", old, tmp_path), state)


@pytest.mark.parametrize("version", [None, 2, 1])
def test_mnasnet_wants_a_version_that_plain_files_lack(version, tmp_path):
    """Its `load_state_dict` refuses any other than 1 and 2, and rebuilds its stem for 1 unless its width is 1."""
    state = OrderedDict(built("mnasnet1_0" if version == 1 else "mnasnet0_5"))
    if version:
        state._metadata = OrderedDict({"": {"version": version}})
    assert_same(loaded("mnasnet1_0" if version == 1 else "mnasnet0_5", state, tmp_path), state)


def test_timms_networks_are_read_under_their_authors_names(tmp_path):
    state = built("timm:pvt_v2_b0")
    original = {}
    for name, tensor in state.items():
        name = re.sub(r"^patch_embed\.", "patch_embed1.", name)
        name = re.sub(r"^stages\.(\d)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}.", name)
        name = re.sub(r"^stages\.(\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}.", name)
        name = re.sub(r"^stages\.(\d)\.norm\.", lambda m: f"norm{int(m[1]) + 1}.", name)
        original[name.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")] = tensor
    assert len(original.keys() & state.keys()) == 2  # the head's
    assert_same(loaded("timm:pvt_v2_b0", {"model": original}, tmp_path), state)


def old_convnext(name):
    """A tensor's name in ConvNeXt's own repository."""
    for pattern, theirs in (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    ):
        name = re.sub(pattern, theirs, name)
    return name


@pytest.mark.parametrize("prefix", ["", "module.", "model.encoder."])
@pytest.mark.parametrize("num_classes", [1000, 7])
def test_names_of_authors_that_share_nothing_with_timms(prefix, num_classes, tmp_path):
    """Their convolutions of 1 x 1 are matrices too."""
    state = built("timm:convnext_atto", num_classes)
    original = {prefix + old_convnext(name): t.flatten(1) if t.shape[2:] == (1, 1) else t for name, t in state.items()}
    assert not original.keys() & state.keys()
    weights = loaded("timm:convnext_atto", {"optimizer": {"lr": 1.0}, "model": original}, tmp_path)
    assert_same(weights, state)
    assert weights.network.layers.num_classes == num_classes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_float32_here(dtype, tmp_path):
    state = {name: tensor.to(dtype) for name, tensor in built("squeezenet1_1").items()}
    assert_same(loaded("squeezenet1_1", state, tmp_path), {name: tensor.float() for name, tensor in state.items()})


def test_a_module_brings_its_own_weights():
    module = seeded(Plain())
    weights = load_weights(network(module))
    assert weights.source == "the weights that Plain was built with"
    assert_same(weights, module.state_dict())
    assert weights.sha256 == load_weights(network(module)).sha256
    before = module.fc.bias[0].item()
    module.fc.bias.data[0] += 1
    assert weights.sha256 != load_weights(network(module)).sha256
    assert weights.state["fc.bias"][0] == before, "a copy"
    assert all(tensor.dtype == torch.float32 for tensor in load_weights(network(Plain().half())).state.values()
               if tensor.is_floating_point())  # fmt: skip
    module.conv.weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(
        WeightsMismatch,
        match=r"Plain: the tensor 'conv.weight' has NaN or infinity in 1 of 162 values: expected finite",
    ):
        load_weights(network(module))


def test_a_file_fits_a_module_of_ones_own(tmp_path):
    file = seeded(Plain(), seed=5)
    weights = loaded(network(seeded(Plain())), {"state_dict": {f"module.{n}": t for n, t in file.state_dict().items()}},
                     tmp_path)  # fmt: skip
    assert_same(weights, file.state_dict())
    with pytest.raises(WeightsMismatch, match=r"fc.weight is \(7, 6\) instead of \(3, 6\)"):
        loaded(network(Plain()), Plain(classes=7).state_dict(), tmp_path)


def test_one_logit_is_a_sigmoid_in_a_named_network_too(tmp_path):
    model = network_named("resnet18").model.with_classes(1)()
    torch.save(model.state_dict(), tmp_path / "one.pth")
    layers = load_weights("resnet18", tmp_path / "one.pth").network.layers
    assert (layers.num_classes, layers.output) == (1, "sigmoid")


def test_weights_are_in_memory_of_their_own(tmp_path, mini_weights):
    for name, save in (("w.pth", torch.save), ("w.safetensors", save_file)):
        state = {key: tensor.clone() for key, tensor in mini_weights.state.items()}
        save(state, tmp_path / name)
        loaded = load_weights("vgg16-mini", tmp_path / name)
        (tmp_path / name).write_bytes(bytes((tmp_path / name).stat().st_size))
        assert all(torch.equal(loaded.state[key], tensor) for key, tensor in state.items())
