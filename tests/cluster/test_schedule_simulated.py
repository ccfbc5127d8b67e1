"""Thousands of runs on simulated clusters where all fails; tests/helpers/simulated_run.py checks each decision."""

from collections import Counter

import pytest

from dgn.cluster.events import Cause
from tests.helpers.broken_schedules import BROKEN, ChargesEveryDeathOfABlow
from tests.helpers.simulate import explained, failure, fewest_faults
from tests.helpers.simulated_run import SimulatedRun

NUM_SEEDS, NUM_EACH = 20_000, 5000
ENOUGH = 1000  # seeds within which every broken schedule is found
HAPPENED = {
    *Cause, "retry", "nothing", "quarantine", "straggler", "MoveShard", "lost answer", "machine vanished",
    "ended: store", "CheckStore", "AskSteps",
}  # fmt: skip


@pytest.mark.parametrize("first_seed", range(0, NUM_SEEDS, NUM_EACH))
def test_every_shard_ends_whole_or_left_out_whatever_fails(first_seed):
    counts = Counter()
    for seed in range(first_seed, first_seed + NUM_EACH):
        try:
            counts.update(SimulatedRun(seed).finish())
        except Exception as error:
            raise AssertionError(explained(seed)) from error
    assert counts["run"] == NUM_EACH
    assert counts.keys() >= HAPPENED, "all of it has happened"


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_schedule_is_found(broken):
    assert any(failure(seed, broken) for seed in range(ENOUGH))


def test_a_failing_run_is_shown_with_the_fewest_faults():
    seed = next(seed for seed in range(ENOUGH) if failure(seed, ChargesEveryDeathOfABlow))
    _, all_faults = failure(seed, ChargesEveryDeathOfABlow)
    spared = fewest_faults(seed, ChargesEveryDeathOfABlow)
    _, left = failure(seed, ChargesEveryDeathOfABlow, spared)
    assert 1 <= len(left) <= 3 < len(all_faults)
    assert not any(failure(seed, ChargesEveryDeathOfABlow, spared | {number}) for number in left)
    assert f"--seed {seed} --spared " in explained(seed, ChargesEveryDeathOfABlow)
    assert failure(seed) is None


def test_a_seed_is_the_same_run_again():
    first, second = [], []
    for told in (first, second):
        SimulatedRun(7, tell=told.append).finish()
    assert first == second
    assert len(first) > 20
