"""Scores of saved pictures, compared with numbers computed another way."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dgn.errors import DgnError
from dgn.method.loop import RenderResult
from dgn.networks.embedded.drawings import LABELS, draw
from dgn.networks.registry import network_named
from dgn.pictures.codec import decode_png, encode_png
from dgn.pictures.scoring import Scores, TopUnit, outcome, read_pictures, score, score_results
from dgn.targets import Target, WeightedUnit
from tests.helpers.own_networks import Own, conv, frozen
from tests.helpers.targets import filter_target


def fc8(*units):
    return Target(tuple(WeightedUnit("fc8", u) for u in units), "untrained", 0)


def png_of(label, seed=0):
    return encode_png(draw(label, np.random.default_rng(seed)))


def test_scores_of_drawings_name_their_class(mini):
    pngs, targets = [png_of(label) for label in LABELS], [fc8(u) for u in range(len(LABELS))]
    scores = score(read_pictures(pngs, 224), targets, mini)
    ranks = [s.rank for s in scores]
    assert ranks.count(1) >= len(LABELS) - 2
    for one in scores:
        if one.rank == 1:
            assert one.probability > 0.3
            assert one.top5[0].activation == pytest.approx(one.activation)


def test_scores_equal_the_networks_own_numbers(mini):
    png = png_of("heart")
    images = torch.from_numpy(decode_png(png).copy()).permute(2, 0, 1)[None].float() / 255
    response = mini.responses(images, ["conv4_2", "fc8"])
    logits = response["fc8"][0]
    map_means = response["conv4_2"].relu().mean((2, 3))[0]
    targets = [fc8(7), fc8(7, 2), filter_target("conv4_2", 3)]
    one, pair, filter_ = score(read_pictures([png] * 3, 224), targets, mini)
    assert one.activation == pytest.approx(logits[7].clamp_min(0).item(), rel=1e-4)
    assert one.others_sum == pytest.approx((logits.relu().sum() - logits[7].relu()).item(), rel=1e-4)
    assert one.probability == pytest.approx(logits.softmax(0)[7].item(), rel=1e-4)
    assert pair.activation == pytest.approx((logits[7].relu() + logits[2].relu()).item(), rel=1e-4)
    weakest = min(logits[7], logits[2])
    assert pair.rank == 1 + sum(1 for u, v in enumerate(logits) if u not in (7, 2) and v > weakest)
    assert filter_.activation == pytest.approx(map_means[3].item(), rel=1e-4)
    assert filter_.rank == 1 + int((map_means > map_means[3]).sum())
    assert filter_.probability is None
    assert filter_.top5[0].label is None


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(DgnError, match="100 x 224 px: expected 224 x 224"):
        read_pictures([png_of("star"), encode_png(np.zeros((224, 100, 3), np.uint8))], 224)


def result(target, curve):
    return RenderResult(target, torch.zeros(3, 224, 224), curve[-1], tuple(curve), len(curve), 1.0)


def scores(activation, rank):
    top = (TopUnit(5, "star", 9.0),)
    return Scores(activation, rank, 0.5, top, 1.0)


@pytest.mark.parametrize(
    ("activation", "rank", "layer", "status", "reason"),
    [
        (3.0, 1, "fc8", "ok", None),
        (3.0, 4, "fc8", "not_converged", "rank 4 on the saved picture: star is first"),
        (0.0, 20, "fc8", "dead", "the activation is 0"),
        (3.0, 4, "conv3_1", "ok", None),
        (0.5, 4, "conv3_1", "not_converged", "fell from 1 to 0.5"),
    ],
)
def test_statuses(activation, rank, layer, status, reason):
    found, why = outcome(
        result(filter_target(layer, 0), [1.0, 3.0]), scores(activation, rank), network_named("vgg16-mini").layers
    )
    assert found == status
    assert why is None if reason is None else reason in why


def test_a_target_that_is_wanted_silent_has_a_status_of_its_own():
    target = Target((WeightedUnit("conv3_1", 0, -1.0),), "untrained", 0)
    layers = network_named("vgg16-mini").layers
    below, above = (outcome(result(target, [-2.0, -1.0]), scores(activation, 1), layers) for activation in (3.0, -0.5))
    assert below == ("suppressed", "below zero as asked: -3 before the ReLU")
    assert above == ("not_converged", "not below zero before the ReLU after 2 updates")


def test_a_batch_is_scored_as_saved_and_a_picture_that_is_not_finite_has_no_scores(mini):
    pictures = [torch.tensor(draw(label, np.random.default_rng(0))).permute(2, 0, 1) / 255 for label in LABELS[:3]]
    pictures[1] = pictures[1] * float("nan")
    results = [replace(result(fc8(n), [0.0]), picture_3HW=picture + 0.001) for n, picture in enumerate(pictures)]
    first, nonfinite, last = score_results(results, mini)
    assert [one.result for one in (first, nonfinite, last)] == results
    assert (nonfinite.status, nonfinite.picture_HW3, nonfinite.scores) == ("nonfinite", None, None)
    assert "not finite" in nonfinite.reason
    for one in (first, last):
        png = encode_png(one.picture_HW3)  # whose values are 0.001 lower
        [again] = score(read_pictures([png], 224), [one.result.target], mini)
        assert again.activation == pytest.approx(one.scores.activation, rel=1e-5)
        assert again.activation != pytest.approx(one.unrounded_activation, rel=1e-5)
        assert (again.rank, again.top5[0].unit) == (one.scores.rank, one.scores.top5[0].unit)
        exact = score(one.result.picture_3HW[None], [one.result.target], mini)[0].activation
        assert one.unrounded_activation == pytest.approx(exact, rel=1e-5)
        assert (one.status, one.reason) == outcome(one.result, one.scores, mini.layers)


BIASES = torch.tensor([3.0, -2.0, 1.0, -4.0])  # the classes' values for a black picture


def biased(output=None, values=BIASES, is_map=False):
    """A network whose classes have these values for every picture, behind a layer of maps with the same; or that layer
    alone, with a ReLU."""
    num = len(values)
    stem, fc = conv(num), torch.nn.Linear(num, num)
    with torch.no_grad():
        stem.weight.zero_(), stem.bias.copy_(values), fc.bias.copy_(values)
    if is_map:
        return frozen(Own(lambda s, x: s.stem(x).relu().mean((2, 3)), stem=stem), output=output)
    return frozen(Own(lambda s, x: s.fc(s.stem(x).mean((2, 3)) * 0), stem=stem, fc=fc), output=output)


def of(layer, *weighted):
    return Target(tuple(WeightedUnit(layer, unit, weight) for unit, weight in weighted), "untrained", 0)


@pytest.mark.parametrize("layer", ["fc", "stem"])
@pytest.mark.parametrize(
    ("weighted", "activation", "rank"),
    [
        ([(3, -1.0)], 4.0, 1),  # the lowest of all
        ([(1, -1.0)], 2.0, 2),  # one is lower
        ([(0, -2.0)], -6.0, 4),
        ([(3, -1.0), (1, -0.5)], 5.0, 1),  # both, and nothing lies below the higher one
        ([(3, -1.0), (2, -1.0)], 3.0, 2),
    ],
)
def test_units_that_are_wanted_silent_are_ranked_from_below(layer, weighted, activation, rank):
    network = biased()
    [found] = score(torch.zeros(1, 3, 32, 32), [of(layer, *weighted)], network)
    assert (found.activation, found.rank) == (pytest.approx(activation), rank)
    assert found.top5[0].unit == 0


@pytest.mark.parametrize(
    ("weighted", "rank"), [([(0, 1.0)], 1), ([(2, 1.0)], 2), ([(2, 1.0), (0, -1.0)], 1), ([(0, 1.0), (1, 1.0)], 2)]
)
def test_a_wanted_unit_is_ranked_among_those_that_the_target_does_not_name(weighted, rank):
    [found] = score(torch.zeros(1, 3, 32, 32), [of("fc", *weighted)], biased())
    assert found.rank == rank


@pytest.mark.parametrize(
    ("output", "weighted", "probability"),
    [
        ("softmax", [(0, 1.0)], BIASES.softmax(0)[0]),
        ("softmax", [(0, 1.0), (2, 1.0)], BIASES.softmax(0)[[0, 2]].sum()),
        ("sigmoid", [(0, 1.0)], BIASES.sigmoid()[0]),
        ("sigmoid", [(0, 1.0), (2, 1.0)], BIASES.sigmoid()[2]),
        ("none", [(0, 1.0)], None),
        ("softmax", [(0, 1.0), (2, -1.0)], BIASES.softmax(0)[0]),  # of what is wanted
        ("sigmoid", [(0, 1.0), (3, -1.0)], BIASES.sigmoid()[0]),
    ],
)
def test_probabilities_are_what_the_output_means(output, weighted, probability):
    target = of("fc", *weighted)
    network = biased(output)
    [found], [map_] = (score(torch.zeros(1, 3, 32, 32), [one], network) for one in (target, of("stem", *weighted)))
    assert found.probability == (None if probability is None else pytest.approx(probability.item(), rel=1e-6))
    assert map_.probability is None


@pytest.mark.parametrize(
    ("output", "weighted", "status", "says"),
    [
        ("softmax", [(0, 1.0)], "ok", None),
        ("softmax", [(2, 1.0)], "not_converged", "rank 2"),
        ("sigmoid", [(2, 1.0)], "ok", None),  # several may be true
        ("softmax", [(1, 1.0)], "dead", "the activation is 0"),
        ("sigmoid", [(1, 1.0)], "not_converged", "probability 0.119 on the saved picture: below one half"),
        ("none", [(1, 1.0)], "dead", "the activation is 0"),
        ("sigmoid", [(0, 1.0), (1, 1.0)], "not_converged", "probability 0.119 on the saved picture: below one half"),
        ("sigmoid", [(0, 1.0), (3, -1.0)], "ok", None),  # wanted as unlikely as it is
        ("none", [(2, 1.0)], "ok", None),
        ("none", [(3, -1.0)], "suppressed", "below zero as asked: -4"),
        ("sigmoid", [(3, -1.0)], "suppressed", "below zero as asked: -4"),
        ("softmax", [(0, -1.0)], "not_converged", "not below zero"),
    ],
)
def test_a_status_says_what_the_output_can(output, weighted, status, says):
    network = biased(output)
    target = of("fc", *weighted)
    [found] = score_results([replace(result(target, [-9.0]), picture_3HW=torch.zeros(3, 32, 32))], network)
    assert found.status == status
    assert found.reason is None if says is None else says in found.reason


@pytest.mark.parametrize(
    ("output", "values", "weighted", "status", "says"),
    [
        ("softmax", [-1.0, -8.0, -9.0], [(0, 1.0)], "ok", None),  # minus squared distances, for instance
        ("softmax", [0.0, -8.0, -9.0], [(0, 1.0)], "ok", None),  # logarithms of probabilities
        ("softmax", [-1.0, -8.0, -9.0], [(1, 1.0)], "dead", "the activation is 0"),
        ("softmax", [0.0, 0.0, 0.0], [(0, 1.0)], "dead", "the activation is 0"),  # the network knows nothing
        ("softmax", [-1.0, -8.0, -9.0], [(0, 1.0), (1, 1.0)], "dead", "the activation is 0"),
        ("none", [-1.0, -8.0, -9.0], [(0, 1.0)], "dead", "the activation is 0"),
        ("sigmoid", [-1.0], [(0, 1.0)], "not_converged", "probability 0.269 on the saved picture: below one half"),
        ("sigmoid", [0.0], [(0, 1.0)], "dead", "the activation is 0"),
    ],
)
@pytest.mark.parametrize("is_map", [False, True])
def test_a_class_below_zero_is_judged_by_what_the_output_makes_of_it(is_map, output, values, weighted, status, says):
    """A class layer that is a map is read after its ReLU, as SqueezeNet's: there zero is silence."""
    network = biased(output, values=torch.tensor(values), is_map=is_map)
    target = of("stem" if is_map else "fc", *weighted)
    [found] = score_results([replace(result(target, [0.0]), picture_3HW=torch.zeros(3, 32, 32))], network)
    assert found.status == ("dead" if is_map else status)
    assert says is None or is_map or says in found.reason
    assert found.scores.activation == 0


def test_one_logit_is_first_of_one_and_has_a_probability():
    model = Own(lambda s, x: s.fc(s.stem(x).mean((2, 3)) * 0), stem=conv(4), fc=torch.nn.Linear(4, 1))
    with torch.no_grad():
        model.fc.bias.fill_(2.0)
    [found] = score(torch.zeros(1, 3, 32, 32), [of("fc", (0, 1.0))], frozen(model))
    assert (found.rank, found.probability) == (1, pytest.approx(torch.tensor(2.0).sigmoid().item()))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_network_that_ends_in_probabilities_is_not_normalised_again(kind):
    model = Own(lambda s, x: getattr(s.fc(s.stem(x).mean((2, 3))), kind)(*[1] * (kind == "softmax")), stem=conv(4),
                fc=torch.nn.Linear(4, 3))  # fmt: skip
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = frozen(model)
    [found] = score(images, [of("fc", (1, 1.0))], network)
    with torch.no_grad():
        want = model((images - 0.5) / 0.25)[0, 1].item()
    assert found.probability == pytest.approx(want, rel=1e-5)
    assert found.activation == pytest.approx(max(0, network.responses(images, ["fc"])["fc"][0, 1].item()), abs=1e-5)
