"""The optimisation loop: equal to the paper's plain loop, and no target affects its neighbours."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from dgn.engine import engine_for
from dgn.errors import DgnError
from dgn.method.architecture import Architecture
from dgn.method.colours import IMAGENET_MEAN, PHOTO_AXES
from dgn.method.decoder import random_decoder
from dgn.method.generator import initial_weights
from dgn.method.loop import render_batch
from dgn.networks.frozen import FrozenNetwork
from dgn.targets import MODES, Target, WeightedUnit
from tests.conftest import NARROW
from tests.helpers.own_networks import Own, conv, frozen, seeded
from tests.helpers.paper_port import PaperGenerator, paper_losses
from tests.helpers.targets import class_targets, filter_target


@pytest.mark.parametrize("width", [NARROW, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", MODES)
def test_losses_equal_the_plain_port_of_the_papers_loop(mode, width, paper_config, mini_float64):
    num_updates = 12 if width < 1 else 20
    recipe = replace(paper_config.recipe(mode), num_updates=num_updates, width=width)
    config = replace(paper_config, **{mode: recipe})
    decoder = random_decoder(config.pretrained)
    targets = class_targets([3, 17, 8] if width < 1 else [3], mode)
    ours = []
    render_batch(targets, config, mini_float64, decoder, on_update=lambda _, losses: ours.append(losses))
    ours = torch.stack(ours, 1)
    assert ours.shape == (len(targets), num_updates)
    for n, target in enumerate(targets):
        stream = torch.Generator().manual_seed(target.stream_seed)
        start = initial_weights(Architecture(mode, width), stream) if mode == "untrained" else decoder
        generator = PaperGenerator(mode, width).double().load(start)
        network = mini_float64.model if mode == "untrained" else partial(_through_colours, mini_float64)
        plain = torch.tensor(paper_losses(generator, network, target.unit, stream, num_updates), dtype=torch.float64)
        torch.testing.assert_close(ours[n], plain, rtol=1e-6, atol=0)


def _through_colours(network, components):
    """A decoder draws along photographs' colour axes; the network's model takes normalised RGB."""
    axes, mean = (torch.tensor(values, dtype=torch.float64) for values in (PHOTO_AXES, IMAGENET_MEAN))
    rgb = torch.tensordot(axes, components[0], 1)[None] + mean[:, None, None]
    return network.model((rgb - network.mean_c11) / network.std_c11)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_of_eight_equals_eight_batches_of_one(mode, quick_config, mini_float64):
    recipe = replace(quick_config.recipe(mode), width=NARROW, num_updates=3, half_share=0.0)
    config = replace(quick_config, precision="float64", **{mode: recipe})
    decoder = random_decoder(config.pretrained)
    mixed = [
        filter_target("conv3_1", 5, mode),
        Target((WeightedUnit("fc8", 2), WeightedUnit("fc8", 9, 0.5)), mode, 0),
        Target((WeightedUnit("conv5_1", 3), WeightedUnit("conv2_2", 1, 2.0)), mode, 0),
    ]
    targets = [*class_targets([0, 5, 11, 23], mode), *mixed, *class_targets([5], mode, seed=1)]
    together = render_batch(targets, config, mini_float64, decoder)
    for n, target in enumerate(targets):
        alone = render_batch([target], config, mini_float64, decoder)[0]
        torch.testing.assert_close(together[n].picture_3HW, alone.picture_3HW, rtol=1e-5, atol=1e-6)
        assert together[n].optimised_activation == pytest.approx(alone.optimised_activation, rel=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_processors_take_one_target_after_another_and_draw_the_same(mode, quick_config, mini_weights, mini_float64):
    """So only one target's maps are in memory at a time."""
    recipe = replace(quick_config.recipe(mode), width=NARROW, num_updates=3, half_share=0.0)
    config = replace(quick_config, precision="float64", **{mode: recipe})
    decoder = random_decoder(config.pretrained)
    targets = [filter_target("conv3_1", 5, mode), *class_targets([0, 5, 11], mode)]
    at_once = render_batch(targets, config, mini_float64, decoder)
    apart, num_seen = FrozenNetwork(mini_weights, engine_for("cpu"), torch.float64), []

    def responses(images, *about):
        num_seen.append(len(images))
        return FrozenNetwork.responses(apart, images, *about)

    apart.responses = responses
    for one, other in zip(render_batch(targets, config, apart, decoder), at_once, strict=True):
        torch.testing.assert_close(one.picture_3HW, other.picture_3HW, rtol=1e-5, atol=1e-6)
        assert one.activation_curve == pytest.approx(other.activation_curve, rel=1e-6)
    assert num_seen == [recipe.num_views] * len(targets) * recipe.num_updates


