"""The plan: deterministic, lazy, one layer and mode to a shard."""

import tracemalloc

import pytest

from dgn.networks.registry import network_named
from dgn.runs.config import RunConfig
from dgn.runs.plan import Plan, make_plan
from dgn.runs.shards import Committed


def plan_of(**settings):
    config = RunConfig(discriminator="vgg16-mini", **settings)
    return make_plan(config, network_named("vgg16-mini").layers)


def test_every_target_is_in_one_shard_of_one_layer_and_mode():
    plan = plan_of(targets=("all", "mix:classes:1+2"), shard_size=7, seeds=2)
    ids = []
    for index in range(plan.num_shards):
        targets = plan.shard(index).targets
        assert 1 <= len(targets) <= 7
        assert len({(t.mode, t.layer) for t in targets}) == 1
        ids += [t.target_id for t in targets]
    assert len(ids) == len(set(ids)) == plan.num_targets
    assert plan_of(targets=("all", "mix:classes:1+2"), shard_size=7, seeds=2).targets_sha256() == plan.targets_sha256()
    with pytest.raises(IndexError):
        plan.shard(plan.num_shards)


def test_ten_million_targets_take_little_memory():
    config = RunConfig(targets=("classes",), discriminator="vgg16", seeds=10_000)
    vgg = network_named("vgg16").layers
    tracemalloc.start()
    plan = make_plan(config, vgg)
    plan.targets_sha256()
    committed = Committed(plan.num_shards)
    last = plan.shard(plan.num_shards - 1).targets[-1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.num_targets == 10_000_000
    assert (last.unit, last.seed) == (999, 9999)
    assert next(committed.missing()) == 0
    assert peak < 10_000_000


def test_a_plan_without_blocks_has_no_shards():
    assert Plan([], 8).num_shards == 0


@pytest.mark.parametrize(("num_targets", "size"), [(1, 2), (12, 2), (320, 10), (1024, 32), (100_000, 32)])
def test_small_runs_are_cut_into_smaller_shards_for_several_workers(num_targets, size):
    plan = plan_of(targets=("classes:0",), modes=("untrained",), seeds=num_targets)
    assert (plan.num_targets, plan.shard_size) == (num_targets, size)
