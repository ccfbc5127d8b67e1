"""`dgn verify`: checks that every target is present once, intact, and scored as its row says."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgn.errors import DgnError, Incomplete, RunDamaged, WeightsMissing
from dgn.jobs.common.flags import RunArgument, flag
from dgn.runs.config import RunConfig
from dgn.runs.run import Run
from dgn.targets import Target
from dgn.text import plural, printable

if TYPE_CHECKING:
    from dgn.networks.frozen import FrozenNetwork
    from dgn.networks.network import Network

RELATIVE_TOLERANCE = 1e-3  # float32 convolutions add in another order on another machine
NUM_SHOWN = 20

Sample = list[tuple[Target, dict[str, Any]]]


def command(
    run: RunArgument,
    sample: Annotated[int, typer.Option(min=0, help="Number of pictures to score again.")] = 8,
    weights: flag("weights") = None,  # type: ignore[valid-type]
    discriminator: flag("discriminator") = None,  # type: ignore[valid-type]
    labels: flag("labels") = None,  # type: ignore[valid-type]
) -> None:
    """Raises: Incomplete if anything is missing, duplicated, damaged or scored differently."""
    from dgn.networks.frozen import FrozenNetwork
    from dgn.runs.origin import own_config, own_weights

    opened = Run.at(run)
    info = opened.info()
    config = own_config(info, {"weights": weights, "discriminator": discriminator, "labels": labels})
    frozen = own_weights(info, config) if sample else None
    network = frozen.network if frozen else _described(config)
    problems, sampled, num_found, num_extra = _check_rows(opened, config, network, sample)
    num_scored = 0
    if not problems and sampled and frozen:
        problems = _score_again(opened, FrozenNetwork(frozen), sampled)
        num_scored = len(sampled)
    for problem in problems[:NUM_SHOWN]:
        print(printable(problem))
    print(
        f"{plural(info.num_targets, 'target')} expected, {num_found:,} found, {num_extra:,} duplicate or stray, "
        f"{num_scored:,} scored again, {plural(len(problems), 'problem')}"
    )
    if problems:
        raise Incomplete(
            f"{run} is not whole: {problems[0]}; dgn resume {run} renders missing shards; for damaged pictures, delete "
            "their shard's file under metadata/ first"
        )


def _described(config: RunConfig) -> Network:
    """The run's network for a look at its rows, also where its weights are not."""
    from dgn.runs.networks import describe_network

    try:
        return describe_network(config)
    except WeightsMissing:
        return describe_network(config.model_copy(update={"weights": None}))


def _check_rows(run: Run, config: RunConfig, network: Network, sample: int) -> tuple[list[str], Sample, int, int]:
    """Problems, a random sample of rows with pictures, and the numbers of expected and unexpected rows."""
    from dgn.runs.origin import own_plan

    info = run.info()
    plan = own_plan(run, info, config, network)
    committed = run.committed(info.num_shards)
    problems: list[str] = []
    sampled: Sample = []
    num_rows = num_found = 0
    stream = random.Random(info.run_id)
    tables = run.tables(committed)
    for index in range(plan.num_shards):
        if index not in committed:
            problems.append(f"shard {index:06d} is missing ({len(plan.shard(index))} targets)")
            continue
        targets = {target.target_id: target for target in plan.shard(index).targets}
        for row in next(tables).to_pylist():
            name = row["target_id"]
            num_rows += 1
            target = targets.pop(name, None)
            if target is None:
                problems.append(f"{name} is a duplicate, or not of shard {index:06d}")
                continue
            num_found += 1
            if row["file_name"] is None:
                continue
            problems += _check_picture(run, row)
            if len(sampled) < sample:
                sampled.append((target, row))
            elif sample and (slot := stream.randrange(num_rows)) < sample:
                sampled[slot] = (target, row)
        problems += [f"{name} has no row in shard {index:06d}" for name in targets]
    return problems, sampled, num_found, num_rows - num_found


def _check_picture(run: Run, row: dict[str, Any]) -> list[str]:
    try:
        run.picture(row["file_name"], row["sha256"])
    except RunDamaged as error:
        return [error.problem]
    return []


def _score_again(run: Run, network: FrozenNetwork, sampled: Sample) -> list[str]:
    from dgn.pictures.scoring import read_pictures, score

    problems = []
    for target, row in sampled:
        try:
            picture = read_pictures([run.picture(row["file_name"], row["sha256"])], network.size_px)
        except DgnError as error:
            problems.append(f"{row['file_name']}: {error}")
            continue
        [again] = score(picture, [target], network)
        theirs = math.nan if row["activation"] is None else row["activation"]
        # So written that NaN is a problem.
        if not abs(again.activation - theirs) <= RELATIVE_TOLERANCE * max(abs(theirs), 1e-6):
            problems.append(f"{row['target_id']}: scored again as {again.activation:.6g}, but its row has {theirs:.6g}")
    return problems