def test_same_seed_gives_the_same_bytes_and_another_seed_another_picture(quick_config, mini):
    targets = class_targets([4, 7])
    first, second = (render_batch(targets, quick_config, mini)[1].picture_3HW for _ in range(2))
    assert torch.equal(first, second)
    other = render_batch(class_targets([7], seed=1), quick_config, mini)[0].picture_3HW
    assert not torch.allclose(first, other, atol=0.01)


@pytest.mark.parametrize("wakes", [True, False])
def test_a_silent_unit_wakes_only_where_the_recipe_says_so(wakes, quick_config, mini_weights):
    """The last layer's bias pushed far below zero: after the ReLU nothing moves, before it the logit rises."""
    state = dict(mini_weights.state)
    state["classifier.6.bias"] = state["classifier.6.bias"] - 1e3
    network = FrozenNetwork(replace(mini_weights, state=state))
    recipe = replace(quick_config.untrained, wakes_silent_units=wakes, num_updates=30, noise_sigma=0.0, num_views=0)
    config, losses = replace(quick_config, untrained=recipe), []
    render_batch(class_targets([6]), config, network, on_update=lambda _, loss_N: losses.append(loss_N))
    fell_by = (losses[0] - losses[-1]).item()
    assert fell_by > 0.5 if wakes else abs(fell_by) < 0.01


def test_a_target_that_is_not_finite_leaves_its_neighbours_alone(quick_config, mini, poison_the_next_start):
    targets = class_targets([1, 2])
    healthy = render_batch(targets, quick_config, mini)
    poison_the_next_start()
    broken, fine = render_batch(targets, quick_config, mini)
    assert not broken.is_finite
    assert torch.equal(fine.picture_3HW, healthy[1].picture_3HW)


def test_the_pretrained_mode_needs_a_decoder_and_batches_hold_one_mode(quick_config, mini, decoder):
    with pytest.raises(DgnError, match="the pretrained mode needs a decoder"):
        render_batch(class_targets([0], "pretrained"), quick_config, mini)
    with pytest.raises(AssertionError, match="of one kind"):
        render_batch([*class_targets([0]), *class_targets([0], "pretrained")], quick_config, mini, decoder)


def test_curves_have_at_most_64_points_and_end_with_the_last_update(quick_config, mini):
    recipe = replace(quick_config.untrained, width=NARROW, num_updates=70, num_views=0)
    config, seen = replace(quick_config, untrained=recipe), []
    result = render_batch([filter_target("conv1_1", 0)], config, mini, on_update=lambda i, _: seen.append(i))[0]
    assert seen == list(range(70))
    assert len(result.activation_curve) == 64
    assert result.activation_curve[-1] == result.optimised_activation


def test_a_unit_that_is_wanted_silent_is_pulled_below_zero(quick_config):
    """A filter without anything behind it: its mean before the ReLU is linear in the picture."""
    stem = seeded(Own(lambda s, x: s.stem(x), stem=conv(2)))
    with torch.no_grad():
        stem.stem.bias.copy_(torch.tensor([0.3, 0.3]))
    classifier = frozen(stem, output="none")
    recipe = replace(quick_config.untrained, width=NARROW, num_updates=8, num_views=0, noise_sigma=0.0)
    config = replace(quick_config, untrained=recipe)
    up, down = (Target((WeightedUnit("stem", 0, weight),), "untrained", 0) for weight in (1.0, -1.0))
    raised, lowered = (render_batch([target], config, classifier)[0] for target in (up, down))
    assert lowered.activation_curve[-1] > lowered.activation_curve[0], "of the negated value"
    means = [classifier.responses(one.picture_3HW[None], ["stem"])["stem"][0, 0].mean() for one in (lowered, raised)]
    assert means[0] < means[1]
