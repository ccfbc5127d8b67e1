"""Targets that are added to a run: none twice, none moved, and those that failed once more."""

import itertools
import json

import numpy as np
import pytest

from dgn.errors import DgnError, StoreError, TargetError
from dgn.networks.registry import network_named
from dgn.runs.config import RunConfig
from dgn.runs.extensions import FailedAgain, MoreTargets, extended, own_plan, with_extensions
from dgn.runs.plan import make_plan
from dgn.runs.run import Run
from dgn.statuses import Status
from tests.helpers.fake_runs import write_fake_run
from tests.helpers.rows import every_row

LAYERS = network_named("vgg16-mini").layers


def plan_of(*targets, **settings):
    return make_plan(RunConfig(discriminator="vgg16-mini", targets=targets, shard_size=4, **settings), LAYERS)


def ids(plan):
    return [target.target_id for index in range(plan.num_shards) for target in plan.shard(index).targets]


@pytest.fixture
def run(tmp_path):
    """Of VGG-16's first 40 classes, four to a shard, some of which failed."""
    return write_fake_run(str(tmp_path / "run"), targets=["classes:0-39"], shard_size=4, has_pictures=False)


SPECS = [
    ("classes:0-3",), ("classes:2-7", "filters:conv1_1:0-2"), ("mix:classes:1+2", "classes:1"), ("filters:conv1_1",),
]  # fmt: skip
SEEDS = [(0, 1), (0, 3), (2, 2), (5, 1)]


@pytest.mark.parametrize(("old", "new"), [*itertools.product(SPECS, repeat=2)])
def test_what_is_added_is_what_the_run_lacks(old, new, run):
    for (seed, seeds), (more_seed, more_seeds) in itertools.product(SEEDS, repeat=2):
        before = plan_of(*old, seed=seed, seeds=seeds)
        wanted = set(ids(plan_of(*new, seed=more_seed, seeds=more_seeds)))
        more = MoreTargets(new, None, more_seed, more_seeds)
        if wanted <= set(ids(before)):
            with pytest.raises(DgnError, match="has all of these targets already"):
                more.after(before, run, LAYERS)
            continue
        extension = more.after(before, run, LAYERS)
        after = extended(before, extension, LAYERS)
        assert ids(after)[: before.num_targets] == ids(before), "shards keep their numbers"
        added = ids(after)[before.num_targets :]
        assert len(added) == len(set(added)) == extension.num_targets
        assert set(added) == wanted - set(ids(before))
        assert after.num_shards == before.num_shards + extension.num_shards
        assert after.targets_sha256() == extension.targets_sha256 != before.targets_sha256()


def test_directions_are_told_apart_by_name_and_numbers(tmp_path, run):
    files = [str(tmp_path / f"{name}.npy") for name in "ab"]
    vectors = np.eye(8, dtype=np.float32)
    np.save(files[0], vectors[:4])
    np.save(files[1], vectors[[0, 1, 6, 7]])
    specs = [f"direction:conv1_1:{file}" for file in files]
    before = plan_of(specs[0])
    for again in ([specs[0]], specs):
        wanted = set(ids(plan_of(*again))) - set(ids(before))
        more = MoreTargets(tuple(again), None, 0, 1)
        if not wanted:
            with pytest.raises(DgnError, match="has all"):
                more.after(before, run, LAYERS)
        else:
            after = extended(before, more.after(before, run, LAYERS), LAYERS)
            assert set(ids(after)[before.num_targets :]) == wanted


def test_a_direction_is_the_same_in_another_type_and_length(tmp_path, run):
    file = tmp_path / "a.npy"
    vectors = np.eye(8, dtype=np.float32) + 0.1
    np.save(file, vectors)
    before = plan_of(f"direction:conv1_1:{file}")
    np.save(file, 3 * vectors.astype(np.float64))
    assert ids(plan_of(f"direction:conv1_1:{file}")) == ids(before)
    with pytest.raises(DgnError, match="has all"):
        MoreTargets((f"direction:conv1_1:{file}",), None, 0, 1).after(before, run, LAYERS)


def test_failed_targets_are_drawn_again_until_a_try_succeeds(run, tmp_path):
    layers = network_named("vgg16").layers
    plan = make_plan(run.info().run_config, layers)
    rows = every_row(tmp_path / "run")
    failed = {row["unit"] for row in rows if row["status"] in ("dead", "not_converged")}
    others = {row["unit"] for row in rows if row["status"] == "nonfinite"}
    assert failed
    again = FailedAgain((Status.DEAD, Status.NOT_CONVERGED), 3)
    first = again.after(plan, run, layers)
    twice = extended(plan, first, layers)
    names = ids(twice)[plan.num_targets :]
    assert names == [f"fc8-{unit:05d}-untrained-s1to3" for unit in sorted(failed)]
    assert not failed & others
    tries = twice.shard(twice.num_shards - 1).targets[-1].tries
    assert [one.target_id for one in tries] == [f"fc8-{max(failed):05d}-untrained-s{seed}" for seed in (1, 2, 3)]

    info = run.extend(run.info(), first)
    assert (info.num_targets, info.num_shards) == (twice.num_targets, twice.num_shards)
    mended = min(failed)
    for index in range(plan.num_shards, twice.num_shards):
        targets = twice.shard(index).targets
        commit(run, index, [(one, "ok" if one.unit == mended else "dead") for one in targets])
    second = again.after(twice, run, layers)
    names = ids(extended(twice, second, layers))[twice.num_targets :]
    assert names == [f"fc8-{unit:05d}-untrained-s4to6" for unit in sorted(failed - {mended})]
    with pytest.raises(DgnError, match="is suppressed, or a later try of it succeeded"):
        FailedAgain((Status.SUPPRESSED,), 3).after(twice, run, layers)


