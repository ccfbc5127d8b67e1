"""The optimisation loop: equal to the paper's plain loop, and no target feels its neighbours."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from dgn import render
from dgn.colours import PHOTO_AXES
from dgn.discriminator import IMAGENET_MEAN
from dgn.errors import DgnError
from dgn.generator import Architecture, initial_weights
from dgn.recipes import PRESETS, RISE_UPDATES, RenderConfig
from dgn.render import render_batch, render_targets
from dgn.targets import Target, WeightedUnit
from tests.conftest import WIDTH, random_decoder
from tests.paper_port import PaperGenerator, paper_losses


def class_targets(units, mode="untrained", seed=0):
    return [Target((WeightedUnit("fc8", unit),), mode, seed) for unit in units]


@pytest.mark.parametrize("width", [WIDTH, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["untrained", "pretrained"])
def test_losses_equal_the_plain_port_of_the_papers_loop(mode, width, paper_config, mini_float64):
    num_updates = 20
    decoder = random_decoder(width)
    recipe = replace(paper_config.recipe(mode), num_updates=num_updates, width=width)
    config = replace(paper_config, **{mode: recipe})
    targets = class_targets([3, 17, 8] if width < 1 else [3], mode)
    ours = []
    render_batch(targets, config, mini_float64, decoder, on_update=lambda _, losses: ours.append(losses))
    ours = torch.stack(ours, 1)
    for n, target in enumerate(targets):
        stream = torch.Generator().manual_seed(target.stream_seed)
        start = initial_weights(Architecture(mode, width), stream) if mode == "untrained" else decoder
        generator = PaperGenerator(mode, width).double().load(start)
        network = mini_float64.model if mode == "untrained" else partial(_through_colours, mini_float64)
        plain = torch.tensor(paper_losses(generator, network, target.unit, stream, num_updates), dtype=torch.float64)
        torch.testing.assert_close(ours[n], plain, rtol=1e-6, atol=0)


def _through_colours(discriminator, components):
    """A decoder draws along photographs' colour axes; the network wants normalised RGB."""
    axes, mean = (torch.tensor(values, dtype=torch.float64) for values in (PHOTO_AXES, IMAGENET_MEAN))
    rgb = torch.tensordot(axes, components[0], 1)[None] + mean[:, None, None]
    return discriminator.model((rgb - discriminator.mean_311) / discriminator.std_311)


@pytest.mark.parametrize("mode", ["untrained", "pretrained"])
def test_a_batch_of_eight_equals_eight_batches_of_one(mode, quick_config, mini_float64, decoder):
    config = replace(quick_config, precision="float64")
    mixed = [
        Target((WeightedUnit("conv3_1", 5),), mode, 0),
        Target((WeightedUnit("fc8", 2), WeightedUnit("fc8", 9, 0.5)), mode, 0),
        Target((WeightedUnit("conv5_1", 3), WeightedUnit("conv2_2", 1, 2.0)), mode, 0),
    ]
    targets = [*class_targets([0, 5, 11, 23], mode), *mixed, *class_targets([5], mode, seed=1)]
    together = render_batch(targets, config, mini_float64, decoder)
    for n, target in enumerate(targets):
        alone = render_batch([target], config, mini_float64, decoder)[0]
        torch.testing.assert_close(together[n].picture_3HW, alone.picture_3HW, rtol=1e-5, atol=1e-6)
        assert together[n].optimised_activation == pytest.approx(alone.optimised_activation, rel=1e-6)


def test_same_seed_gives_the_same_bytes_and_another_seed_another_picture(quick_config, mini):
    targets = class_targets([4, 7])
    first, second = (render_batch(targets, quick_config, mini)[1].picture_3HW for _ in range(2))
    assert torch.equal(first, second)
    other = render_batch(class_targets([7], seed=1), quick_config, mini)[0].picture_3HW
    assert not torch.allclose(first, other, atol=0.01)


