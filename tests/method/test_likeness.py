"""The distances that the standard recipe's decoder is trained by."""

import pytest
import torch

from dgn.errors import DgnError
from dgn.method.likeness import FEATURES, PYRAMID, TEXTURES, Likeness, _features, _pyramid, _textures
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import network_named
from dgn.networks.weights import load_weights

PX = 96


@pytest.fixture(scope="module")
def likeness():
    network = FrozenNetwork(load_weights(network_named("vgg16-mini")))
    return Likeness(network, network.layers.filter_layers, PX)


@pytest.fixture(scope="module")
def pictures():
    stream = torch.Generator().manual_seed(0)
    small = torch.randn(2, 3, 12, 12, generator=stream)
    return torch.nn.functional.interpolate(small, size=(PX, PX), mode="bicubic", align_corners=False)


def test_the_deepest_layer_of_each_size(likeness):
    assert likeness.layers == ["conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"]


def test_a_step_against_the_gradient_brings_the_pictures_closer(likeness, pictures):
    blurred = torch.nn.functional.avg_pool2d(pictures, 9, stride=1, padding=4)
    gradient = likeness.gradient(blurred, pictures)
    assert gradient.shape == pictures.shape
    assert 0 < gradient.norm() <= FEATURES + TEXTURES + PYRAMID + 1e-5
    nearer = blurred - 2 * gradient / gradient.abs().max() * 0.01

    def distance(drawn):
        found, wanted = (likeness.network.responses(each, likeness.layers) for each in (drawn, pictures))
        return sum(_features(found[layer], wanted[layer]).item() for layer in likeness.layers)

    with torch.no_grad():
        assert distance(nearer) < distance(blurred)
        assert _pyramid(nearer - pictures) < _pyramid(blurred - pictures)


def test_distances_are_what_their_formulas_say():
    stream = torch.Generator().manual_seed(3)
    one, other = torch.randn(2, 2, 5, 4, 6, generator=stream)
    expected = 0.0
    for n in range(2):
        for y in range(4):
            for x in range(6):
                a, b = one[n, :, y, x], other[n, :, y, x]
                expected += ((a / (a.square().sum() + 1e-4).sqrt() - b / (b.square().sum() + 1e-4).sqrt()) ** 2).sum()
    torch.testing.assert_close(_features(one, other), expected / 48)
    expected = 0.0
    for n in range(2):
        grams = [sum(torch.outer(m[n, :, y, x], m[n, :, y, x]) for y in range(4) for x in range(6)) / 24
                 for m in (one, other)]  # fmt: skip
        expected += (grams[0] - grams[1]).square().sum() / (grams[1].square().sum() + 1e-6) / 2
    torch.testing.assert_close(_textures(one, other), expected)
    assert _pyramid(torch.full((1, 3, 16, 16), 0.5)) == pytest.approx(8 * 0.5)


def test_a_network_that_does_not_read_crops_is_refused():
    network = FrozenNetwork(load_weights(network_named("vgg16-mini")))
    with pytest.raises(DgnError, match="has no layers with maps"):
        Likeness(network, ("fc8",), 224)
