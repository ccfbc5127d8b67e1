"""Which photographs excite units most: against a plain loop, and however photographs are cut into batches."""

import math

import numpy as np
import pytest
import torch

from dgn.networks.embedded.drawings import LABELS, draw
from dgn.pictures.codec import THUMBNAIL_PX, encode_thumbnail
from dgn.pictures.example_sheets import NUM_BEST, SIDE_PX, decode_example_sheet, draw_example_sheet
from dgn.pictures.examples import NOBODY, NOWHERE, Best, Lists, Watcher
from dgn.targets import Target, WeightedUnit

NUM_PHOTOGRAPHS = 30


def target(*units, measure="sum"):
    return Target(tuple(WeightedUnit(*unit) for unit in units), "untrained", 0, measure)


SUBJECTS = (
    *(target(("fc8", unit)) for unit in range(24)),
    *(target(("conv3_1", unit)) for unit in range(0, 32, 2)),
    *(target(("conv1_1", unit)) for unit in range(8)),
    target(("conv5_1", 3, 0.5), ("conv5_1", 17)),
    target(("fc8", 2, -1.0)),
    target(("fc8", 1), ("conv3_1", 4, 2.0)),
    target(("conv5_1", 0, 0.6), ("conv5_1", 1, 0.8), measure="cosine"),
    target(("conv5_1", 0, 0.6), ("conv5_1", 1, 0.8), measure="dot"),
)


@pytest.fixture(scope="module")
def watcher(mini):
    return Watcher(mini, SUBJECTS)


@pytest.fixture(scope="module")
def photographs(watcher):
    stream = np.random.default_rng(5)
    return np.stack([draw(LABELS[n % 24], stream, watcher.square_px) for n in range(NUM_PHOTOGRAPHS)])


@pytest.fixture(scope="module")
def plain(mini_weights, photographs):
    """Each photograph through the plain network by itself, in float64: layer -> (N, U, ...)."""
    from dgn.networks.weights import filled

    model = filled(mini_weights.network, mini_weights.state).eval().double()
    names = {"fc8": "classifier.6", "conv1_1": "features.0", "conv3_1": "features.10", "conv5_1": "features.24"}
    kept = {}
    for layer in names:
        module, _ = mini_weights.network.layers.module_of(layer)
        model.get_submodule(module).register_forward_hook(
            lambda _m, _i, output, layer=layer: kept.setdefault(layer, []).append(output[0].detach().clone())
        )
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (mini_weights.network.mean, mini_weights.network.std))
    for photograph in photographs:
        seen = torch.from_numpy(photograph[16:240, 16:240].copy()).double().permute(2, 0, 1) / 255
        model(((seen - mean) / std)[None])
    return {layer: torch.stack(responses) for layer, responses in kept.items()}


def value(subject, responses, n):
    """A subject's value for a photograph by hand."""
    total = 0.0
    for unit in subject.units:
        response = responses[unit.layer][n]
        is_raw = subject.is_negative or subject.measure != "sum" or (unit.layer == "fc8" and len(subject.units) == 1)
        used = response[unit.unit] if is_raw else response[unit.unit].clamp_min(0)
        total += unit.weight * used.mean().item()
    if subject.measure == "cosine":
        total /= responses["conv5_1"][n].mean((1, 2)).norm().item()
    return total


