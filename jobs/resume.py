"""`dgn resume`: continues a run with the settings it was started with."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dgn.errors import DgnError
from dgn.jobs.common.arguments import RunArgument
from dgn.jobs.common.flags import with_settings
from dgn.jobs.render import conclude_whole, render
from dgn.runs.config import RunConfig
from dgn.runs.info import MAX_TRIES
from dgn.runs.run import Run
from dgn.statuses import Status

NUM_TRIES = 3


@with_settings(RunConfig, "discriminator", "weights", "labels", "decoder", "generator", "workers", "gpus_per_worker")
def command(
    run: RunArgument,
    settings: dict[str, Any],
    status: Annotated[
        str | None,
        typer.Option(
            metavar="STATUSES",
            help="Also draw targets again that ended so, such as not_converged,dead,nonfinite. Their rows stay; each "
            "gets another one, of the best of further seeds.",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_TRIES,
            help=f"{RunConfig.model_fields['seeds'].description} With --status: of each target that failed, the best "
            f"is kept. (default: {NUM_TRIES})",
        ),
    ] = None,
) -> None:
    """The flags say where to render and where files are now. Finished pictures stay: if some are missing, the
    fingerprint must match."""
    if seeds and not status:
        raise DgnError("--seeds goes with --status: expected for instance --status dead --seeds 3")
    there = Run.at(run)
    info = there.info()
    config = info.run_config
    is_code = ":" in config.discriminator or config.generator is not None  # which has to be named again
    if not (settings or status or is_code) and there.committed(info.num_shards).count == info.num_shards:
        conclude_whole(there, info)
        return
    from dgn.runs.extensions import FailedAgain  # imports PyTorch
    from dgn.runs.origin import own_config

    again = FailedAgain(_statuses(status), seeds or NUM_TRIES) if status else None
    render(run, own_config(info, settings, draws=True), again)


def _statuses(text: str) -> tuple[Status, ...]:
    try:
        return tuple(Status(name.strip()) for name in text.split(","))
    except ValueError as error:
        raise DgnError(f"--status {text}: expected one or more of {', '.join(Status)}, joined by commas") from error
