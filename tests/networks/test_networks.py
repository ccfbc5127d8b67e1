"""The description of a network: what it accepts, what it refuses in one line, and that it survives being sent."""

import functools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from dgn.errors import DgnError
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import network_named
from dgn.networks.weights import load_weights
from tests.helpers.own_networks import Plain, network, pictures, seeded


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": 3}, "network is a int: expected an nn.Module or a function that returns one"),
        ({"size": 15}, "input size 15: expected the side of square pictures, 16 to 1024 pixels"),
        ({"size": 1025}, "input size 1025"),
        ({"size": 224.0}, "input size 224.0"),
        ({"size": True}, "input size True"),
        ({"size": (32, 32)}, r"input size \(32, 32\)"),
        ({"mean": (0.5, 0.5)}, r"mean \(0.5, 0.5\): expected one number, or three for red, green and blue"),
        ({"mean": "1,2,3"}, "mean '1,2,3'"),
        ({"mean": float("nan")}, "mean nan"),
        ({"std": [[1.0], [1.0], [1.0]]}, r"std \[\[1.0\]"),
        ({"std": (0.2, 0, 0.2)}, "std 0.2,0,0.2: expected numbers above 0"),
        ({"std": None}, "std None"),
        ({"channel_order": "rgb"}, "channel order 'rgb': expected RGB or BGR"),
        ({"value_range": 0}, "value range 0: expected 1 or 255"),
        ({"value_range": float("inf")}, "value range inf"),
        ({"value_range": "255"}, "value range 255: expected 1 or 255"),
        ({"output": "logits"}, "output 'logits': expected softmax, sigmoid or none"),
        ({"labels": "cat"}, "labels is a str: expected a list of one text per class, in order"),
        ({"labels": {0: "cat", 1: "dog", 2: "cow"}}, "labels is a dict"),
        ({"labels": 3}, "labels is a int"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings, says):
    with pytest.raises(DgnError, match=says) as caught:
        network(**{"model": nn.Conv2d(3, 4, 3), **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "three", [(0.1, 0.2, 0.3), [0.1, 0.2, 0.3], np.array([0.1, 0.2, 0.3]), torch.tensor([0.1, 0.2, 0.3])]
)
def test_numbers_come_as_one_or_three_of_any_kind(three):
    described = network(Plain(), mean=three, std=1)
    assert described.means == pytest.approx((0.1, 0.2, 0.3))
    assert described.stds == (1.0,)


@pytest.mark.parametrize(
    ("model", "name"), [(Plain(), "Plain"), (Plain, "Plain"), (functools.partial(Plain, classes=2), "partial")]
)
def test_a_network_without_a_name_is_called_after_its_module(model, name):
    assert network(model).name == name
    assert network(model, name="mine").name == "mine"
    assert network(model).layers.num_classes == (2 if name == "partial" else 3)


def test_settings_that_are_not_none_replace_those_before():
    first = network(Plain(), labels=("a", "b", "c"), name="mine")
    second = first.with_settings(size=64, mean=None, output="sigmoid", class_layer=None)
    assert (second.size, second.means, second.output, second.labels, second.name) == (
        64, (0.5,), "sigmoid", ("a", "b", "c"), "mine",
    )  # fmt: skip
    assert (first.layers.output, second.layers.output) == ("softmax", "sigmoid")
    assert (first.size, first.output) == (32, None)
    with pytest.raises(DgnError, match="input size 8"):
        first.with_settings(size=8)


def test_a_value_range_comes_with_a_mean_and_std_on_its_scale():
    first = network(Plain(), mean=0.5, std=0.25, name="mine")
    for lacking in ({}, {"mean": 127.0}, {"std": 128.0}):
        with pytest.raises(
            DgnError, match=r"mine: mean 0.5 and std 0.25 are of values from 0 to 1: .*--mean and --std"
        ):
            first.with_settings(value_range=255.0, **lacking)
    assert first.with_settings(value_range=1.0).means == (0.5,)
    assert first.with_settings(value_range=255.0, mean=127.0, std=128.0).value_range == 255
    with pytest.raises(DgnError, match="value range -1: expected 1 or 255"):
        first.with_settings(value_range=-1)


def test_labels_are_one_per_class():
    plain = network(Plain(classes=2), name="mine")
    named = plain.labelled(["ill", "healthy"])
    assert named.labels == named.layers.labels == ("ill", "healthy")
    assert plain.layers.labels == ()
    for labels, says in ((["ill"], "1 label for 2 classes in fc"), ("abc", "labels is a str")):
        with pytest.raises(DgnError, match=says):
            plain.labelled(labels)
    with pytest.raises(DgnError, match="mine: 3 labels for 2 classes in fc; expected one per class"):
        _ = network(Plain(classes=2), name="mine", labels=("a", "b", "c")).layers


def test_two_labels_of_one_logit_are_refused_with_what_to_give():
    one = network(Plain(classes=1), name="mine")
    with pytest.raises(DgnError, match="mine: 2 labels for a single logit, which is one class: give one label"):
        one.labelled(["ill", "healthy"])
    with pytest.raises(DgnError, match="mine: 2 labels for a single logit"):
        _ = network(Plain(classes=1), name="mine", labels=("ill", "healthy")).layers
    assert one.labelled(["ill"]).layers.labels == ("ill",)


def test_a_network_without_its_classes_keeps_the_layers_before_them():
    rest = network(Plain(), labels=("a", "b", "c")).without("fc", "the file has none")
    assert (rest.layers.class_layer, rest.layers.num_classes, rest.labels) == (None, 0, ())
    assert list(rest.layers.units) == ["conv", "norm", "relu"]
    with pytest.raises(DgnError, match="Plain has no classes: the file has none; its filters can be drawn"):
        rest.layers.classes()


def test_what_is_sent_to_another_process_needs_no_second_look():
    described = network(Plain(), labels=("a", "b", "c"))
    found = described.layers
    there = pickle.loads(pickle.dumps(described))
    assert there.__dict__["layers"] == found
    assert (there.size, there.means, there.labels) == (32, (0.5,), ("a", "b", "c"))
    for name, tensor in described.built().state_dict().items():
        assert torch.equal(there.built().state_dict()[name], tensor)


def test_the_callers_module_is_left_alone():
    module = Plain().train()
    described = network(module)
    described.layers, described.built().fc.weight.data.zero_()
    assert module.training
    assert module.fc.weight.device.type == "cpu"
    assert module.fc.weight.abs().sum() > 0


def test_a_module_that_cannot_be_copied_is_refused_in_one_line():
    module = nn.Conv2d(3, 4, 3)
    module.latest = [module(torch.rand(1, 3, 8, 8))]  # what a module remembers of its latest run has a gradient
    with pytest.raises(DgnError, match=r"Conv2d cannot be copied .*; give a function that returns it") as caught:
        network(module).built()
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_computed_from_others_are_copied():
    """The older norms of weights keep a weight that has a gradient's history, which PyTorch does not copy."""
    module = seeded(Plain())
    nn.utils.weight_norm(module.conv), nn.utils.spectral_norm(module.fc)
    described = network(module.eval())
    one, other = described.built(), described.built()
    images = pictures()
    assert torch.equal(one(images), module(images))
    with torch.no_grad():
        one.conv.weight_g.zero_()
    assert not torch.equal(one(images), module(images))
    assert torch.equal(other(images), module(images))
    assert described.layers.class_layer == "fc"
    found = FrozenNetwork(load_weights(described)).responses(images, ["fc"])["fc"]
    torch.testing.assert_close(found, module((images - 0.5) / 0.25), rtol=1e-4, atol=1e-5)


class Compiled(nn.Module):
    """As `torch.compile` returns it; importing the compiler takes seconds."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module


@pytest.mark.parametrize("wrap", [Compiled, nn.DataParallel, lambda module: nn.DataParallel(Compiled(module))])
def test_wrappers_are_taken_off(wrap):
    for model in (wrap(Plain()), lambda: wrap(Plain())):
        described = network(model, name="mine")
        assert type(described.built()) is Plain
        assert described.layers.class_layer == "fc"
    assert network(wrap(Plain())).name == "Plain"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: torch.jit.script(Plain().eval()), "mine is TorchScript, whose layers nobody can watch: give the nn"),
        (lambda: torch.jit.trace(Plain().eval(), torch.zeros(1, 3, 8, 8)), "mine is TorchScript"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "'0.weight' has no shape yet: run the module once first"),
        (
            lambda: torch.ao.quantization.quantize_dynamic(Plain().eval()),
            r"'fc.[^']*' is not a tensor of plain numbers: give the float module",
        ),
    ],
)
def test_modules_that_are_not_plain_are_refused_in_one_line(make, says):
    for model in (make(), make):
        with pytest.raises(DgnError, match=says) as caught:
            _ = network(model, name="mine").layers
        assert "\n" not in str(caught.value)


def test_a_function_that_returns_no_module_is_named():
    with pytest.raises(DgnError, match="dict returned a dict: expected an nn"):
        network(dict).built()


def test_finding_layers_draws_no_random_numbers_of_the_caller():
    described = [network_named("squeezenet1_1"), network(lambda: Plain()), network(Plain())]
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    for one in described:
        assert one.with_settings(size=64).layers.class_layer
    assert torch.equal(torch.rand(1), expected)


def test_a_named_network_takes_no_memory_until_it_has_weights():
    assert all(tensor.is_meta for tensor in network_named("vgg16").bare().state_dict().values())
    assert not any(tensor.is_meta for tensor in network_named("squeezenet1_1").built().state_dict().values())


def test_first_values_are_not_made_even_where_a_constant_has_to_be():
    """Otherwise the parameters of a large network would take its memory before it has weights."""

    class WithConstant(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
            self.register_buffer("positions", torch.empty(4), persistent=False)
            with torch.no_grad():
                self.positions.copy_(torch.arange(4.0))
                nn.init.normal_(self.fc.weight).div_(2)

    builder = functools.partial(WithConstant)
    builder.is_plain = True
    torch.use_deterministic_algorithms(True)  # what nobody fills is then NaN
    try:
        module = network(builder).bare()
    finally:
        torch.use_deterministic_algorithms(False)
    assert module.positions.tolist() == [0, 1, 2, 3]
    assert module.conv.weight.isnan().all()
    assert module.fc.weight.isnan().all()