@pytest.mark.parametrize("wakes", [True, False])
def test_a_silent_unit_wakes_only_where_asked(wakes, quick_config, mini_weights):
    """The last layer's bias pushed far below zero: after the ReLU nothing moves, before it the logit rises."""
    from dgn.discriminator import Discriminator

    state = dict(mini_weights.state)
    state["classifier.6.bias"] = state["classifier.6.bias"] - 1e3
    discriminator = Discriminator(replace(mini_weights, state=state))
    recipe = replace(quick_config.untrained, wakes_silent_units=wakes, num_updates=30, noise_sigma=0.0, num_views=0)
    losses = []
    render_batch(
        class_targets([6]),
        replace(quick_config, untrained=recipe),
        discriminator,
        on_update=lambda _, n: losses.append(n),
    )
    fell_by = (losses[0] - losses[-1]).item()
    assert fell_by > 0.5 if wakes else abs(fell_by) < 0.01


@pytest.fixture
def poison_the_next_start(monkeypatch):
    """Once called: the next target to begin has weights that are no numbers."""
    real_start = render.initial_weights

    def poison():
        calls = []

        def poisoned(architecture, stream):
            calls.append(1)
            weights = real_start(architecture, stream)
            return {n: w * float("nan") for n, w in weights.items()} if len(calls) == 1 else weights

        monkeypatch.setattr(render, "initial_weights", poisoned)

    return poison


def test_one_target_gone_wrong_leaves_its_neighbours_alone(quick_config, mini, poison_the_next_start):
    targets = class_targets([1, 2])
    healthy = render_batch(targets, quick_config, mini)
    poison_the_next_start()
    broken, fine = render_batch(targets, quick_config, mini)
    assert not broken.is_finite
    assert torch.equal(fine.picture_3HW, healthy[1].picture_3HW)


def test_a_target_gone_wrong_stops_early_and_its_neighbours_go_on(quick_config, mini_float64, poison_the_next_start):
    """In float64: with one target less D's sums have another order."""
    recipe = replace(quick_config.untrained, num_updates=3 * RISE_UPDATES, num_views=1, min_rise=0.01)
    config, targets = replace(quick_config, precision="float64", untrained=recipe), class_targets([1, 2])
    healthy = render_batch(targets, config, mini_float64)
    poison_the_next_start()
    broken, fine = render_batch(targets, config, mini_float64)
    assert not broken.is_finite
    assert broken.num_updates == 2 * RISE_UPDATES
    assert fine.num_updates == healthy[1].num_updates
    torch.testing.assert_close(fine.picture_3HW, healthy[1].picture_3HW, rtol=1e-4, atol=1e-5)


def test_out_of_memory_halves_the_batch_and_goes_on(quick_config, mini, monkeypatch):
    real, sizes = render.render_batch, []

    def small_device(targets, *args):
        sizes.append(len(targets))
        if len(targets) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(targets, *args)

    monkeypatch.setattr(render, "render_batch", small_device)
    targets = class_targets(range(5))
    results = [result for batch in render_targets(targets, quick_config, mini, batch_size=5) for result in batch]
    assert [r.target for r in results] == targets
    assert sizes == [5, 2, 2, 1]


def test_other_errors_are_not_taken_for_out_of_memory(quick_config, mini):
    with pytest.raises(KeyError):
        list(render_targets([Target((WeightedUnit("nowhere", 0),), "untrained", 0)], quick_config, mini))


def test_pretrained_needs_a_decoder_and_batches_hold_one_mode(quick_config, mini, decoder):
    with pytest.raises(DgnError, match="without a decoder"):
        render_batch(class_targets([0], "pretrained"), quick_config, mini)
    with pytest.raises(ValueError, match="one mode"):
        render_batch([*class_targets([0]), *class_targets([0], "pretrained")], quick_config, mini, decoder)


def test_the_papers_pretrained_picture_is_the_median_of_ten_snapshots(paper_config, mini_float64, decoder, monkeypatch):
    taken = []
    real = render._Batch.snapshot
    monkeypatch.setattr(render._Batch, "snapshot", lambda batch: taken.append(real(batch)) or taken[-1])
    recipe = replace(paper_config.pretrained, num_updates=24, updates_per_snapshot=2)
    result = render_batch(
        class_targets([0], "pretrained"), replace(paper_config, pretrained=recipe), mini_float64, decoder
    )[0]
    assert len(taken) == 10
    assert torch.equal(result.picture_3HW, torch.stack(taken).median(0).values[0])


