"""`dgn examples`: the photographs that excite a run's units most, beside its pictures. Paper: Figures 6 and 7."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dgn.errors import Incomplete
from dgn.jobs.common.arguments import OwnLabels, OwnNetwork, OwnWeights, RunArgument
from dgn.jobs.common.flags import with_settings
from dgn.jobs.common.printing import print_json
from dgn.jobs.common.progress import log_to_stderr, render_progress
from dgn.runs.config import RunConfig
from dgn.runs.examples import Done, Examples
from dgn.runs.run import Run
from dgn.runs.validation import validated
from dgn.text import A_BUCKET, plural, printable


@with_settings(RunConfig, "workers", "gpus_per_worker", "log_format")
def command(
    run: RunArgument,
    images: Annotated[
        str,
        typer.Argument(
            metavar="IMAGES",
            help=f"A folder, or {A_BUCKET}, of photographs, or of Parquet files with an image column.",
        ),
    ],
    settings: dict[str, Any],
    column: Annotated[str, typer.Option(help="Column of the pictures in Parquet files.")] = "image",
    discriminator: OwnNetwork = None,
    discriminator_weights: OwnWeights = None,
    discriminator_labels: OwnLabels = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was looked at as JSON.")] = False,
) -> None:
    """Looks at what was not looked at before. If folders are named after classes, their photographs also show what the
    network gets wrong.

    Raises: Incomplete if shards are missing.
    """
    chosen = validated(RunConfig, settings)
    opened = Run.at(run)
    opened.info()
    log_to_stderr(chosen.log_format)
    from dgn.cluster.examples import find_examples

    moved = {"discriminator": discriminator, "weights": discriminator_weights, "labels": discriminator_labels}
    with render_progress("photographs") as observe:
        job = find_examples(opened, images, column, moved, chosen.workers_range, chosen.gpus_per_worker, observe)
    if job.done is None:
        assert job.progress is not None
        left = job.progress.num_shards - job.progress.shards_done
        why = next((failure["error"] for failure in reversed(list(Examples.of(opened).failures()))), "unknown")
        raise Incomplete(
            f"{plural(left, 'shard')} of photographs failed repeatedly, the last with: {why}; repeat the command to "
            "try again"
        )
    if as_json:
        print_json(vars(job.done))
    else:
        for line in _summary(job.done, opened.store.url):
            print(printable(line))


def _summary(done: Done, url: str) -> list[str]:
    num_read = done.num_photographs - done.num_unreadable
    parts = [plural(num_read, "photograph")]
    if done.num_copies:
        parts.append(f"{done.num_copies:,} of them copies of others, which count once")
    if done.num_unreadable:
        parts.append(f"{done.num_unreadable:,} unreadable, such as {done.unreadable[0]}")
    if done.left_out:
        parts.append(f"left out: {done.left_out}")
    parts.append(f"{done.num_with_class:,} in folders named as classes" if done.num_with_class else "no known classes")
    found = f"{plural(done.num_examples, 'example')} for {plural(done.num_subjects, 'unit')} of {url}"
    return [found, f"  from {'; '.join(parts)}"]
