"""Layers, units and classes of networks, found without weights."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgn.errors import DgnError, TargetError
from dgn.networks.registry import network_named
from dgn.networks.specs import parse_targets
from tests.helpers.own_networks import Own, Plain, conv, layers


@pytest.mark.parametrize(
    ("network", "class_layer", "num_filter_layers"),
    [
        ("vgg16", "fc8", 13),
        ("mobilenet_v2", "classifier.1", 52),
        ("squeezenet1_0", "classifier.1", 25),
        ("resnet18", "fc", 20),
        ("regnet_x_400mf", "fc", 71),  # whose constructor calculates widths with tensors
        ("googlenet", "fc", 57),  # without the heads for training
        ("efficientnet_lite0", "_fc", 49),
        ("timm:tresnet_m", "head.fc", 96),  # whose first convolution reads 48 channels, pixels of 4 x 4
    ],
)
def test_layers_of_published_networks(network, class_layer, num_filter_layers):
    found = network_named(network).layers
    assert found.class_layer == class_layer
    assert len(found.filter_layers) == num_filter_layers
    assert len(found.labels) == found.units[class_layer] == 1000
    assert found.num_channels == 3


def test_unknown_network():
    with pytest.raises(DgnError, match="unknown network 'vgg17': did you mean vgg1"):
        network_named("vgg17")


def pooled(s, x):
    return s.stem(x).relu().mean((2, 3))


def heads(run, **modules):
    """A stem of 4 units, heads a (3 classes) and b (5), and what to return of them."""
    return Own(run, stem=conv(), a=nn.Linear(4, 3), b=nn.Linear(4, 5), **modules)


def gated(s, x):
    return s.b(x) * s.a(x)[:, :1]


Pair = namedtuple("Pair", "main extra")


@dataclass
class Output:
    logits: torch.Tensor
    loss: None = None
    hidden: tuple = ()


def auxiliary_last(s, x):
    x = pooled(s, x)
    classes = s.a(x)
    s.b(x)
    return classes


@pytest.mark.parametrize(
    ("run", "class_layer", "num_classes"),
    [
        (auxiliary_last, "a", 3),
        (lambda s, x: {"logits": s.b(pooled(s, x)), "features": pooled(s, x)}, "b", 5),
        (lambda s, x: OrderedDict(out={"logits": s.b(pooled(s, x))}, aux=s.a(pooled(s, x))), "b", 5),
        (lambda s, x: Output(s.b(pooled(s, x)), None, (s.stem(x), s.a(pooled(s, x)))), "b", 5),
        (lambda s, x: (s.a(pooled(s, x)),), "a", 3),
        (lambda s, x: [s.a(pooled(s, x)), 0.5, None, {"note": "text"}], "a", 3),
        (lambda s, x: (s.a(pooled(s, x)), torch.zeros(5, 4), torch.tensor(1.0)), "a", 3),  # a loss, some prototypes
        # The mean of a map: its layer counts after a ReLU, which the network does not have.
        (lambda s, x: s.a(s.stem(x).permute(0, 2, 3, 1)).mean((1, 2)), "output", 3),
        (lambda s, x: s.a(s.stem(x).permute(0, 2, 3, 1)).relu().mean((1, 2)), "a", 3),
        (lambda s, x: s.a(pooled(s, x)) + torch.ones(3), "output", 3),
        (lambda s, x: -s.a(pooled(s, x)), "output", 3),
        (lambda s, x: (s.a(pooled(s, x)) + s.a(pooled(s, x.flip(3)))) / 2, "output", 3),  # DeiT's mean of heads
        (lambda s, x: s.a(pooled(s, x))[:, :2], "output", 2),
        (lambda s, x: torch.cat([s.a(pooled(s, x)), s.b(pooled(s, x))], 1), "output", 8),
        (lambda s, x: pooled(s, x), "stem", 4),
        (lambda s, x: s.stem(x), "output", 4),
    ],
)
def test_the_class_layer_is_what_the_output_holds(run, class_layer, num_classes):
    found = layers(heads(run))
    assert (found.class_layer, found.num_classes) == (class_layer, num_classes)
    assert [t.layer for block in parse_targets(["classes:0"], found, None) for t in block] == [class_layer]


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (lambda s, x: (s.a(pooled(s, x)), s.b(pooled(s, x))), r"outputs, '0' \(3 units of a\), '1' \(5 units of b\)"),
        (lambda s, x: Pair(s.a(pooled(s, x)), pooled(s, x)), r"'main' \(3 units of a\), 'extra' \(4 units of stem@?"),
        (lambda s, x: {"x": s.a(pooled(s, x)), "y": {"z": gated(s, pooled(s, x))}}, r"'y.z' \(5 units\)"),
        (lambda s, x: s.a(pooled(s, x)).mean(), "its output has no tensor with a row per picture"),
        (lambda s, x: [s.stem(x), None][1], "its output has no tensor with a row per picture"),
        (lambda s, x: torch.stack([s.a(pooled(s, x)), s.a(pooled(s, x.flip(3)))]), "no tensor with a row per picture"),
        (lambda s, x: s.a(s.stem(x).permute(0, 2, 3, 1)), r"its output is a map with channels last, \(N, 4, 4, 3\)"),
    ],
)  # fmt: skip
def test_a_network_without_one_output_of_classes_says_why_in_one_line(run, why):
    found = layers(heads(run), labels=("x", "y", "z"))
    assert (found.class_layer, found.num_classes, found.labels) == (None, 0, ())
    assert "stem" in {layer.partition("@")[0] for layer in found.filter_layers}
    with pytest.raises(TargetError, match=why) as caught:
        parse_targets(["classes:0"], found, None)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; its filters can be drawn")


def both(s, x):
    x = s.stem(x).relu().mean((2, 3))
    return s.a(x), torch.sigmoid(s.b(x))


def test_of_several_outputs_the_user_names_the_layer():
    a, b = (layers(heads(both), class_layer=name) for name in ("a", "b"))
    assert (a.class_layer, a.class_output, a.output, a.is_probability) == ("a", "0", "softmax", False)
    assert (b.class_layer, b.class_output, b.output, b.is_probability) == ("b", "1", "sigmoid", True)
    assert layers(heads(both), class_layer="b", labels=tuple("vwxyz")).labels == tuple("vwxyz")


def tempered(s, x):
    """Two outputs of 3 values that cannot be followed back."""
    x = pooled(s, x)
    return s.a(x) * s.scale, s.c(x) * s.scale


def with_head(run):
    model = heads(run, c=nn.Linear(4, 3), head=nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)))
    model.scale = nn.Parameter(torch.tensor(2.0))
    return model


@pytest.mark.parametrize(
    ("run", "class_layer", "class_output"),
    [
        (lambda s, x: (tempered(s, x)[0], s.c(pooled(s, x))), "a", "0"),  # 1 is another layer's
        (lambda s, x: (s.a(pooled(s, x)), s.c(pooled(s, x))), "c", "1"),
        (lambda s, x: (s.a(pooled(s, x)), s.head(pooled(s, x))), "head", "1"),  # whose units are those of head.0
        (lambda s, x: (s.a(pooled(s, x)), s.head(pooled(s, x))), "head.1", "1"),
        (lambda s, x: (s.a(pooled(s, x)), s.head(pooled(s, x))), "head.0", "1"),
    ],
)  # fmt: skip
def test_a_named_layer_gets_its_own_output(run, class_layer, class_output):
    assert layers(with_head(run), class_layer=class_layer).class_output == class_output


@pytest.mark.parametrize(
    ("run", "class_layer", "says"),
    [
        (tempered, "c", "'c' has 3 units, and so do several outputs of Own: '0' and '1'. It is unclear which"),
        (lambda s, x: (s.a(pooled(s, x)), s.c(pooled(s, x))), "head", "unknown class layer 'head'"),
        (lambda s, x: s.a(pooled(s, x) + s.c(pooled(s, x)).mean()), "c", "but the output of Own has units of a: exp"),
        (both, "c", "unknown class layer 'c': Own has no such layer"),
        (both, "stem", "class layer 'stem' has 4 units, but the output of Own has 3 and 5 values per picture"),
        (lambda s, x: s.a(pooled(s, x)), "stem", "class layer 'stem' has 4 units, but the output of Own has 3 values"),
        (lambda s, x: s.a(s.stem(x).permute(0, 2, 3, 1)), "a", "'a' has 3 units, but its output is a map with"),
    ],
)  # fmt: skip
def test_a_class_layer_that_the_output_does_not_show_is_refused(run, class_layer, says):
    with pytest.raises(DgnError, match=says) as caught:
        layers(with_head(run), class_layer=class_layer)
    assert "\n" not in str(caught.value)


def test_a_head_of_several_may_be_named_where_the_output_is_their_mean():
    def run(s, x):
        x = pooled(s, x)
        return (s.a(x) + s.c(x)) / 2

    model = heads(run, c=nn.Linear(4, 3))
    assert layers(model).class_layer == "output"
    assert [layers(model, class_layer=name).class_layer for name in ("a", "c", "output")] == ["a", "c", "output"]


def test_a_module_called_output_is_told_from_the_networks_output():
    found = layers(Own(lambda s, x: s.output(pooled(s, x)).softmax(1), stem=conv(), output=nn.Linear(4, 3)))
    assert found.units == {"stem": 4, "output@1": 3}
    assert found.module_of("output@1") == ("output", 0)
    assert (found.class_layer, found.is_probability) == ("output@1", True)


@pytest.mark.parametrize(
    ("run", "classes", "wanted", "output", "is_probability"),
    [
        (lambda s, x: s.fc(x), 3, None, "softmax", False),
        (lambda s, x: s.fc(x).softmax(-1), 3, None, "softmax", True),
        (lambda s, x: F.log_softmax(s.fc(x), 1), 3, None, "softmax", False),
        (lambda s, x: F.log_softmax(s.fc(x), 1).exp(), 3, None, "softmax", True),
        (lambda s, x: torch.sigmoid(s.fc(x)) * 5, 3, None, "softmax", False),
        (lambda s, x: s.fc(x).softmax(-1).log(), 3, None, "softmax", False),
        (lambda s, x: torch.sigmoid(s.fc(x)), 3, None, "sigmoid", True),
        (lambda s, x: torch.sigmoid(s.fc(x)), 3, "sigmoid", "sigmoid", True),
        (lambda s, x: torch.sigmoid(s.fc(x)), 3, "none", "none", False),
        (lambda s, x: s.fc(x), 3, "sigmoid", "sigmoid", False),
        (lambda s, x: s.fc(x), 1, None, "sigmoid", False),
        (lambda s, x: s.fc(x).squeeze(1), 1, None, "sigmoid", False),
        (lambda s, x: s.fc(x)[:, 0].sigmoid(), 1, None, "sigmoid", True),
        (lambda s, x: s.fc(x).sigmoid().flatten(), 1, None, "sigmoid", True),
        (lambda s, x: s.fc(x), 1, "none", "none", False),
        (lambda s, x: (s.fc(x).softmax(1) + s.fc(-x).softmax(1)) / 2, 3, None, "softmax", True),
    ],
)
def test_what_makes_probabilities_is_found(run, classes, wanted, output, is_probability):
    model = Own(lambda s, x: run(s, pooled(s, x)), stem=conv(), fc=nn.Linear(4, classes))
    found = layers(model, output=wanted)
    assert (found.output, found.is_probability, found.num_classes) == (output, is_probability, classes)


@pytest.mark.parametrize(("ends_in", "wanted"), [("softmax", "sigmoid"), ("sigmoid", "softmax")])
def test_an_output_that_the_network_does_not_end_in_is_refused_in_one_line(ends_in, wanted):
    end = nn.Softmax(1) if ends_in == "softmax" else nn.Sigmoid()
    model = nn.Sequential(conv(), nn.Flatten(), nn.Linear(64, 3), end)
    with pytest.raises(DgnError, match=f"Sequential ends in {ends_in}, but output is '{wanted}': expected") as caught:
        layers(model, output=wanted)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("of", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_layers_with_calculated_weights_are_layers_like_others(of):
    found = layers(nn.Sequential(of(conv()), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), of(nn.Linear(4, 3))))
    assert (list(found.units), found.class_layer, found.filter_layers) == (["0", "1", "2", "3", "4"], "4", ("0",))


def test_each_call_of_a_module_is_a_layer():
    def run(s, x):
        x = s.relu(s.conv(s.stem(x)))
        return s.fc(s.relu(s.conv(x)).mean((2, 3)))

    found = layers(Own(run, stem=conv(), conv=nn.Conv2d(4, 4, 1), relu=nn.ReLU(inplace=True), fc=nn.Linear(4, 3)))
    assert list(found.units) == ["stem", "conv@1", "relu@1", "conv@2", "relu@2", "fc"]
    assert found.filter_layers == ("stem", "conv@1", "conv@2")
    assert [found.module_of(layer) for layer in ("conv@2", "fc")] == [("conv", 1), ("fc", 0)]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("after", "norms"),
    [
        (lambda relu: [nn.BatchNorm2d(4), relu], {"0": "1"}),
        (lambda relu: [nn.Identity(), nn.GroupNorm(2, 4), relu], {"0": "2"}),
        (lambda relu: [relu, nn.BatchNorm2d(4)], {}),  # after the ReLU, in the tensor itself or not
        (lambda relu: [relu], {}),
    ],
)
def test_filters_are_what_a_norm_passes_on(after, norms, inplace):
    found = layers(nn.Sequential(
        conv(), *after(nn.ReLU(inplace)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ))  # fmt: skip
    assert found.norms == norms
    assert found.filter_layers == (norms.get("0", "0"),)
    for spec, layer in (("filters:0:1", norms.get("0", "0")), ("raw:0:1", "0")):
        assert [t.layer for block in parse_targets([spec], found, None) for t in block] == [layer]


def test_timms_norms_that_end_in_their_activation_count_before_it():
    found = network_named("timm:regnetx_002").layers
    assert found.norms["stem.conv"] == "stem.bn.drop"
    assert found.filter_layers[0] == "stem.bn.drop"
    assert found.units["stem.bn.drop"] == found.units["stem.conv"] == 32


@pytest.mark.parametrize(
    ("model", "settings", "num_channels"),
    [
        (Plain(1), {}, 1),
        (Plain(3), {"mean": (0.1, 0.2, 0.3)}, 3),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)), {}, 3),
        (nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 2)), {}, 1),
        (nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 4, 3)), {}, 3),
        (nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(16, 4, 3)), {}, 1),
        (Own(lambda s, x: s.head(s.stem(x)), head=nn.Conv2d(8, 2, 1), stem=conv(8)), {}, 3),  # the head first
    ],
)
def test_how_many_channels_a_picture_has(model, settings, num_channels):
    assert layers(model, **settings).num_channels == num_channels


@pytest.mark.parametrize(
    ("model", "settings", "says"),
    [
        (Plain(4), {}, "Plain reads pictures of 4 channels: expected 3 .colour. or 1 .grey."),
        (Plain(1), {"std": (0.1, 0.2, 0.3)}, "Plain reads grey pictures, of 1 channel: expected one mean and one std"),
        (nn.Sequential(conv(), nn.Flatten(), nn.Linear(5, 2)), {}, "not run on 3 x 32 x 32 pictures .*--input-size"),
    ],
)  # fmt: skip
def test_pictures_that_dgn_cannot_make_are_refused_in_one_line(model, settings, says):
    with pytest.raises(DgnError, match=says) as caught:
        layers(model, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_of_another_precision_is_traced(dtype):
    model = Plain().to(dtype)
    assert layers(model).units == {"conv": 6, "norm": 6, "relu": 6, "fc": 3}
    assert model.fc.weight.dtype == dtype


def test_a_network_that_looks_at_values_is_run_on_zeros():
    def run(s, x):
        x = pooled(s, x)
        return s.a(x) if x.sum() >= 0 else s.b(x)

    found = layers(heads(run))
    assert (found.class_layer, found.num_classes, found.is_symbolic) == ("a", 3, False)


def test_a_backbones_features_have_no_probabilities():
    found = network_named("timm:eva02_tiny_patch14_224").layers
    assert found.output == "none"
    assert network_named("timm:test_vit").layers.output == "softmax"
    assert found.labels == ()
