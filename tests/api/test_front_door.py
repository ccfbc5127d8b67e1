"""The names of `import dgn`."""

import inspect

import dgn


def test_sixteen_documented_names():
    assert len(dgn.__all__) == 16
    for name in dgn.__all__:
        value = getattr(dgn, name)
        assert inspect.getdoc(value), name
        assert name in dir(dgn)


def test_public_methods_are_documented():
    for owner in (dgn.Picture, dgn.Pictures, dgn.OpenRun, dgn.Layers, dgn.Network):
        for name, member in vars(owner).items():
            if not name.startswith("_") and callable(getattr(member, "__func__", member)):
                assert inspect.getdoc(member), f"{owner.__name__}.{name}"


def test_layers_of_a_network():
    layers = dgn.layers("vgg16")
    assert (layers.class_layer, len(layers.labels), layers.units["conv5_3"]) == ("fc8", 1000, 512)
    assert "vgg16" in dgn.known_networks()
