"""Updates that look at the picture at half its size, and a learning rate that falls."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dgn.method import loop, objectives, recipes
from dgn.method.architecture import Architecture
from dgn.method.batch import recipe_for
from dgn.method.colours import displayable
from dgn.method.generator import generate, initial_weights
from dgn.method.loop import render_batch, render_targets
from dgn.method.recipes import Moves, RenderConfig
from dgn.targets import Target, WeightedUnit
from tests.conftest import NARROW
from tests.helpers.targets import class_targets, filter_target


def test_losses_equal_a_plain_loop_that_halves_pictures_and_rate(quick_config, mini_float64):
    """PyTorch's own AdaMax and schedule, its area resize (which is the smoothed one at a factor of two), one target."""
    target, num_updates, num_half = class_targets([5])[0], 10, 6
    recipe = replace(quick_config.untrained, width=NARROW, num_updates=num_updates, num_views=0, half_share=0.6)
    losses, network = [], mini_float64
    render_batch(
        [target],
        replace(quick_config, precision="float64", untrained=recipe),
        network,
        on_update=lambda _, loss_N: losses.append(loss_N.item()),
    )
    architecture = Architecture("untrained", NARROW, has_last_relu=False)
    stream = torch.Generator().manual_seed(target.stream_seed)
    own = {name: t.double().requires_grad_() for name, t in initial_weights(architecture, stream).items()}
    adamax = torch.optim.Adamax(own.values(), lr=recipe.learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
        adamax, num_updates, eta_min=recipe.learning_rate * recipe.last_rate_share
    )
    plain = []
    for update in range(num_updates):
        noise_K = torch.randn(architecture.num_features, generator=stream).double()
        features_K = own["alpha"] * (1 + recipe.noise_sigma * noise_K)
        picture = displayable(generate(architecture, own, features_K)[None])
        if update < num_half:
            picture = F.interpolate(picture, (112, 112), mode="bilinear", antialias=True)
        response = network.model((picture - network.mean_c11) / network.std_c11)
        values = objectives.unit_values(response)
        others = values.activation.sum() - values.activation[0, 5]
        wanted = values.activation[0, 5] if values.activation[0, 5] > 0 else values.before_relu[0, 5]
        gamma = own[architecture.picture_gamma]
        loss = -wanted + recipe.penalty_others * others + 0.01 * gamma.abs().sum()
        plain.append(loss.item())
        adamax.zero_grad()
        loss.backward()
        adamax.step()
        cosine.step()
    assert losses == pytest.approx(plain, rel=1e-6)


def test_only_classes_are_sought_at_half_size_and_pictures_have_the_whole(quick_config, mini):
    """A filter's pattern would be drawn at twice its scale, and responds far less when its size comes back."""
    seen = []
    watched = mini.responses
    recipe = replace(quick_config.untrained, width=NARROW, num_updates=5, half_share=0.6)
    config = replace(quick_config, untrained=recipe)

    def sides(target):
        seen.clear()
        [result] = render_batch([target], config, mini)
        assert result.picture_3HW.shape == (3, 224, 224)
        return seen.copy()

    def watch(images_N3HW, layers):
        seen.append(images_N3HW.shape[-1])
        return watched(images_N3HW, layers)

    mini.responses = watch
    try:
        assert sides(class_targets([5])[0]) == [112, 112, 112, 224, 224]
        assert sides(filter_target("conv3_1", 5)) == [224] * 5
        units = WeightedUnit("fc8", 2), WeightedUnit("conv3_1", 9)
        assert sides(Target(units, "untrained", 0)) == sides(Target(units[::-1], "untrained", 0)) == [224] * 5
    finally:
        del mini.responses


def test_groups_that_are_not_of_classes_alone_have_batches_of_their_own(quick_config, mini):
    """A shard holds both, and a batch must not change a picture."""
    recipe = replace(quick_config.untrained, width=NARROW, num_updates=3)
    config = replace(quick_config, untrained=recipe)
    one, two = class_targets([5, 6])
    mixed = Target((WeightedUnit("fc8", 2), WeightedUnit("conv3_1", 9)), "untrained", 0)
    batches = list(render_targets([one, two, mixed], config, mini, batch_size=4))
    assert [[result.target for result in batch] for batch in batches] == [[one, two], [mixed]]
    alone = render_batch([mixed], config, mini)[0]
    assert torch.equal(batches[1][0].picture_3HW, alone.picture_3HW)


def test_the_last_update_is_at_the_whole_size():
    numbers = {n: RenderConfig.from_preset("standard", num_updates=n).untrained.num_half for n in (1, 2, 3, 200)}
    assert numbers == {1: 0, 2: 1, 3: 2, 200: 150}


@pytest.mark.parametrize(("changes", "of_class", "of_filter"), [({}, 200, 160), ({"num_updates": 30}, 30, 30)])
def test_a_filter_takes_fewer_updates_unless_their_number_is_asked_for(mini, changes, of_class, of_filter):
    """They are all at the whole size, which takes longer."""
    config = RenderConfig.from_preset("standard", **changes)
    recipes = [recipe_for(target, config, mini) for target in (class_targets([5])[0], filter_target("conv3_1", 5))]
    assert [recipe.num_updates for recipe in recipes] == [of_class, of_filter]
    assert [recipe.num_half for recipe in recipes] == [round(0.75 * of_class), 0]


def test_stopping_early_looks_at_updates_of_the_whole_size_alone(quick_config, mini, monkeypatch):
    """The activation falls where the size changes, which must not end a target."""
    for module in (loop, recipes):
        monkeypatch.setattr(module, "RISE_UPDATES", 2)
    recipe = replace(quick_config.untrained, width=NARROW, num_updates=16, half_share=0.5, min_rise=0.99, moves=Moves())
    [result] = render_batch(class_targets([4]), replace(quick_config, untrained=recipe), mini)
    assert result.num_updates == 8 + 2 * 2
