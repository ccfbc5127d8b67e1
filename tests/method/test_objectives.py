"""Eq. 2 to 4 against numbers worked out by hand."""

import pytest
import torch

from dgn.method import objectives
from dgn.method.objectives import unit_values
from dgn.targets import WeightedUnit

LOGITS = torch.tensor([[2.0, -3.0, 1.0, 0.5], [-1.0, 4.0, -2.0, 1.0]])
GROUPS = [(WeightedUnit("fc8", 0),), (WeightedUnit("fc8", 0), WeightedUnit("fc8", 3, 0.5))]


@pytest.fixture
def values():
    return {"fc8": unit_values(LOGITS)}


@pytest.fixture
def wanted():
    return {"fc8": objectives.layer_weights(GROUPS, "fc8", 4)}


def test_activation_and_others(values, wanted):
    assert objectives.activations(values, wanted).tolist() == [2.0, 0.5]
    assert objectives.others_sum(values, wanted).tolist() == [1.5, 4.0]


def test_silent_units_are_pulled_by_their_value_before_the_relu(values, wanted):
    assert objectives.objectives(values, wanted, wakes_silent_units=False).tolist() == [2.0, 0.5]
    assert objectives.objectives(values, wanted, wakes_silent_units=True).tolist() == [2.0, -0.5]


def test_loss_and_regularisers():
    assert objectives.loss(torch.tensor([2.0]), torch.tensor([1.5]), 0.01, torch.tensor([0.1])).item() == pytest.approx(
        -2 + 0.015 + 0.1
    )
    assert objectives.gamma_regulariser(torch.tensor([[1.0, -2.0, 3.0]])).item() == pytest.approx(0.06)
    assert objectives.alpha_regulariser(torch.tensor([[3.0, 4.0]])).item() == pytest.approx(0.5)


def test_maps_are_averaged_over_space_and_tokens_over_length_after_the_relu():
    map_ = torch.tensor([[[[1.0, -1.0], [3.0, -3.0]]]])
    assert unit_values(map_).activation.item() == 1.0
    assert unit_values(map_).before_relu.item() == 0.0
    assert unit_values(torch.tensor([[[1.0, -2.0]]])).activation.item() == 0.5


def test_a_layer_that_a_target_has_no_unit_in_costs_it_nothing():
    groups = [(WeightedUnit("a", 0),), (WeightedUnit("b", 1),)]
    values = {name: unit_values(torch.ones(2, 3)) for name in ("a", "b")}
    wanted = {name: objectives.layer_weights(groups, name, 3) for name in ("a", "b")}
    assert objectives.others_sum(values, wanted).tolist() == [2.0, 2.0]
    assert objectives.activations(values, wanted).tolist() == [1.0, 1.0]
