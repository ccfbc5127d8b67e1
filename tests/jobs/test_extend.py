"""`dgn render --extend` and `dgn resume --status`: more targets for a run that is there already."""

import shutil

import numpy as np
import pytest

from dgn.networks.registry import network_named
from dgn.runs.extensions import FailedAgain, MoreTargets, extended
from dgn.runs.plan import make_plan
from dgn.runs.run import Run
from dgn.statuses import Status
from tests.helpers.rows import assert_one_line, every_row, times

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def run(rendered, tmp_path):
    """Classes 0 to 2 and 7, a mix, a group and two filters, with seed 0."""
    return shutil.copytree(rendered, tmp_path / "run")


def by_id(run):
    return {row["target_id"]: row for row in every_row(run)}


def test_a_run_gets_more_targets_and_its_own_stay(run, dgn):
    before = by_id(run)
    code, out, err = dgn("render", run, "--extend", "--targets", "classes:2-3", "--seeds", "2", "--workers", "1")
    assert code == 0, err
    assert out.startswith("11 of 11 pictures in ")
    after = by_id(run)
    assert {name: after[name] for name in before} == before
    added = {"fc8-00002-untrained-s1", "fc8-00003-untrained-s0", "fc8-00003-untrained-s1"}
    assert after.keys() - before.keys() == added
    code, out, _ = dgn("verify", run, "--sample", "11")
    assert (code, out) == (0, "11 targets expected, 11 found, 0 duplicate or stray, 11 scored again, 0 problems\n")
    code, out, _ = dgn("resume", run)
    assert (code, "11 of 11 pictures" in out, "all were there already" in out) == (0, True, True)


def test_failed_targets_get_a_row_of_the_best_of_further_seeds(run, dgn):
    before = by_id(run)
    statuses = ("not_converged", "dead")
    failed = {row["unit"] for row in before.values() if row["layer"] == "fc8" and row["status"] in statuses}
    assert failed - {None}, "after six updates"
    code, out, err = dgn("resume", run, "--status", ",".join(statuses), "--seeds", "2", "--workers", "1")
    assert code == 0, err
    again = by_id(run)
    assert {name: again[name] for name in before} == before
    added = {name: again[name] for name in again.keys() - before.keys()}
    assert {row["unit"] for row in added.values() if row["layer"] == "fc8"} == failed
    assert all(name.endswith("-s1to2") for name in added)

    classes = sorted(failed - {None})
    targets = [f"classes:{unit}" for unit in classes]
    code, out, err = dgn(
        "render", run, "--extend", "--targets", *targets, "--seed", "1", "--seeds", "2", "--workers", "1"
    )
    assert code == 0, err
    tries = by_id(run)
    for unit in classes:
        one, other = (tries[f"fc8-{unit:05d}-untrained-s{seed}"] for seed in (1, 2))
        best = max(one, other, key=lambda row: (row["status"] == "ok", row["activation"]))
        kept = added[f"fc8-{unit:05d}-untrained-s1to2"]
        assert (kept["seed"], kept["activation"], kept["sha256"]) == (best["seed"], best["activation"], best["sha256"])
    code, out, _ = dgn("verify", run, "--sample", "0")
    assert (code, ", 0 problems" in out) == (0, True)
    code, out, _ = dgn("gallery", "build", run)
    assert (code, out.startswith(f"{len(tries)} pictures: ")) == (0, True)


def test_what_was_added_draws_no_other_targets(run, dgn, tmp_path):
    """The file of directions that it names was written anew, or the run is named with other settings."""
    opened, file = Run.at(str(run)), tmp_path / "a.npy"
    np.save(file, np.eye(8))
    info = opened.info()
    layers = network_named("vgg16-mini").layers
    plan = make_plan(info.run_config, layers)
    more = MoreTargets((f"direction:conv1_1:{file}",), None, 0, 1).after(plan, opened, layers)
    info = opened.extend(info, more)
    again = FailedAgain((Status.NOT_CONVERGED, Status.DEAD), 2)
    opened.extend(info, again.after(extended(plan, more, layers), opened, layers))
    before = times(run)
    other = ("--targets", "classes:0", "--discriminator", "vgg16-mini", "--workers", "1")
    assert_one_line(dgn("render", run, *other), 2, "holds a run with other settings")
    np.save(file, np.eye(8)[:4])
    assert_one_line(dgn("resume", run), 2, "extensions/000001.json does not give the targets that it gave")
    assert times(run) == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("render --extend", "--extend: give the targets to add with --targets"),
        ("render --extend --targets classes:0", "has all of these targets already"),
        ("render --extend --targets classes:99", "unknown unit 99"),
        ("render --extend --targets classes:9 --preset paper", "render.preset is standard there, paper here"),
        ("render --extend --targets classes:9 --dry-run", "leave --dry-run and --config out"),
        ("render --extend --targets all", "began without pretrained targets, so without a decoder"),
        ("render --extend --targets classes:9 --modes pretrained --decoder photographs", "began without pretrained"),
        ("resume --status failed", "--status failed: expected one or more of ok, suppressed, not_converged"),
        ("resume --seeds 3", "--seeds goes with --status"),
        ("resume --status dead --seeds 1000000000", "should be less than or equal to 1000"),
        ("resume --status suppressed", "there is nothing to draw again"),
    ],
)
def test_what_cannot_be_added_is_told_in_one_line(line, says, run, dgn):
    before = times(run)
    command, *flags = line.split()
    assert_one_line(dgn(command, run, *flags), 2, says)
    assert times(run) == before
