"""The frozen network: its responses against the plain module, its preprocessing against one written by hand."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgn.errors import DgnError
from dgn.networks.cuts import Watched
from tests.helpers.own_networks import Own, Plain, conv, frozen, pictures, seeded


def test_it_runs_only_as_deep_as_needed(mini):
    cut = mini.cut_behind(("conv2_1",))
    assert sum(isinstance(m, torch.nn.Conv2d) for m in cut.modules()) == 3


def test_responses_are_taken_before_the_relu_and_equal_the_hooked_ones(mini):
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for layer in ("conv3_3", "fc6", "fc8"):
        response = mini.responses(images, [layer])[layer]
        hooked, _ = mini.scores(images, layer)
        torch.testing.assert_close(response, hooked, rtol=1e-4, atol=1e-4)
        assert response.min() < 0


def test_it_learns_nothing(mini):
    assert not any(p.requires_grad for p in mini.model.parameters())
    assert not mini.model.training


def by_hand(model, images, layers):
    """What the module itself gives for pictures that it can read: outputs of `NAME` or of its call `NAME@CALL`."""
    seen = {}

    def keep(name):
        return lambda module, inputs, output: seen.setdefault(name, []).append(output.clone())

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(keep(name)) for name in {one.partition("@")[0] for one in layers}]
    with torch.no_grad():
        output = model(images)
    for handle in handles:
        handle.remove()
    return {one: seen[one.partition("@")[0]][int(one.partition("@")[2] or 1) - 1] for one in layers}, output


def gradient(network, images, layer):
    images = images.clone().requires_grad_()
    response = network.responses(images, [layer])[layer]
    weighting = torch.arange(1, 1 + response[0].numel(), dtype=response.dtype).reshape(response[0].shape)
    return torch.autograd.grad((response * weighting).sum(), images)[0]


def reused(s, x):
    x = s.relu(s.conv(s.stem(x)))
    return s.fc(s.relu(s.conv(x)).mean((2, 3)))


def channels_last(s, x):
    x = s.stem(x).permute(0, 2, 3, 1)
    return s.fc(s.act(s.up(s.norm(x))).mean((1, 2)))


def tokens(s, x):
    x = s.stem(x).flatten(2).transpose(1, 2)
    return s.fc(s.act(s.up(s.norm(x)))[:, 0])


def overwritten(s, x):
    x = s.stem(x)
    F.relu_(x)
    x = s.up(x)
    x += 1
    return s.fc(x.mean((2, 3)))


def written_over(s, x):
    x -= 0.5
    return s.fc(s.stem(x.mul_(2)).relu().mean((2, 3)))


def undecided(s, x):
    x = s.stem(x)
    return s.fc((x if x.mean() > 0 else -x).relu().mean((2, 3)))


def baked(s, x):
    """For symbols in place of tensors `isinstance` is false: tracing takes the other way."""
    x = s.stem(x)
    return s.fc((x.relu() if isinstance(x, torch.Tensor) else x).mean((2, 3)))


NETWORKS = {
    "a plain one": (lambda s, x: s.fc(F.relu(s.norm(s.stem(x))).mean((2, 3))), {"norm": nn.BatchNorm2d(4)}),
    "modules used twice": (reused, {"conv": nn.Conv2d(4, 4, 1), "relu": nn.ReLU(inplace=True)}),
    "channels last": (channels_last, {"norm": nn.LayerNorm(4), "up": nn.Linear(4, 4), "act": nn.GELU()}),
    "tokens": (tokens, {"norm": nn.LayerNorm(4), "up": nn.Linear(4, 4), "act": nn.GELU()}),
    "layers overwritten in place": (overwritten, {"up": nn.Conv2d(4, 4, 1)}),
    "pictures written over": (written_over, {}),
    "a way chosen by values": (undecided, {}),
    "a way chosen by types": (baked, {}),
}


def made(name):
    run, modules = NETWORKS[name]
    return seeded(Own(run, stem=conv(), fc=nn.Linear(4, 3), **modules))


@pytest.mark.parametrize("name", NETWORKS)
def test_responses_are_those_of_the_plain_module(name):
    model = made(name)
    network = frozen(model)
    images = pictures(3)
    layers = list(network.units)
    expected, output = by_hand(model, (images - 0.5) / 0.25, layers)
    together = network.responses(images, layers)
    for layer in layers:
        axis = network.layers.axes[layer]
        want = expected[layer].movedim(axis, 1)
        assert want.shape[1] == network.units[layer]
        for got in (together[layer], network.responses(images, [layer])[layer]):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        scored, values = network.scores(images, layer)
        torch.testing.assert_close(scored, want, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(values, output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "is_traced"),
    [("a plain one", True), ("modules used twice", True), ("pictures written over", True),
     ("a way chosen by values", False), ("a way chosen by types", False)],
)  # fmt: skip
def test_a_graph_that_does_not_answer_as_the_network_is_not_used(name, is_traced, caplog):
    with caplog.at_level(logging.INFO, "dgn"):
        network = frozen(made(name))
        assert isinstance(network.cut_behind(("fc",)), Watched) is not is_traced
    assert any("cannot be traced to fc" in line for line in caplog.messages) is not is_traced


def nearly_right(s, x):
    """Tracing takes a way that changes a little."""
    x = s.stem(x).relu()
    return s.fc((x if isinstance(x, torch.Tensor) else 1.1 * x).mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_hides_no_graph_that_answers_differently(dtype):
    right, wrong = (Own(run, stem=conv(), fc=nn.Linear(4, 3)) for run in (NETWORKS["a plain one"][0], nearly_right))
    right.norm = nn.BatchNorm2d(4)
    for model, is_traced in ((right, True), (wrong, False)):
        cut = frozen(seeded(model), dtype=dtype).cut_behind(("fc",))
        assert isinstance(cut, Watched) is not is_traced


@pytest.mark.parametrize("is_coupled", [False, True])
def test_a_network_may_write_into_its_pictures(is_coupled):
    norm = nn.BatchNorm2d(4, track_running_stats=not is_coupled)
    over, apart = (
        seeded(Own(lambda s, x, change=change: s.fc(s.norm(s.stem(change(x))).relu().mean((2, 3))),
                   stem=conv(), norm=norm, fc=nn.Linear(4, 3)))
        for change in (lambda x: x.sub_(0.5).mul_(2), lambda x: (x - 0.5) * 2)
    )  # fmt: skip
    images = pictures(3)
    expected, got = (frozen(model) for model in (apart, over))
    assert got.is_coupled is is_coupled
    torch.testing.assert_close(gradient(got, images, "fc"), gradient(expected, images, "fc"))
    torch.testing.assert_close(got.scores(images, "fc"), expected.scores(images, "fc"))
    assert torch.equal(images, pictures(3))


PREPROCESSING = {
    "one number": ({"mean": 0.4, "std": 0.2}, lambda x: (x - 0.4) / 0.2),
    "one per channel": (
        {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 1)},
        lambda x: torch.stack([(x[:, 0] - 0.1) / 0.5, (x[:, 1] - 0.2) / 0.25, x[:, 2] - 0.3], 1),
    ),
    "blue first": (  # Caffe's: numbers in the network's order, white is 255
        {"mean": (103.9, 116.8, 123.7), "std": 1, "channel_order": "BGR", "value_range": 255},
        lambda x: torch.stack([255 * x[:, 2] - 103.9, 255 * x[:, 1] - 116.8, 255 * x[:, 0] - 123.7], 1),
    ),
    "up to 255": ({"mean": 127, "std": 128, "value_range": 255.0}, lambda x: (255 * x - 127) / 128),
    "larger pictures": ({"mean": 0, "std": 1, "size": 48}, lambda x: x),
}


@pytest.mark.parametrize("name", PREPROCESSING)
def test_preprocessing_is_what_the_network_was_described_with(name):
    settings, expected = PREPROCESSING[name]
    model = seeded(Plain())
    network = frozen(model, **settings)
    images = pictures(2, settings.get("size", 32))
    want, output = by_hand(model, expected(images), ["conv"])
    torch.testing.assert_close(network.responses(images, ["conv"])["conv"], want["conv"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network.scores(images, "fc")[1], output, rtol=1e-4, atol=1e-4)


def test_grey_networks_see_the_brightness_of_a_picture():
    model = seeded(Plain(1))
    network = frozen(model, mean=0.3, std=0.5)
    level = torch.linspace(0.1, 0.9, 32).expand(2, 1, 32, 32)
    want, _ = by_hand(model, (level - 0.3) / 0.5, ["conv"])
    got = network.responses(level.expand(2, 3, 32, 32), ["conv"])["conv"]
    torch.testing.assert_close(got, want["conv"], rtol=1e-4, atol=1e-5)
    assert network.is_grey


def test_pictures_of_another_size_are_scored_at_the_networks():
    model = seeded(Plain())
    network = frozen(model, mean=0, std=1)
    level = torch.full((1, 3, 96, 96), 0.7)
    want, _ = by_hand(model, torch.full((1, 3, 32, 32), 0.7), ["conv"])
    torch.testing.assert_close(network.scores(level, "conv")[0], want["conv"], rtol=1e-4, atol=1e-5)


def test_classes_can_be_sought_at_half_size_where_the_network_reads_it():
    pooled = frozen(seeded(Plain()), size=200)
    assert pooled.half_px(["fc"]) == 100
    assert pooled.half_px(["conv"]) is None, "a filter's pattern would be drawn at twice its scale"
    assert frozen(seeded(Plain()), size=190).half_px(["fc"]) is None, "things would be too small"
    as_map = Own(lambda s, x: s.fc(s.conv(x)).mean((2, 3)), conv=conv(6), fc=nn.Conv2d(6, 3, 1))
    assert frozen(seeded(as_map), size=200, class_layer="fc").half_px(["fc"]) == 100, "as SqueezeNet's classes"
    assert frozen(seeded(Plain(1)), size=448).half_px(["fc"]) == 224
    fixed = Own(lambda s, x: s.fc(s.conv(x).flatten(1)), conv=conv(2), fc=nn.Linear(2 * 25 * 25, 3))
    assert frozen(seeded(fixed), size=200).half_px(["fc"]) is None, "its head has a weight for each place"
    by_places = frozen(seeded(Own(lambda s, x: s.conv(x).flatten(2).mean(1), conv=conv(2))), size=200)
    assert by_places.half_px([by_places.layers.class_layer]) is None, "fewer classes"


COUPLED = {
    "batch norm without running statistics": nn.BatchNorm2d(4, track_running_stats=False),
    "what looks across pictures": Own(lambda s, x: x - x.mean(0, keepdim=True)),
}


@pytest.mark.parametrize("name", COUPLED)
def test_pictures_that_would_change_each_other_are_seen_one_by_one(name):
    model = seeded(nn.Sequential(conv(), COUPLED[name], nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)))
    network = frozen(model)
    assert network.is_coupled
    assert "lets the pictures of a batch change each other" in network.remark
    images = pictures(3)
    together = network.responses(images, ["1", "4"]) if "1" in network.units else network.responses(images, ["4"])
    for layer, response in together.items():
        for n, image in enumerate(images):
            alone, _ = by_hand(model, (image[None] - 0.5) / 0.25, [layer])
            torch.testing.assert_close(response[n], alone[layer][0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(network.scores(images, layer)[0][n], alone[layer][0], rtol=1e-4, atol=1e-5)
    gradients = gradient(network, images, "4")
    for n, image in enumerate(images):
        torch.testing.assert_close(gradients[n], gradient(network, image[None], "4")[0], rtol=1e-4, atol=1e-6)


def test_pictures_that_leave_each_other_alone_are_seen_together():
    assert not frozen(seeded(Plain())).is_coupled


def test_a_norm_that_needs_several_pictures_is_refused_in_one_line():
    model = nn.Sequential(conv(), nn.Flatten(), nn.BatchNorm1d(64, track_running_stats=False), nn.Linear(64, 3))
    with pytest.raises(DgnError, match=r"runs on several pictures and not on one .*more than 1 value") as caught:
        frozen(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "outputs",
    [
        lambda s, x: s.one(x.mean((2, 3))).squeeze(1),
        lambda s, x: (s.fc(x.mean((2, 3))), torch.ones(5, 4)),
        lambda s, x: (s.fc(x.mean((2, 3))), x.sum()),
        lambda s, x: x.mean(),
    ],
    ids=["a number per picture", "a table beside", "a number beside", "a number for all"],
)
def test_whatever_a_network_returns_its_filters_work(outputs):
    model = Own(lambda s, x: outputs(s, s.stem(x)), stem=conv(), one=nn.Linear(4, 1), fc=nn.Linear(4, 3))
    network = frozen(seeded(model))
    assert network.responses(pictures(2), ["stem"])["stem"].shape == (2, 4, 4, 4)
    values = network.scores(pictures(2), "stem")[1]
    assert values is None or values.shape == (2, network.layers.num_classes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_a_modules_weights_are_whole_here(dtype):
    model = seeded(Plain()).half()
    network = frozen(model, dtype)
    assert network.responses(pictures(2).to(dtype), ["fc"])["fc"].dtype == dtype
    want, _ = by_hand(model.float(), (pictures(2) - 0.5) / 0.25, ["fc"])
    torch.testing.assert_close(network.responses(pictures(2), ["fc"])["fc"].float(), want["fc"], rtol=1e-4, atol=1e-5)


class LeNet(nn.Module):
    """As people write it: `.view` takes a map in one memory order alone."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 5), nn.Linear(6 * 14 * 14, 4)

    def forward(self, x):
        return self.fc(torch.max_pool2d(self.conv(x).relu(), 2).view(x.size(0), -1))


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, 4)

    def forward(self, x):
        return self.fc(x.view(-1, 3 * 32 * 32))


