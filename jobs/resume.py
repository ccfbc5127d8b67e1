"""`dgn resume`: continues a run with the settings it was started with."""

from __future__ import annotations

from typing import Any

from dgn.jobs.common.flags import RunArgument, with_settings
from dgn.jobs.render import render
from dgn.runs.config import RunConfig
from dgn.runs.run import Run


@with_settings(RunConfig, "discriminator", "weights", "labels", "decoder", "generator", "workers", "gpus_per_worker")
def command(run: RunArgument, settings: dict[str, Any]) -> None:
    """The flags say where to render and where files are now. Finished pictures stay: the fingerprint must match."""
    from dgn.runs.origin import own_config

    render(run, own_config(Run.at(run).info(), settings, draws=True))
