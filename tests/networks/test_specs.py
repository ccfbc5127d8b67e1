"""Target specifications: what they mean, and the one line for those that mean nothing."""

import pytest
from torch import nn

from dgn.errors import TargetError
from dgn.networks.registry import network_named
from dgn.networks.specs import parse_targets
from dgn.targets import Target, WeightedUnit
from tests.helpers.own_networks import network

VGG = "vgg16"


def count(blocks):
    return sum(len(block) for block in blocks)


def units(blocks):
    return [target.unit for block in blocks for target in block]


def test_the_full_target_set_of_vgg16_is_6224():
    vgg = network_named(VGG).layers
    assert [(n, vgg.units[n]) for n in ("conv1_1", "conv2_2", "conv5_1", "fc6", "fc8")] == [
        ("conv1_1", 64), ("conv2_2", 128), ("conv5_1", 512), ("fc6", 4096), ("fc8", 1000),
    ]  # fmt: skip
    assert count(parse_targets(["filters"], vgg, None)) == 4224
    assert count(parse_targets(["all"], vgg, None)) == 6224
    assert count(parse_targets(["all"], vgg, ["untrained", "pretrained"])) == 10448
    assert count(parse_targets(["classes"], vgg, None, num_seeds=3)) == 3000


def test_labels_ranges_and_lists():
    vgg = network_named(VGG).layers
    assert units(parse_targets(["classes:mosque"], vgg, None)) == [668]
    assert units(parse_targets(["classes:3-5,9", "classes:4"], vgg, None)) == [3, 4, 5, 9]
    filters = parse_targets(["filters:conv5_1:0-2"], vgg, None)
    assert filters == parse_targets(["filters:features.24:0-2"], vgg, None), "dotted names are the same layer"


def test_groups_keep_their_weights():
    (mix,) = parse_targets(["mix:classes:9+30"], network_named(VGG).layers, None)[0]
    assert mix.units == (WeightedUnit("fc8", 9), WeightedUnit("fc8", 30))
    (labelled,) = parse_targets(["mix:classes:tench*0.5 + mosque"], network_named(VGG).layers, None)[0]
    assert labelled.units == (WeightedUnit("fc8", 0, 0.5), WeightedUnit("fc8", 668))
    (group,) = parse_targets(["group:conv5_1:3*0.5+17,conv4_1:7"], network_named(VGG).layers, None)[0]
    assert group.units == (WeightedUnit("conv5_1", 3, 0.5), WeightedUnit("conv5_1", 17), WeightedUnit("conv4_1", 7))
    assert group.layers == ("conv5_1", "conv4_1")
    assert group.unit is None


def test_target_ids_are_unique_stable_and_fit_for_files():
    blocks = parse_targets(
        ["all", "mix:classes:9+20", "mix:classes:9*0.5+20"], network_named("vgg16-mini").layers, None, num_seeds=2
    )
    ids = [target.target_id for block in blocks for target in block]
    assert len(set(ids)) == len(ids)
    assert all(set(i) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.") for i in ids)
    mosque = Target((WeightedUnit("fc8", 668),), "untrained", 0)
    assert mosque.target_id == "fc8-00668-untrained-s0"
    many = Target(tuple(WeightedUnit("fc8", u) for u in range(99)), "untrained", 0)
    assert len(many.target_id) < 100


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("classes:cardigan", "names 2 classes, 264 and 474"),
        ("classes:mosk", "or mosque"),
        ("classes:1000", "unknown unit 1000"),
        ("classes:9-3", "empty range"),
        ("filters:conv9_1", "has no such layer; did you mean conv5_1 or conv4_1 or conv3_1?"),
        ("filters:middle", "has no such layer; it has "),
        ("filters:conv5_1:512", "units 0 to 511"),
        ("filters:conv5_1:x", "unknown unit 'x'"),
        ("mix:classes:9+9", "is named twice"),
        ("mix:filters:9+9", "unknown target"),
        ("mix:classes:9+mosk", "or mosque"),
        ("mix:classes:9+", "unknown unit ''"),
        ("group:conv5_1:3*0", "unit 3 has weight 0"),
        ("group:conv5_1:mosque", "unknown unit 'mosque'"),
        ("group:conv5_1:3*x", "unknown unit '3*x'"),
        ("mosque", "unknown target 'mosque'"),
    ],
)
def test_bad_targets_say_what_was_expected(spec, says):
    with pytest.raises(TargetError, match=says.replace("*", r"\*")):
        parse_targets([spec], network_named(VGG).layers, None)


def test_weights_that_differ_in_no_name_are_refused():
    """Otherwise two pictures would have one file."""
    layers = network_named(VGG).layers
    close = ["group:conv5_1:3*0.1234567+17", "group:conv5_1:3*0.12345671+17"]
    with pytest.raises(TargetError, match=r"two targets would be called conv5_1-3x0\.123457_17"):
        parse_targets(close, layers, None)
    [block] = parse_targets([close[0], close[0], "group:conv5_1:3*0.123457+18", "filters:conv5_1:3"], layers, None)
    assert len(block) == 3


def test_bad_modes_and_nothing():
    for specs, modes in ((["all"], ["pretrainedd"]), ([], None)):
        with pytest.raises(TargetError, match="expected"):
            parse_targets(specs, network_named("vgg16-mini").layers, modes)


def test_a_network_without_convolutions_has_classes_alone():
    layers = network(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2)), size=16, name="dense").layers
    assert [block.layer for block in parse_targets(["all"], layers, modes=("untrained",))] == ["1"]
    with pytest.raises(TargetError, match="dense has no filters to draw: none of its layers is a convolution"):
        parse_targets(["filters"], layers, modes=None)
