"""The plan: deterministic, lazy, one layer and mode to a shard; rows and run.json as contracts."""

import json
import time
import tracemalloc

import pyarrow as pa
import pytest

from cluster import rows as row_files
from cluster.plan import Plan, RunConfig, fingerprint, make_plan
from cluster.run import Committed, Run, image_key, metadata_key, new_attempt
from cluster.storage import LocalStore
from dgn.discriminator import layout
from dgn.errors import PlanMismatch, StoreError


def plan_of(**settings):
    config = RunConfig(discriminator="vgg16-mini", **settings)
    return make_plan(config, layout("vgg16-mini"))


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


def test_ten_million_targets_start_in_seconds_and_little_memory():
    config = RunConfig(targets=("classes",), discriminator="vgg16", seeds=10_000)
    vgg = layout("vgg16")
    tracemalloc.start()
    start = time.perf_counter()
    plan = make_plan(config, vgg)
    plan.targets_sha256()
    committed = Committed(plan.num_shards)
    last = plan.shard(plan.num_shards - 1).targets[-1]
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.num_targets == 10_000_000
    assert (last.unit, last.seed) == (999, 9999)
    assert next(committed.missing()) == 0
    assert seconds < 5
    assert peak < 10_000_000


def identity(plan, **changes):
    config = RunConfig(discriminator="vgg16-mini", **changes)
    return fingerprint(plan, config.render_config("float32"), "vgg16-mini", "a" * 64, None), config


def test_a_run_of_another_configuration_is_refused(tmp_path):
    plan = plan_of(targets=("classes:0-3",))
    run = Run(LocalStore(str(tmp_path)))
    ours, config = identity(plan)
    first = run.start(ours, config, plan.num_targets, plan.num_shards)
    assert run.start(ours, config, plan.num_targets, plan.num_shards) == first
    theirs, other = identity(plan, preset="draft")
    with pytest.raises(PlanMismatch, match=r"render\.preset is standard there, draft here \(and \d+ more\)"):
        run.start(theirs, other, plan.num_targets, plan.num_shards)
    assert first.run_config == config


def test_what_is_no_run_is_said(tmp_path):
    run = Run(LocalStore(str(tmp_path)))
    with pytest.raises(StoreError, match=r"it has no run\.json"):
        run.info()
    run.store.write("run.json", b"{}")
    with pytest.raises(StoreError, match="schema version None"):
        run.info()
    run.store.write("run.json", b"no json")
    with pytest.raises(StoreError, match="no JSON"):
        run.info()


def row(attempt, target_id="fc8-00000-untrained-s0", shard=0):
    return {
        "target_id": target_id,
        "attempt": attempt,
        "shard": shard,
        "file_name": image_key(shard, attempt, target_id),
    }


def test_the_first_commit_wins_and_the_loser_cleans_up(tmp_path):
    run = Run(LocalStore(str(tmp_path)))
    first, second = row("aaaaaaaa"), row("bbbbbbbb")
    for one in (first, second):
        run.store.write(one["file_name"], b"png")
    assert run.commit(0, "aaaaaaaa", [first], {"run_id": "r"})
    assert run.commit(0, "aaaaaaaa", [first], {"run_id": "r"}), "a lost answer and a retry: still the winner"
    assert not run.commit(0, "bbbbbbbb", [second], {"run_id": "r"})
    assert list(run.store.list("images")) == [first["file_name"]]
    assert 0 in run.committed(3)
    assert list(run.committed(3).missing()) == [1, 2]


def test_rows_are_parquet_of_the_documented_schema():
    data = row_files.serialise([row(new_attempt())], {"run_id": "r", "weights_sha256": "w"})
    table = row_files.parse(data)
    assert table.schema.equals(row_files.SCHEMA)
    described = json.loads(table.schema.metadata[b"dgn"])
    assert described == {"schema_version": 1, "run_id": "r", "weights_sha256": "w"}
    assert row_files.parse(data, ["shard"]).column_names == ["shard"]
    assert pa.types.is_timestamp(table.schema.field("rendered_at").type)


def test_foreign_files_among_the_commits_are_left_alone(tmp_path):
    run = Run(LocalStore(str(tmp_path)))
    for name in ("notes.txt", "x.parquet", "000009.parquet", ".dgn-half"):
        run.store.write(f"metadata/{name}", b"")
    run.store.write(metadata_key(1), b"")
    assert list(run.committed(3).missing()) == [0, 2]


def test_shards_of_a_plan_without_blocks():
    assert Plan([], 8).num_shards == 0