@pytest.mark.parametrize("num_tries", [1, 2])
def test_tries_that_succeeded_or_wait_are_not_drawn_again(run, num_tries):
    """An interrupted job leaves tries to draw, and its command is repeated."""
    layers = network_named("vgg16").layers
    plan = make_plan(run.info().run_config, layers)
    again = FailedAgain((Status.DEAD, Status.NOT_CONVERGED), num_tries)
    first = again.after(plan, run, layers)
    run.extend(run.info(), first)
    twice = extended(plan, first, layers)
    for index in range(plan.num_shards, twice.num_shards):
        with pytest.raises(DgnError, match=r"or is not drawn yet.*; to continue the run, leave out --status"):
            again.after(twice, run, layers)
        commit(run, index, [(one, "ok") for one in twice.shard(index).targets])
    with pytest.raises(DgnError, match="or a later try of it succeeded"):
        again.after(twice, run, layers)


def commit(run, index, outcomes):
    rows = [
        {"target_id": target.target_id, "shard": index, "layer": target.layer, "mode": target.mode,
         "attempt": "0" * 8, "status": status, "file_name": None}
        for target, status in outcomes
    ]  # fmt: skip
    run.commit(index, "0" * 8, rows, {})


def test_extensions_are_created_once_and_read_in_order(run, tmp_path):
    layers = network_named("vgg16").layers
    before = run.info()
    plan = make_plan(before.run_config, layers)
    for text in ("classes:50", "classes:60-61"):
        plan_so_far = with_extensions(plan, run.info().extensions, layers)
        run.extend(run.info(), MoreTargets((text,), None, 0, 1).after(plan_so_far, run, layers))
    info = Run.at(str(tmp_path / "run")).info()
    assert [one.targets for one in info.extensions] == [("classes:50",), ("classes:60-61",)]
    assert info.num_targets == before.num_targets + 3
    assert info.targets_sha256 == with_extensions(plan, info.extensions, layers).targets_sha256()
    with pytest.raises(DgnError, match="got other targets at the same time: repeat the command"):
        run.extend(before, info.extensions[1])


def test_an_extension_whose_answer_was_lost_is_there(run, monkeypatch):
    """The store tries again, and finds its own bytes."""
    layers = network_named("vgg16").layers
    extension = MoreTargets(("classes:50",), None, 0, 1).after(make_plan(run.info().run_config, layers), run, layers)
    create = run.store.create

    def lose_answer(key, data):
        create(key, data)
        create(key, data)

    monkeypatch.setattr(run.store, "create", lose_answer)
    assert run.extend(run.info(), extension) == run.info()
    assert run.info().extensions == (extension,)


@pytest.mark.parametrize(
    "edit",
    [
        {"seed": 7}, {"num_shards": 2}, {"targets_sha256": ""},
        {"again": [{"block": 1, "groups": [0], "seed": 1, "tries": 1}]},
        {"again": [{"block": 0, "groups": [40], "seed": 1, "tries": 1}]},
    ],
)  # fmt: skip
def test_an_extension_that_gives_other_targets_is_refused(edit, run, tmp_path):
    layers = network_named("vgg16").layers
    config = run.info().run_config
    run.extend(run.info(), MoreTargets(("classes:50",), None, 0, 1).after(make_plan(config, layers), run, layers))
    assert own_plan(run, run.info(), config, layers).num_targets == 41
    file = tmp_path / "run" / "extensions" / "000001.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | edit))
    with pytest.raises(
        DgnError, match=r"extensions/000001\.json does not give the targets that it gave when it was made"
    ):
        own_plan(run, run.info(), config, layers)


def test_more_than_a_run_can_hold_is_refused_before_it_is_written(run, tmp_path):
    before = plan_of("classes:0")
    for seed, seeds, says in (
        (1, 10**13, r"22,500,000,000,00\d shards: expected"),
        (2**63, 1, "seeds up to 9223372036854775808"),
    ):
        with pytest.raises(TargetError, match=says):
            plan_of("classes:1-9", seed=seed, seeds=seeds)
        with pytest.raises(TargetError, match=says):
            MoreTargets(("classes:1-9",), None, seed, seeds).after(before, run, LAYERS)
    layers = network_named("vgg16").layers
    run.extend(
        run.info(),
        MoreTargets(("classes:50",), None, 0, 1).after(make_plan(run.info().run_config, layers), run, layers),
    )
    file = tmp_path / "run" / "extensions" / "000001.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_shards": 10**10}))
    with pytest.raises(StoreError, match="extensions is not what was written: 10,000,000,010 shards"):
        run.info()


def test_a_damaged_extension_is_told(run, tmp_path):
    layers = network_named("vgg16").layers
    extension = MoreTargets(("classes:50",), None, 0, 1).after(make_plan(run.info().run_config, layers), run, layers)
    run.extend(run.info(), extension)
    file = tmp_path / "run" / "extensions" / "000001.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"version": 2}))
    with pytest.raises(StoreError, match=r"000001\.json is not what was written: version"):
        run.info()
