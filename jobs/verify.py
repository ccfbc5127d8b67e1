"""`dgn verify`: checks that every target is present once, intact, and scored as its row says."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from dgn.errors import Incomplete
from dgn.jobs.common.arguments import OwnLabels, OwnNetwork, OwnWeights, RunArgument
from dgn.jobs.common.progress import log_to_stderr
from dgn.runs.readers import start_server
from dgn.text import plural, printable


def command(
    run: RunArgument,
    sample: Annotated[int, typer.Option(min=0, help="Number of pictures to score again.")] = 8,
    weights: OwnWeights = None,
    discriminator: OwnNetwork = None,
    labels: OwnLabels = None,
) -> None:
    """Checks all shards, then scores a sample again. An interrupted check continues.

    Raises: Incomplete if anything is missing, duplicated, damaged or scored differently.
    """
    if not os.environ.get("RAY_ADDRESS"):
        start_server()  # which imports what reads a run, while this process does
    from dgn.jobs.checks.whole import check
    from dgn.runs.run import Run

    opened = Run.at(run)
    log_to_stderr()
    found = check(opened, {"weights": weights, "discriminator": discriminator, "labels": labels}, sample)
    for problem in found.problems:
        print(printable(problem))
    print(
        f"{plural(found.num_targets, 'target')} expected, {found.num_found:,} found, {found.num_extra:,} duplicate or "
        f"stray, {found.num_scored:,} scored again, {plural(found.num_problems, 'problem')}"
    )
    if found.num_problems:
        raise Incomplete(
            f"{run} is not whole: {found.problems[0]}; dgn resume {run} renders missing shards; for damaged pictures, "
            "delete their shard's file under metadata/ first"
        )
