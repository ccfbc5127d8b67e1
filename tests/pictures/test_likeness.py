"""What looks alike, against plain loops in float64."""

import numpy as np
import pytest

from dgn.pictures import likeness

NUM = likeness.NUM_QUERIES + 70  # more than one block


@pytest.fixture(scope="module")
def unit():
    """Pictures of 40 units in two groups, some with one picture alone."""
    stream = np.random.default_rng(0)
    return likeness.normalised(stream.standard_normal((NUM, 24)))


@pytest.fixture(scope="module")
def cosines(unit):
    values = unit.astype(np.float64)
    return values @ values.T


def test_the_nearest_are_those_of_highest_cosine(unit, cosines):
    seen = []
    rows, found = likeness.nearest(unit, 5, seen.append)
    for number in range(NUM):
        others = [other for other in range(NUM) if other != number]
        expected = sorted(others, key=lambda other: -cosines[number, other])[:5]
        assert rows[number].tolist() == expected
        assert np.allclose(found[number], cosines[number, expected], atol=1e-6)
    assert seen == [likeness.NUM_QUERIES, NUM]


def test_redundancy_is_the_highest_cosine_with_another_unit_of_the_group(unit, cosines):
    stream = np.random.default_rng(1)
    units = stream.integers(0, 40, NUM)
    units[7] = 40
    groups = np.where(units == 40, 2, units % 2)  # unit 40 is alone in its group
    found = likeness.redundancy(unit, groups, units)
    for number in range(NUM):
        others = [n for n in range(NUM) if groups[n] == groups[number] and units[n] != units[number]]
        if others:
            assert found[number] == pytest.approx(max(cosines[number, n] for n in others), abs=1e-6)
        else:
            assert np.isnan(found[number])
    assert np.isnan(found).sum() == 1


def test_spread_is_the_mean_distance_of_a_units_pictures(unit, cosines):
    units = np.arange(NUM) // 3
    units[-1] = 1000
    found = likeness.spread(unit, units)
    for number in range(NUM):
        own = np.flatnonzero(units == units[number])
        pairs = [1 - cosines[a, b] for a in own for b in own if a < b]
        assert (found[number] == pytest.approx(np.mean(pairs), abs=1e-6)) if pairs else np.isnan(found[number])
    assert np.isnan(found).sum() == 1


def test_few_directions_keep_the_cosines_of_what_lies_in_them():
    stream = np.random.default_rng(2)
    features = stream.random((90, 6)) @ stream.random((6, 50))  # of rank 6, not centred
    directions = likeness.main_directions([features[:30], features[30:]], 8)
    assert np.allclose(directions.T @ directions, np.eye(8), atol=1e-5)
    full, few = likeness.normalised(features), likeness.normalised(likeness.normalised(features) @ directions)
    assert np.allclose(few @ few.T, full @ full.T, atol=1e-5)
    lost = likeness.normalised(features) - full @ directions[:, :3] @ directions[:, :3].T
    singular = np.linalg.svd(full.astype(np.float64), compute_uv=False)
    assert np.square(lost).sum() == pytest.approx(np.square(singular[3:]).sum(), rel=1e-3), "the best three"


def test_on_the_map_pictures_lie_near_their_like():
    stream = np.random.default_rng(3)
    kinds = stream.standard_normal((3, 16))
    unit = likeness.normalised(np.repeat(kinds, 20, 0) + 0.1 * stream.standard_normal((60, 16)))
    places = likeness.on_map(unit, *likeness.nearest(unit, likeness.NUM_NEIGHBOURS))
    assert places.shape == (60, 2)
    assert places.min() == pytest.approx(0, abs=1e-6)
    assert places.max() == pytest.approx(1, abs=1e-6)
    assert ((places.min(0) + places.max(0)) / 2).tolist() == pytest.approx([0.5, 0.5], abs=1e-6)
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + 9 * np.eye(60)
    of_kind = np.arange(60) // 20
    assert (of_kind[distances.argmin(1)] == of_kind).all()