@pytest.mark.parametrize("model", [LeNet(), Flat()])
def test_a_network_that_views_its_map_as_a_row_runs(model):
    network, images = frozen(seeded(model)), pictures(3)
    alone, output = by_hand(model, (images - 0.5) / 0.25, ["fc"])
    torch.testing.assert_close(network.responses(images, ["fc"])["fc"], alone["fc"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network.scores(images, "fc")[1], output, rtol=1e-4, atol=1e-4)
    assert frozen(seeded(model), dtype=torch.bfloat16).responses(images, ["fc"])["fc"].shape == (3, 4)


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_coupling_is_found_in_bfloat16_too(share):
    mixed = Own(
        lambda s, x: s.fc((y := s.conv(x).relu().mean((2, 3))) + share * y.mean(0)), conv=conv(), fc=nn.Linear(4, 3)
    )
    assert frozen(seeded(mixed), dtype=torch.bfloat16).is_coupled


def test_an_output_of_its_own_length_is_no_coupling_and_chance_is_told_apart():
    scaled = Own(lambda s, x: (s.fc(s.conv(x).mean((2, 3))), torch.ones(1)), conv=conv(), fc=nn.Linear(4, 3))
    assert not frozen(seeded(scaled), class_layer="fc").is_coupled
    random = Own(lambda s, x: s.fc(torch.dropout(s.conv(x).mean((2, 3)), 0.5, True)), conv=conv(), fc=nn.Linear(4, 3))
    torch.manual_seed(0)  # one time in sixteen, two runs leave the same channels out
    network = frozen(seeded(random))
    assert (network.is_coupled, network.is_random) == (False, True)
    assert "differently each time" in network.remark


def test_padding_of_the_pictures_own_shape():
    model = Own(lambda s, x: s.fc(torch.conv2d(x, s.conv.weight, None, 8, (x.shape[2] // 8, 0)).mean((2, 3))),
                conv=conv(), fc=nn.Linear(4, 3))  # fmt: skip
    network = frozen(seeded(model))
    images = pictures(2)
    alone, _ = by_hand(model, (images - 0.5) / 0.25, ["fc"])
    torch.testing.assert_close(network.responses(images, ["fc"])["fc"], alone["fc"], rtol=1e-4, atol=1e-4)


def test_the_networks_own_order_of_classes_is_that_of_its_rank():
    """A head whose classes are means of maps, without a ReLU."""
    model = seeded(Own(lambda s, x: s.head(s.conv(x).relu()).mean((2, 3)), conv=conv(), head=nn.Conv2d(4, 5, 1)))
    network, images = frozen(model), pictures(4)
    assert network.layers.class_layer == "output"
    response, values = network.scores(images, "output")
    assert torch.equal(response, values)
    assert torch.equal(values.argsort(1), by_hand(model, (images - 0.5) / 0.25, [])[1].argsort(1))
    torch.testing.assert_close(network.responses(images, ["output"])["output"], values, rtol=1e-4, atol=1e-4)
    assert type(network.cut_behind(("output",))).__name__ != "Watched", "traced like any other layer"