def test_values_and_places_are_those_of_a_plain_loop(watcher, photographs, plain):
    look = watcher.look(photographs)
    for s, subject in enumerate(SUBJECTS):
        expected = [value(subject, plain, n) for n in range(NUM_PHOTOGRAPHS)]
        np.testing.assert_allclose(look.values_NS[:, s], expected, rtol=1e-4, atol=1e-4, err_msg=str(subject))
        if subject.unit is not None and subject.layer != "fc8":
            maps = plain[subject.layer][:, subject.unit].flatten(1)
            reached = maps.gather(1, torch.from_numpy(look.cells_NS[:, s : s + 1]).long())[:, 0]
            torch.testing.assert_close(reached, maps.amax(1), rtol=1e-4, atol=1e-4)
        else:
            assert (look.cells_NS[:, s] == NOWHERE).all()
    torch.testing.assert_close(torch.from_numpy(look.probabilities_NC), plain["fc8"].softmax(1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [1, 7, NUM_PHOTOGRAPHS])
def test_lists_are_those_of_a_plain_sort_however_photographs_are_cut(size, watcher, photographs, plain):
    lists = Lists(SUBJECTS, "fc8")
    classes = [(n * 7) % 24 if n % 3 else None for n in range(NUM_PHOTOGRAPHS)]
    for at in range(0, NUM_PHOTOGRAPHS, size):
        some = slice(at, at + size)
        numbers = 100 + np.arange(NUM_PHOTOGRAPHS)[some]
        lists.add(watcher.look(photographs[some]), numbers, classes[some])
    first = plain["fc8"].argmax(1)
    for s, subject in enumerate(SUBJECTS):
        expected = [value(subject, plain, n) for n in range(NUM_PHOTOGRAPHS)]
        is_silent = subject.measure == "sum" and not (subject.layer == "fc8" and subject.unit is not None)
        order = sorted(
            (n for n in range(NUM_PHOTOGRAPHS) if expected[n] > 0 or not is_silent), key=lambda n: (-expected[n], n)
        )[:NUM_BEST]
        found = lists.strongest.photographs_SB[s]
        assert found[found != NOBODY].tolist() == [100 + n for n in order], subject
        probabilities = lists.strongest.probabilities_SB[s][: len(order)]
        if subject.layer == "fc8" and subject.unit is not None:
            wanted = plain["fc8"].softmax(1)[order, subject.unit]
            np.testing.assert_allclose(probabilities, wanted, rtol=1e-3, atol=1e-5)
            wrong = [
                n for n in range(NUM_PHOTOGRAPHS)
                if first[n] == subject.unit and classes[n] not in (None, subject.unit)
            ]  # fmt: skip
            wrong.sort(key=lambda n: -plain["fc8"][n].softmax(0)[subject.unit])
            listed = lists.wrong.photographs_SB[s]
            assert listed[listed != NOBODY].tolist() == [100 + n for n in wrong[:NUM_BEST]]
        else:
            assert np.isnan(probabilities).all()
    assert lists.numbers() <= set(range(100, 100 + NUM_PHOTOGRAPHS))


def test_equal_values_keep_their_order_and_what_is_not_a_number_is_nobody():
    best = Best(1)
    nan, inf = math.nan, math.inf
    for numbers, values in (([0, 1, 2], [1, nan, 1]), ([3, 4], [inf, 1]), (list(range(5, 15)), [1, 2, *[1] * 8])):
        values_SN = np.array([values], np.float32)
        cells_SN = np.array([numbers], np.int32) * 10
        best.add(values_SN, np.array(numbers), cells_SN, values_SN / 2)
    assert best.photographs_SB.tolist() == [[3, 6, 0, 2, 4, 5, 7, 8, 9]]
    assert best.cells_SB.tolist() == [[30, 60, 0, 20, 40, 50, 70, 80, 90]]
    assert best.probabilities_SB[0, 1] == 1
    few = Best(2)
    few.add(
        np.array([[nan, -inf], [2, 1]], np.float32), np.arange(2), np.zeros((2, 2), np.int32), np.ones((2, 2), "f4")
    )
    assert few.photographs_SB.tolist() == [[NOBODY, NOBODY], [0, 1]]


def test_boxes_are_around_the_cell_and_within_the_picture(watcher, photographs):
    watcher.look(photographs[:1])
    rows, columns = watcher.map_shapes["conv3_1"]
    assert watcher.box("conv3_1", NOWHERE) is None
    left, top, right, bottom = watcher.box("conv3_1", 5 * columns + 9)
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((9.5 / columns, 5.5 / rows))
    assert right - left == pytest.approx(max(3 / columns, 1 / 6))
    corner = watcher.box("conv3_1", 0)
    assert corner[:2] == (0, 0)
    assert watcher.box("conv3_1", rows * columns - 1)[2:] == (1, 1)


def test_sheets_show_the_photographs_in_order_with_their_boxes():
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (128, 128, 128)]
    thumbnails = [encode_thumbnail(np.full((224, 224, 3), colour, np.uint8)) for colour in colours]
    box = (0.5, 0.25, 0.75, 0.5)
    data = draw_example_sheet([(thumbnail, box if n == 3 else (None,) * 4) for n, thumbnail in enumerate(thumbnails)])
    sheet = np.asarray(decode_example_sheet(data)).astype(int)
    assert sheet.shape == (SIDE_PX, SIDE_PX, 3)
    for n, colour in enumerate(colours):
        x, y = (100 * (n % 3) + 20, 100 * (n // 3) + 20)
        np.testing.assert_allclose(sheet[y, x], colour, atol=12)
    assert (sheet[250:, 150:] > 245).all(), "no fifth photograph"
    yellow = sheet[100 + int(0.375 * THUMBNAIL_PX), int(0.5 * THUMBNAIL_PX) + 1]
    assert yellow[0] - yellow[2] > 60, yellow
    with pytest.raises(Exception, match="not a sheet of examples: 96 x 96 px"):
        decode_example_sheet(thumbnails[0])
    with pytest.raises(Exception, match="not a sheet of examples"):
        decode_example_sheet(b"RIFF")
