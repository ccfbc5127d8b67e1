"""Where a layer's units are: followed through functions, and never rows or columns of a map."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgn.networks.channels import ChannelTrails
from dgn.networks.registry import network_named
from tests.helpers.own_networks import Own, conv, layers


def axis_after(run):
    """Axis of the channels after a function of a (2, 6, 4, 5) map with channels in axis 1; None if unknown."""
    with ChannelTrails() as trails:
        made = run(F.conv2d(torch.empty(2, 3, 4, 5, device="meta"), torch.empty(6, 3, 1, 1, device="meta")))
    trail = trails.of(made)
    return trail and trail.axis


def meta(*shape):
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize(
    ("run", "axis"),
    [
        (lambda x: x.relu() + 1, 1),
        (lambda x: x.permute(0, 2, 3, 1), 3),
        (lambda x: x.permute((0, 2, 3, 1)), 3),
        (lambda x: x.permute(dims=(0, 2, 3, 1)), 3),
        (lambda x: torch.permute(input=x, dims=(0, 2, 3, 1)), 3),
        (lambda x: x.permute(0, -1, 1, 2), 2),
        (lambda x: x.transpose(1, 3), 3),
        (lambda x: x.transpose(dim0=-1, dim1=1), 3),
        (lambda x: torch.transpose(input=x, dim0=1, dim1=2), 2),
        (lambda x: x.swapaxes(1, 2).swapaxes(0, 3), 2),
        (lambda x: x.movedim(1, -1), 3),
        (lambda x: torch.moveaxis(x, 1, 2), 2),
        (lambda x: x.flatten(2), 1),
        (lambda x: x.flatten(2).transpose(1, 2), 2),
        (lambda x: x.flatten(2).mT, 2),
        (lambda x: x.flatten(2).transpose_(1, 2), 2),
        (lambda x: x.reshape(2, 6, 20).permute(2, 0, 1), 2),
        (lambda x: x.permute(0, 2, 3, 1).reshape(2, 20, 6), 2),
        (lambda x: x.permute(0, 2, 3, 1).reshape(2, 2, 2, 5, 6), 4),
        (lambda x: x.permute(0, 2, 3, 1).reshape(2, 20, 6).transpose(1, 2).reshape(2, 6, 4, 5), 1),
        (lambda x: x.mean((2, 3)), 1),
        (lambda x: x.mean((2, 3)).T, 0),
        (lambda x: x.mean((2, 3))[:, :, None, None], 1),
        (lambda x: x.permute(0, 2, 3, 1).mean((1, 2)), 1),
        (lambda x: x.flatten(2).mT[:, 0], 1),
        (lambda x: torch.cat([x, x], 1), 1),
        (lambda x: torch.cat([x.flatten(2).mT, x.flatten(2).mT], 1), 2),
        (lambda x: x.chunk(2, 1)[1], 1),
        (lambda x: F.interpolate(x, scale_factor=2), 1),
        (lambda x: F.linear(x.flatten(2).mT, meta(7, 6)), 2),
        (lambda x: F.linear(x.flatten(2), meta(7, 20)), 1),  # over positions, as in MLP-Mixer
        (lambda x: F.layer_norm(x, (6, 4, 5)), 1),
        (lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (6,)), 3),
        (lambda x: x.flatten(2).mT @ meta(6, 7), 2),
        (lambda x: meta(9, 20) @ x.flatten(2).mT, 2),  # tokens mixed, channels as they were
        (lambda x: meta(9, 6) @ x.flatten(2), 1),
        (lambda x: x.flatten(2) @ meta(20, 9), 1),
        (lambda x: torch.einsum("nchw,oc->nohw", x, meta(7, 6)), None),
        (lambda x: x.reshape(2, 2, 3, 4, 5).transpose(1, 2), None),  # channels in two axes
        (lambda x: x.flatten(2).mT @ x.flatten(2), None),  # attention: positions by positions
        (lambda x: x.reshape(2, 20, 6), None),  # the same values in another order
        (lambda x: x.sum(), None),
    ],
)
def test_functions_move_the_axis_or_leave_it(run, axis):
    assert axis_after(run) == axis


def test_square_maps_are_told_apart_by_what_happened_to_them():
    """As many channels as rows, columns and tokens: shapes say nothing."""
    with ChannelTrails() as trails:
        x = F.conv2d(meta(2, 3, 4, 4), meta(4, 3, 1, 1))
        axes = [trails.of(y).axis for y in (x, x.permute(0, 2, 3, 1), x.transpose(1, 2), x.movedim(1, 3))]
        tokens = F.conv1d(meta(2, 3, 4), meta(4, 3, 1))
        axes += [trails.of(y).axis for y in (tokens, tokens.mT, tokens.mT.relu(), tokens.mT.mT)]
    assert axes == [1, 3, 2, 3, 1, 2, 2, 1]


@pytest.mark.parametrize(
    ("run", "layer", "probability"),
    [
        (lambda x: x.softmax(1), "fc", "softmax"),
        (lambda x: torch.sigmoid(x), "fc", "sigmoid"),
        (lambda x: x.sigmoid_(), "fc", "sigmoid"),
        (lambda x: F.log_softmax(x, 1), "fc", None),
        (lambda x: x.softmax(1).log(), "fc", None),
        (lambda x: F.log_softmax(x, 1).exp(), "fc", "softmax"),
        (lambda x: F.logsigmoid(x)[:, None].exp().squeeze(1), "fc", "sigmoid"),
        (lambda x: x.softmax(1).log().exp(), "fc", "softmax"),
        (lambda x: (F.log_softmax(x, 1) / 2).exp(), "fc", None),
        (lambda x: torch.stack([F.log_softmax(x, 1), F.log_softmax(x, 1)]).mean(0).exp(), None, None),
        (lambda x: x.softmax(1).exp(), "fc", None),
        (lambda x: x.sigmoid().tanh(), "fc", None),
        (lambda x: x.sigmoid() * 5, "fc", None),
        (lambda x: 5 * x.sigmoid() / 5, "fc", "sigmoid"),
        (lambda x: x.sigmoid() * torch.ones(3, device="meta"), None, None),
        (lambda x: x.softmax(1) + 1, None, None),
        (lambda x: x.softmax(1) + x.flip(1).softmax(1), None, None),
        (lambda x: sum([x.softmax(1), x.softmax(1)]) / 2, None, "softmax"),
        (lambda x: 0.25 * x.softmax(1) + x.softmax(1) * 0.75, None, "softmax"),
        (lambda x: torch.stack([x.softmax(1), x.softmax(1)]).mean(0), None, "softmax"),
        (lambda x: 1 - x.softmax(1), None, None),
        (lambda x: 2 - x.sigmoid(), None, None),
        (lambda x: torch.cat([1 - x.sigmoid(), x.sigmoid()], 1), None, "sigmoid"),
        (lambda x: x.softmax(1)[:, [2, 0, 1]], None, "softmax"),
        (lambda x: x.softmax(1).cumsum(1), None, None),
        (lambda x: x.sigmoid() * x[:, :1].sigmoid(), None, "sigmoid"),
        (lambda x: x.softmax(1).clamp(1e-6, 1)[:, :], "fc", "softmax"),
        (lambda x: x / 2, "fc", None),
        (lambda x: 3 * x, "fc", None),
        (lambda x: x / -2, None, None),
        (lambda x: torch.div(2, x), None, None),
        (lambda x: -x, None, None),
        (lambda x: 1 - x.sigmoid(), None, "sigmoid"),
        (lambda x: x.flip(1), None, None),
        (lambda x: x.roll(1, 1), None, None),
        (lambda x: x[:, [2, 0, 1]], None, None),
        (lambda x: x.sort(1).values, None, None),
        (lambda x: x.cumsum(1), None, None),
        (lambda x: x[:, :2], None, None),
        (lambda x: torch.cat([x, x], 1), None, None),
        (lambda x: (x.softmax(1) + x.flip(1).softmax(1)) / 2, None, "softmax"),
        (lambda x: x * x.sigmoid(), None, None),
        (lambda x: x[:, 0].sigmoid(), "fc", "sigmoid"),
    ],
)
def test_units_stay_a_layers_as_long_as_each_changes_by_itself(run, layer, probability):
    fc = nn.Linear(6, 3, device="meta")
    with ChannelTrails() as trails:
        x = fc(meta(2, 6))
        trails.start(x, trails.of(x).__class__(1, "fc"))
        trail = trails.of(run(x))
    assert (trail.layer, trail.probability) == (layer, probability)


def test_tokens_mixed_by_a_linear_layer_keep_their_channels():
    mixer = Own(
        lambda s, x: s.head((lambda t: t + s.tokens(t.mT).mT)(s.norm(s.stem(x).flatten(2).mT)).mean(1)),
        stem=conv(6), norm=nn.LayerNorm(6), tokens=nn.Sequential(nn.Linear(16, 9), nn.GELU(), nn.Linear(9, 16)),
        head=nn.Linear(6, 5),
    )  # fmt: skip
    found = layers(mixer)
    assert found.units == {"stem": 6, "norm": 6, "tokens.0": 6, "tokens.1": 6, "tokens.2": 6, "tokens": 6, "head": 5}
    assert found.axes == {"stem": 1, "norm": 2, "tokens.0": 1, "tokens.1": 1, "tokens.2": 1, "tokens": 1, "head": 1}


def test_rows_that_are_not_pictures_are_left_out():
    """Windows of a map, and tokens before pictures."""

    def run(s, x):
        x = s.stem(x).permute(0, 2, 3, 1)
        windows = x.reshape(-1, 2, 2, 2, 2, 6).transpose(2, 3).reshape(-1, 4, 6)
        x = s.back(s.inner(windows).reshape(-1, 2, 2, 2, 2, 6).transpose(2, 3).reshape(-1, 4, 4, 6))
        first = s.first(x.flatten(1, 2).transpose(0, 1))
        return s.head(first.mean(0))

    found = layers(Own(
        run, stem=conv(6), inner=nn.Linear(6, 6), back=nn.LayerNorm(6), first=nn.Linear(6, 6), head=nn.Linear(6, 5)
    ))  # fmt: skip
    assert found.units == {"stem": 6, "back": 6, "head": 5}
    assert found.axes == {"stem": 1, "back": 3, "head": 1}


def test_layers_that_see_no_picture_are_left_out():
    """Positions, made anew for each batch. What pictures are written into is not constant."""

    def run(s, x):
        positions = s.positions(torch.arange(16.0, device=x.device).reshape(1, 1, 4, 4).repeat(len(x), 1, 1, 1))
        padded = torch.zeros(len(x), 3, 36, 36, device=x.device)
        padded[:, :, 2:-2, 2:-2] = x
        copied = torch.zeros(len(x), 3, 32, 32, device=x.device)
        copied[:, :2].copy_(x[:, :2])
        return s.fc((s.stem(padded) + s.copied(copied) + positions).mean((2, 3)))

    found = layers(Own(run, positions=nn.Conv2d(1, 4, 1), stem=conv(), copied=conv(), fc=nn.Linear(4, 3)))
    assert list(found.units) == ["stem", "copied", "fc"]
    assert found.filter_layers == ("stem", "copied")


@pytest.mark.parametrize(
    ("name", "some"),
    [
        ("convnext_tiny", {
            "features.1.0": (1, 96), "features.1.0.block.2": (3, 96), "features.1.0.block.3": (3, 384),
        }),
        ("swin_t", {"features.0": (3, 96), "features.1.0": (3, 96), "features.2.reduction": (3, 192)}),
        ("vit_b_32", {
            "conv_proj": (1, 768), "encoder.layers.encoder_layer_0.mlp.0": (2, 3072), "heads.head": (1, 1000),
        }),
        ("timm:mixer_s32_224", {
            "stem": (2, 512), "blocks.0.mlp_tokens.fc1": (1, 512), "blocks.0.mlp_channels.fc1": (2, 2048),
        }),
        ("timm:test_vit", {"patch_embed": (3, 64), "norm": (2, 64), "blocks.0.attn.qkv": (2, 192), "head": (1, 1000)}),
        ("timm:convnext_atto", {"stages.0.blocks.0.mlp.fc1": (1, 160), "head.fc": (1, 1000)}),
    ],
)  # fmt: skip
def test_channels_of_published_networks(name, some):
    found = network_named(name).layers
    assert {layer: (found.axes[layer], found.units[layer]) for layer in some} == some
    side = network_named(name).size
    assert side not in found.units.values()


def test_a_classifier_of_swins_windows_has_no_layer_inside_of_them():
    found = network_named("timm:swin_tiny_patch4_window7_224").layers
    assert not [layer for layer in found.units if layer.startswith("layers.0.") and ".attn." in layer]
    assert [layer for layer in found.units if layer.startswith("layers.3.") and ".attn.qkv" in layer]  # one window