def test_notebook_tone_mapping_uses_the_whole_range(paper_config, mini_float64):
    recipe = replace(paper_config.untrained, num_updates=2, tone_mapping="notebook")
    picture = render_batch(class_targets([0]), replace(paper_config, untrained=recipe), mini_float64)[0].picture_3HW
    assert picture.min() == 0
    assert picture.max() == pytest.approx(1)


def test_curves_have_at_most_64_points_and_end_with_the_last_update(quick_config, mini):
    recipe = replace(quick_config.untrained, num_updates=70, num_views=1)
    seen = []
    result = render_batch(
        class_targets([0]), replace(quick_config, untrained=recipe), mini, on_update=lambda i, _: seen.append(i)
    )[0]
    assert len(seen) == 70
    assert len(result.activation_curve) == 64
    assert result.activation_curve[-1] == result.optimised_activation


def test_presets_are_table_1():
    paper = PRESETS["paper"]
    assert (paper["untrained"].learning_rate, paper["untrained"].noise_sigma) == (0.002, 2.0)
    assert (paper["pretrained"].learning_rate, paper["pretrained"].noise_sigma) == (0.01, 0.05)
    assert (paper["untrained"].num_updates, paper["pretrained"].num_updates) == (500, 1200)
    with pytest.raises(DgnError, match="unknown preset 'best'"):
        RenderConfig.from_preset("best")


def test_a_target_that_stops_early_leaves_its_neighbours_where_they_were(quick_config, mini_float64):
    """Each ends by its own activation, whoever is in the batch, with the picture that it has there."""
    recipe = replace(quick_config.untrained, num_updates=120, num_views=1, learning_rate=0.03, min_rise=0.3)
    config = replace(quick_config, precision="float64", untrained=recipe)
    targets = class_targets([5, 11, 0])  # the last one is silent all along: it may still wake
    together = render_batch(targets, config, mini_float64)
    lengths = [result.num_updates for result in together]
    assert len(set(lengths)) == 3
    assert lengths[2] == 120
    for n, target in enumerate(targets):
        alone = render_batch([target], config, mini_float64)[0]
        assert alone.num_updates == lengths[n]
        assert len(alone.activation_curve) == min(64, lengths[n])
        torch.testing.assert_close(together[n].picture_3HW, alone.picture_3HW, rtol=1e-4, atol=1e-5)
        exactly_so_long = replace(config, untrained=replace(recipe, num_updates=lengths[n], min_rise=0.0))
        plain = render_batch([target], exactly_so_long, mini_float64)[0]
        torch.testing.assert_close(alone.picture_3HW, plain.picture_3HW, rtol=1e-6, atol=1e-7)


def test_stopping_early_has_its_range_and_one_snapshot():
    assert not any(recipe.min_rise for recipes in PRESETS.values() for recipe in recipes.values())
    with pytest.raises(DgnError, match=r"smallest rise 1\.5"):
        RenderConfig.from_preset("standard", min_rise=1.5)
    with pytest.raises(DgnError, match="preset paper does not stop early"):
        RenderConfig.from_preset("paper", min_rise=0.01)
    with pytest.raises(DgnError, match="40 updates cannot stop early"):
        RenderConfig.from_preset("draft", min_rise=0.01, num_updates=40)


def test_adamax_equals_pytorchs_bit_for_bit():
    from dgn.adamax import BLOCK, Adamax

    ours = torch.randn(2, 3, 3, 5, BLOCK // 80).permute(0, 4, 1, 2, 3).requires_grad_()  # more than a block
    plain = ours.detach().clone().requires_grad_()
    settings = {"lr": 0.002, "betas": (0.9, 0.999), "eps": 1e-8}
    optimisers = Adamax([ours], **settings), torch.optim.Adamax([plain], **settings)
    for _ in range(20):
        plain.grad = torch.randn_like(plain)
        ours.grad = plain.grad.contiguous()  # of another memory order
        for optimiser in optimisers:
            optimiser.step()
    assert torch.equal(ours, plain)
