"""Paths through a network: rank correlations, shares and deviations, against plain loops in float64."""

import itertools

import numpy as np
import pytest
import torch

from dgn.errors import DgnError
from dgn.networks.layers import Layers
from dgn.pictures.paths import RARELY, Paths, Reference, evenly, path_layers, ranked

LAYERS = {"first": 7, "second": 12}


def spearman(one, other):
    """Pearson's correlation of ranks; equal values share the mean of their places."""
    places = []
    for values in (one, other):
        order = sorted(values)
        places.append([1 + order.index(v) + (order.count(v) - 1) / 2 for v in values])
    a, b = (np.array(p, np.float64) - np.mean(p) for p in places)
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def drawn(seed, count):
    """Activations as networks have them: many are 0."""
    stream = np.random.default_rng(seed)
    return {name: stream.normal(size=(count, units)).clip(0).astype(np.float32) for name, units in LAYERS.items()}


@pytest.fixture(scope="module")
def activations():
    """The picture excites units twice as much as photographs do."""
    picture = {layer: 2 * values for layer, values in drawn(1, 1).items()}
    return {"picture": picture, "own": drawn(2, 9), "others": drawn(3, 6)}


@pytest.fixture(scope="module")
def reference(activations):
    return Reference(Paths.with_ranks(activations["own"]), Paths.with_ranks(activations["others"]))


def test_ranks_multiply_to_spearmans_correlation():
    values = drawn(0, 5)["second"]
    assert len(np.unique(values[0])) < values.shape[1]
    products = ranked(values) @ ranked(values).T
    for a, b in itertools.product(range(5), range(5)):
        assert products[a, b] == pytest.approx(spearman(values[a].tolist(), values[b].tolist()), abs=1e-6)
    assert (ranked(np.ones((1, 4), np.float32)) == 0).all()


def test_similarities_are_means_over_pairs(activations, reference):
    found = reference.similarity(Paths.with_ranks(activations["picture"]))
    for n, layer in enumerate(LAYERS):
        picture, own, others = (activations[name][layer].tolist() for name in ("picture", "own", "others"))
        same = [spearman(a, b) for a, b in itertools.combinations(own, 2)]
        assert found.picture[n] == pytest.approx(np.mean([spearman(picture[0], one) for one in own]), abs=1e-6)
        assert found.same[n] == pytest.approx(np.mean(same), abs=1e-6)
        other = [spearman(a, b) for a in own for b in others]
        assert found.other[n] == pytest.approx(np.mean(other), abs=1e-6)
    picture, same, other = (np.mean(one) for one in (found.picture, found.same, found.other))
    expected = (picture - other) / (same - other) if same > other else None
    assert found.normalised == (expected if expected is None else pytest.approx(expected, abs=1e-4))


def test_a_photograph_of_the_class_has_similarity_1_and_one_of_others_0():
    """Two kinds of photographs, with slight noise."""
    stream = np.random.default_rng(4)
    kinds = stream.normal(size=(2, 300))
    noisy = [(kind + 0.3 * stream.normal(size=(30, 300))).clip(0).astype(np.float32) for kind in kinds]
    own, others = (Paths.with_ranks({"only": one}) for one in noisy)
    reference = Reference(own.take(list(range(1, 30))), others)
    assert reference.similarity(own.take([0])).normalised == pytest.approx(1, abs=0.1)
    assert reference.similarity(others.take([0])).normalised == pytest.approx(0, abs=0.1)
    usual = [Reference(own.take([m for m in range(30) if m != n]), others).unusual(own.take([n])) for n in range(30)]
    assert reference.usual == pytest.approx(2 / 30, abs=1e-9)
    assert 0.04 < np.mean(usual) <= reference.usual, "less where units are silent on several photographs"
    assert reference.unusual(others.take([0])) > 0.2
    alike = Reference(own, own)
    assert alike.similarity(others.take([0])).same[0] < alike.similarity(own.take([0])).other[0]
    assert alike.similarity(own.take([0])).normalised is None


def test_units_that_stand_out(activations, reference):
    """The six of the most deviations, of those that at most 5 % of the class's photographs excite as much."""
    expected, num_rare = [], 0
    for layer, picture in activations["picture"].items():
        own, others = (activations[name][layer].astype(np.float64) for name in ("own", "others"))
        deviations = [np.concatenate([own[:, u], others[:, u]]).std() for u in range(LAYERS[layer])]
        for u in range(LAYERS[layer]):
            share = sum(value >= picture[0, u] for value in own[:, u]) / len(own)
            above = (picture[0, u] - own[:, u].mean()) / max(deviations[u], np.mean(deviations))
            num_rare += share <= RARELY
            if share <= RARELY and above > 0:
                share_of_others = sum(value >= picture[0, u] for value in others[:, u]) / len(others)
                strongest = [n for n in sorted(range(6), key=lambda n, u=u: -others[n, u])[:3] if others[n, u] > 0]
                expected.append((above, layer, u, share, share_of_others, strongest))
    found = reference.units(Paths.with_ranks(activations["picture"]))
    assert len(found) == min(6, len(expected)) > 2
    for unit, (above, *rest) in zip(found, sorted(expected, reverse=True)[:6], strict=True):
        assert [unit.layer, unit.unit, unit.share, unit.share_of_others, list(unit.photographs)] == rest
        assert unit.deviations == pytest.approx(above, rel=1e-5)
    share = num_rare / sum(LAYERS.values())
    assert reference.unusual(Paths.with_ranks(activations["picture"])) == pytest.approx(share)


def test_activations_are_those_of_the_network_alone(mini, mini_float64):
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    names = path_layers(mini.layers)
    assert names == mini.layers.filter_layers
    paths = Paths.joined([Paths.of(pictures[:2], mini, names), Paths.of(pictures[2:], mini, names)])
    for layer in (names[0], names[-1]):
        maps = mini_float64.scores(pictures, layer)[0].double()
        assert paths.activations[layer] == pytest.approx(maps.clamp_min(0).mean((2, 3)).numpy(), rel=1e-3, abs=1e-4)
        assert paths.ranks[layer] == pytest.approx(ranked(paths.activations[layer]))


def test_even_choices_and_networks_without_filters():
    assert evenly(range(10), 4) == (0, 3, 6, 9)
    assert evenly("abc", 5) == ("a", "b", "c")
    assert evenly("abc", 1) == ("a",)
    assert evenly("", 5) == ()
    with pytest.raises(DgnError, match="flat has no convolutions whose units could be compared along its depth"):
        path_layers(Layers("flat", {"fc": 3}, "fc", (), (), {}))
