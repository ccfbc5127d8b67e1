"""`dgn verify`: is everything there, once, whole, and as its row says?"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from cluster.plan import Plan, make_plan
from cluster.run import Damaged, Run, RunInfo
from dgn import discriminator as discriminators
from dgn import picture
from dgn.discriminator import Discriminator, FrozenWeights
from dgn.errors import DgnError, ShardFailed, WeightsMissing, printable
from dgn.targets import Target
from jobs.status import open_run

RELATIVE_TOLERANCE = 1e-3  # between machines: float32 convolutions in another order
SHOWN = 20


def verify_command(url: str, sample: int, weights: str | None) -> None:
    """Raises: ShardFailed with a count where anything is missing, twice, broken or scored otherwise."""
    run = open_run(url)
    info = run.info()
    plan = own_plan(run, info)
    committed = run.committed(info.num_shards)
    problems: list[str] = []
    reservoir: list[tuple[Target, dict[str, Any]]] = []
    num_pictures = num_found = 0
    stream = random.Random(info.run_id)
    tables = run.tables(index for index in range(plan.num_shards) if index in committed)
    for index in range(plan.num_shards):
        if index not in committed:
            problems.append(f"shard {index:06d} is missing ({len(plan.shard(index))} targets)")
            continue
        targets = {target.target_id: target for target in plan.shard(index).targets}
        for row in next(tables).to_pylist():
            name = row["target_id"]
            num_pictures += 1
            target = targets.pop(name, None)
            if target is None:
                problems.append(f"{name} is there twice or does not belong to shard {index:06d}")
                continue
            num_found += 1
            if row["file_name"] is None:
                continue
            problems += _check_file(run, row)
            if len(reservoir) < sample:
                reservoir.append((target, row))
            elif sample and (slot := stream.randrange(num_pictures)) < sample:
                reservoir[slot] = (target, row)
        problems += [f"{name} has no row in shard {index:06d}" for name in targets]
    num_scored = 0
    if not problems and reservoir:
        problems += _score_again(run, Discriminator(own_weights(info, weights)), reservoir)
        num_scored = len(reservoir)
    for problem in problems[:SHOWN]:
        print(printable(problem))
    print(
        f"{info.num_targets} targets expected, {num_found} found, {num_pictures - num_found} twice or stray, "
        f"{num_scored} scored again, {len(problems)} problems"
    )
    if problems:
        raise ShardFailed(
            f"{url} is not whole: {problems[0]}; dgn resume {url} renders shards that are missing, and one whose "
            "pictures are missing or damaged once its file under metadata/ is deleted"
        )


def _check_file(run: Run, row: dict[str, Any]) -> list[str]:
    try:
        run.whole_picture(row["file_name"], row["sha256"])
    except Damaged as error:
        return [str(error)]
    return []


def own_plan(run: Run, info: RunInfo) -> Plan:
    """The run's targets. Raises: DgnError where its configuration gives others than it was begun with."""
    config = info.run_config
    plan = make_plan(config, discriminators.layout(config.discriminator))
    counts = (plan.num_targets, plan.num_shards) == (info.num_targets, info.num_shards)
    if not counts or plan.targets_sha256() != info.fingerprint["targets_sha256"]:
        raise DgnError(f"{run.store.url}: run.json's configuration does not give its own target list; it was edited")
    return plan


def own_weights(info: RunInfo, given: str | None, flag: str = "--weights") -> FrozenWeights:
    """The weights that made the run's pictures: its configuration's, or those that `flag` gives where they moved.

    Raises: WeightsMissing, DgnError for another file.
    """
    config = info.run_config
    path = given or config.weights
    try:
        frozen = discriminators.load_weights(config.discriminator, Path(path) if path else None)
    except WeightsMissing as error:
        raise WeightsMissing(f"the network that made these pictures: {error}; {flag} FILE tells where it is") from error
    if frozen.sha256 != info.fingerprint["weights_sha256"]:
        raise DgnError(f"{frozen.source} is not the weights file of this run: give it with {flag} FILE")
    return frozen


def _score_again(run: Run, judge: Discriminator, sampled: list[tuple[Target, dict[str, Any]]]) -> list[str]:
    problems = []
    for target, row in sampled:
        again = picture.rescore([run.store.read(row["file_name"])], [target], judge)[0]
        theirs = math.nan if row["activation"] is None else row["activation"]
        if not abs(again.activation - theirs) <= RELATIVE_TOLERANCE * max(abs(theirs), 1e-6):  # nor is NaN within it
            problems.append(f"{row['target_id']}: scored {again.activation:.6g} again, its row says {theirs:.6g}")
    return problems
