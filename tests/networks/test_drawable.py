"""Networks that cannot draw, in a precision or at all, are refused before they do."""

import logging
from functools import partial

import pytest
import torch
from torch import nn

from dgn.errors import DgnError
from dgn.networks.drawable import drawable, without_weights
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.weights import load_weights
from tests.helpers.own_networks import Own, conv, network, seeded


@torch.no_grad()
def without_gradients(s, x):
    x = s.stem(x).relu().mean((2, 3))
    return s.fc(x if x.sum() < 1e9 else -x)  # code that cannot be traced: a graph has gradients in any case


@torch.inference_mode()
def inferring(s, x):
    return s.fc(s.stem(x).relu().mean((2, 3)))


def detached(s, x):
    return s.fc(s.stem(x).relu().mean((2, 3)).detach())


def in_float32(s, x):
    return s.fc(s.stem(x.float()).mean((2, 3)))


def distances(s, x):
    """Which no device calculates in bfloat16."""
    return -torch.cdist(s.fc(s.stem(x).relu().mean((2, 3))), torch.eye(3, dtype=x.dtype, device=x.device))


def made(run):
    return network(seeded(Own(run, stem=conv(), fc=nn.Linear(4, 3))), name="own")


def loaders(described):
    return partial(FrozenNetwork, load_weights(described), None), partial(without_weights, described)


UNDRAWABLE = {
    "no_grad": (without_gradients, "fc"),
    "detach": (detached, "fc"),
    "bytes": (lambda s, x: s.fc(s.stem(x.byte().to(x.dtype)).mean((2, 3))), "fc"),
    "argmax": (lambda s, x: s.fc(s.stem(x).mean((2, 3))).argmax(1), "output"),
}


@pytest.mark.parametrize("name", UNDRAWABLE)
def test_a_network_without_gradients_is_refused_in_one_line(name):
    run, layer = UNDRAWABLE[name]
    described = made(run)
    assert described.layers.class_layer == layer
    for load in loaders(described):
        with pytest.raises(DgnError, match=f"own passes no gradient from {layer} to its pictures: exp") as caught:
            drawable(load, [layer], torch.float32)
        assert "\n" not in str(caught.value)


def test_layers_before_a_detached_one_can_be_drawn():
    for load in loaders(made(detached)):
        assert drawable(load, ["stem"], torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    "run",
    [
        inferring,  # whose graph has gradients
        lambda s, x: -s.fc(s.stem(x).mean((2, 3)))[:, 0],  # one number per picture, which no layer returns
        lambda s, x: (s.fc(s.stem(x).mean((2, 3))).sigmoid().mul_(2),),
    ],
)
def test_networks_that_can_draw(run):
    described = made(run)
    for load in loaders(described):
        drawable(load, [described.layers.class_layer], torch.float32)


def test_what_fails_on_the_way_back_is_refused():
    """An in-place function that overwrites what the gradient needs."""
    described = made(lambda s, x: s.fc(s.stem(x).mean((2, 3))).sigmoid().exp().mul_(2))
    with pytest.raises(DgnError, match=r"own does not run on 1 picture of 32 x 32 px in float32 .*inplace"):
        drawable(loaders(described)[0], ["output"], torch.float32)


@pytest.mark.parametrize("run", [in_float32, distances])
def test_a_network_that_does_not_run_in_bfloat16_is_refused_or_runs_in_float32(run, caplog):
    described = made(run)
    load, _ = loaders(described)
    layers = [described.layers.class_layer]
    with pytest.raises(DgnError, match=r"own does not run on 1 .* in bfloat16 .*; try --precision float32") as caught:
        drawable(load, layers, torch.bfloat16)
    assert "\n" not in str(caught.value)
    with caplog.at_level(logging.INFO, "dgn"):
        assert drawable(load, layers, torch.bfloat16, or_float32=True).dtype == torch.float32
    [line] = [line for line in caplog.messages if "bfloat16" in line]
    assert line.startswith("own does not run in bfloat16 (")
    assert line.endswith("): it runs in float32")


def test_what_does_not_run_in_float32_either_is_not_said_to(caplog):
    load, _ = loaders(made(detached))
    with caplog.at_level(logging.INFO, "dgn"), pytest.raises(DgnError, match="passes no gradient"):
        drawable(load, ["fc"], torch.bfloat16, or_float32=True)
    assert not caplog.messages
