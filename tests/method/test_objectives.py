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


def groups_of(*groups):
    """Values of a layer with six units, two of them silent, and what groups of (unit, weight) want of it."""
    values = {"conv": unit_values(torch.tensor([[2.0, -3.0, 1.0, -0.5, 4.0, 0.0]]).expand(len(groups), -1))}
    units = [tuple(WeightedUnit("conv", unit, weight) for unit, weight in group) for group in groups]
    return values, {"conv": objectives.layer_weights(units, "conv", 6)}


@pytest.mark.parametrize(
    ("group", "activation", "pulled"),
    [
        ([(0, -1)], -2.0, -2.0),
        ([(1, -1)], 3.0, 3.0),  # below zero already: how far counts
        ([(1, -2), (2, -1)], 5.0, 5.0),
        ([(0, 1), (1, -1)], 2.0, 2.0),  # beside a wanted one a silent unit may rest
        ([(0, 1), (4, -0.5)], 0.0, 0.0),
        ([(3, 1), (1, -1)], 0.0, -0.5),  # the wanted one is woken, the other left
        ([(3, 1), (2, -1)], -1.0, -1.5),
    ],
)
def test_units_with_negative_weights_alone_are_pulled_below_zero(group, activation, pulled):
    values, wanted = groups_of(group, [(0, 1)])
    assert objectives.activations(values, wanted).tolist() == [activation, 2.0]
    assert objectives.objectives(values, wanted, wakes_silent_units=True).tolist() == [pulled, 2.0]


def test_a_silenced_unit_has_a_gradient_on_both_sides_of_zero():
    for start in (3.0, -3.0):
        response = torch.full((1, 2, 2, 2), start, requires_grad=True)
        values = {"conv": unit_values(response)}
        wanted = {"conv": objectives.layer_weights([(WeightedUnit("conv", 1, -1.0),)], "conv", 2)}
        for wakes in (False, True):
            objective = objectives.objectives(values, wanted, wakes_silent_units=wakes)
            gradient = torch.autograd.grad(objective.sum(), response, retain_graph=True)[0]
            assert gradient[0, 0].eq(0).all()
            assert gradient[0, 1].eq(-0.25).all(), "the mean of four"


def test_wanted_units_of_another_layer_let_silenced_ones_rest():
    values = {"a": unit_values(torch.tensor([[1.0, -2.0]])), "b": unit_values(torch.tensor([[-4.0, 3.0]]))}
    group = [(WeightedUnit("a", 0), WeightedUnit("b", 0, -1.0))]
    wanted = {name: objectives.layer_weights(group, name, 2) for name in ("a", "b")}
    assert objectives.activations(values, wanted).tolist() == [1.0]
    alone = [(WeightedUnit("a", 1, -1.0), WeightedUnit("b", 0, -1.0))]
    wanted = {name: objectives.layer_weights(alone, name, 2) for name in ("a", "b")}
    assert objectives.activations(values, wanted).tolist() == [6.0]
