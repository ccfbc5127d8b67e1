"""Thousands of runs on simulated clusters where all fails; tests/helpers/simulated_run.py checks each decision."""

from collections import Counter

import pytest

from dgn.cluster.events import Cause
from tests.helpers.simulated_run import SimulatedRun

NUM_RUNS = 500  # each
FIRST_SEEDS = range(0, 2000, NUM_RUNS)
MORE_SEEDS = [pytest.param(first, marks=pytest.mark.slow) for first in range(2000, 20_000, NUM_RUNS)]
FAULTS = {
    *Cause, "retry", "nothing", "quarantine", "straggler", "MoveShard", "lost answer", "machine vanished",
    "ended: store", "CheckStore", "AskSteps",
}  # fmt: skip


@pytest.mark.parametrize("first_seed", [*FIRST_SEEDS, *MORE_SEEDS])
def test_every_shard_ends_whole_or_left_out_whatever_fails(first_seed):
    counts = Counter()
    for seed in range(first_seed, first_seed + NUM_RUNS):
        try:
            counts += SimulatedRun(seed).finish()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert counts["run"] == NUM_RUNS
    assert counts.keys() >= FAULTS, "all of it has happened"
