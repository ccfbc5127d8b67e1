"""Layers, units and labels of networks, found without weights."""

import pytest

from dgn.errors import DgnError
from dgn.networks.tracing import layers_of


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
def test_layers_of_torchvisions_networks(network, class_layer, num_filter_layers):
    found = layers_of(network)
    assert found.class_layer == class_layer
    assert len(found.filter_layers) == num_filter_layers
    assert len(found.labels) == found.units[class_layer] == 1000


def test_unknown_network():
    with pytest.raises(DgnError, match="unknown network 'vgg17': did you mean vgg1"):
        layers_of("vgg17")
