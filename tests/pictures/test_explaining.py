"""What is explained, and the filters and the group that explain it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dgn.errors import DgnError, TargetError
from dgn.networks.embedded.drawings import LABELS, draw
from dgn.pictures.attribution import silenced
from dgn.pictures.explaining import Photograph, chosen_class, chosen_layers, explain

LAYER = "conv4_3"


@pytest.fixture(scope="module")
def explanation(mini):
    """Of a drawing of a star; with so many filters that every one is silenced."""
    seen_HW3 = draw("star", np.random.default_rng(4), 224).copy()
    return explain(mini, Photograph("star.png", "", seen_HW3), (LAYER,), None, 16)


def test_filters_are_those_of_the_largest_falls(explanation, mini):
    """All of them, by a plain loop over the layer."""
    image_3HW = torch.from_numpy(explanation.photograph.seen_HW3).permute(2, 0, 1) / 255
    sets = [(), *((unit,) for unit in range(mini.units[LAYER]))]
    values_N = torch.cat([silenced(mini, image_3HW, LAYER, [one]) for one in sets])[:, explanation.class_]
    falls = (values_N[0] - values_N[1:]).tolist()
    found = [one for one in explanation.evidence[LAYER] if one.weight is not None]
    assert [one.fall for one in found] == pytest.approx(sorted(falls, reverse=True)[: len(found)], abs=1e-4)
    assert [falls[one.units[0].unit] for one in found] == pytest.approx([one.fall for one in found], abs=1e-4)
    assert len(found) == 16
    assert explanation.value == pytest.approx(values_N[0].item(), abs=1e-4)


def test_the_group_weighs_filters_by_what_they_add(explanation, mini):
    """Weight times strongest response is as the fall, up to two digits of the weight."""
    *filters, group = explanation.evidence[LAYER]
    assert group.weight is None
    assert [one.unit for one in group.units] == [one.units[0].unit for one in filters]
    assert [one.weight for one in group.units] == [one.weight for one in filters]
    assert max(one.weight for one in filters) == 1
    image_3HW = torch.from_numpy(explanation.photograph.seen_HW3).permute(2, 0, 1) / 255
    peak_U = mini.scores(image_3HW[None], LAYER)[0][0].amax((1, 2))
    gains = [one.fall / peak_U[one.units[0].unit].item() for one in filters]
    assert [one.weight for one in filters] == pytest.approx([max(0.001, gain / max(gains)) for gain in gains], rel=0.06)
    assert group.activation == pytest.approx(sum(one.weight * one.activation for one in filters))
    assert group.probability_without < explanation.probability


def test_the_answer_is_the_networks(explanation, mini):
    image_3HW = torch.from_numpy(explanation.photograph.seen_HW3).permute(2, 0, 1) / 255
    probability_C = mini.scores(image_3HW[None], "fc8")[1][0].softmax(0)
    assert LABELS[explanation.class_] == "star"
    assert explanation.class_ == int(probability_C.argmax())
    assert explanation.probability == pytest.approx(probability_C.max().item())
    assert explanation.answers[0] == (explanation.class_, explanation.probability)


def test_maps_are_brightest_in_their_box(explanation):
    for one in explanation.evidence[LAYER]:
        left, top, right, bottom = one.box
        row, column = np.unravel_index(one.map_HW.argmax(), one.map_HW.shape)
        rows, columns = one.map_HW.shape
        assert one.map_HW.max() == 255
        assert left <= (column + 0.5) / columns <= right
        assert top <= (row + 0.5) / rows <= bottom


def test_which_layers(mini):
    assert chosen_layers(None, mini.layers) == ("conv3_3", "conv5_3")
    assert chosen_layers(["conv5_1", "conv1_1", "conv5_1"], mini.layers) == ("conv1_1", "conv5_1")
    with pytest.raises(TargetError, match="'fc8' is not a filter layer of vgg16-mini"):
        chosen_layers(["conv5_1", "fc8"], mini.layers)
    with pytest.raises(TargetError, match=r"'conv5_9' is not a layer of vgg16-mini; did you mean conv5_"):
        chosen_layers(["conv5_9"], mini.layers)
    with pytest.raises(DgnError, match="none of its layers is a convolution"):
        chosen_layers(None, replace(mini.layers, filter_layers=()))


def test_which_class(mini):
    assert chosen_class(None, mini.layers) is None
    assert chosen_class("7", mini.layers) == chosen_class(LABELS[7], mini.layers) == 7
    for asked in ("3,4", "0-1"):
        with pytest.raises(TargetError, match="names 2 classes"):
            chosen_class(asked, mini.layers)
    without = replace(mini.layers, output="none")
    with pytest.raises(DgnError, match=r"gives no probabilities.*name the one to explain with --class"):
        chosen_class(None, without)
    assert chosen_class("7", without) == 7
    with pytest.raises(TargetError, match="has no classes"):
        chosen_class(None, replace(mini.layers, class_layer=None))
