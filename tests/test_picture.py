"""Saved pictures: the bytes, and scores from the bytes by another way."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dgn import embedded, picture
from dgn.embedded.drawings import LABELS, draw
from dgn.render import RenderResult
from dgn.targets import Target, WeightedUnit


def fc8(*units):
    return Target(tuple(WeightedUnit("fc8", u) for u in units), "untrained", 0)


def png_of(label, seed=0):
    buffer = io.BytesIO()
    Image.fromarray(draw(label, np.random.default_rng(seed))).save(buffer, format="PNG")
    return buffer.getvalue()


def test_png_keeps_every_8_bit_value():
    values = torch.arange(256).repeat(3, 4, 1)
    decoded = picture.decode(picture.encode_png(values.float() / 255))
    assert np.array_equal(decoded, values.permute(1, 2, 0).numpy())


def test_thumbnail_is_a_webp_of_96_px():
    with Image.open(io.BytesIO(picture.encode_thumbnail(png_of("star")))) as image:
        assert (image.format, image.size) == ("WEBP", (96, 96))


def test_scores_of_drawings_name_their_class(mini):
    pngs, targets = [png_of(label) for label in LABELS], [fc8(u) for u in range(len(LABELS))]
    scores = picture.rescore(pngs, targets, mini)
    ranks = [s.rank for s in scores]
    assert ranks.count(1) >= len(LABELS) - 2
    for score in scores:
        if score.rank == 1:
            assert score.probability > 0.3
            assert score.top5[0].activation == pytest.approx(score.activation)


def test_scores_equal_the_networks_own_numbers(mini):
    png = png_of("heart")
    images = torch.from_numpy(picture.decode(png).copy()).permute(2, 0, 1)[None].float() / 255
    response = mini.responses(images, ["conv4_2", "fc8"])
    logits = response["fc8"][0]
    map_means = response["conv4_2"].relu().mean((2, 3))[0]
    one, pair, filter_ = picture.rescore(
        [png] * 3, [fc8(7), fc8(7, 2), Target((WeightedUnit("conv4_2", 3),), "untrained", 0)], mini
    )
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


def result(target, curve):
    return RenderResult(target, torch.zeros(3, 224, 224), curve[-1], tuple(curve), len(curve), 1.0)


def scores(activation, rank):
    top = (picture.TopUnit(5, "star", 9.0),)
    return picture.Scores(activation, rank, 0.5, top, 1.0)


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
    target = Target((WeightedUnit(layer, 0),), "untrained", 0)
    found, why = picture.judge(result(target, [1.0, 3.0]), scores(activation, rank), "fc8")
    assert found == status
    assert why is None if reason is None else reason in why


def test_a_picture_that_is_not_finite_has_no_scores():
    assert picture.judge(result(fc8(0), [1.0]), None, "fc8")[0] == "nonfinite"


@pytest.mark.parametrize("network", embedded.NETWORKS)
def test_embedded_files_are_small_and_right(network):
    from dgn.embedded.train import share_right

    path = embedded.weights_path(network)
    assert path.stat().st_size <= 2_000_000
    assert share_right(network, path, per_class=20) >= 0.96, "the script prints at least 97 % of 1,200"
