"""`dgn resume`: continues a run with the settings it was started with."""

from __future__ import annotations

from typing import Any

from dgn.jobs.common.flags import RunArgument, with_settings
from dgn.jobs.render import render
from dgn.runs.config import RunConfig
from dgn.runs.run import Run
from dgn.runs.validation import validated


@with_settings(RunConfig, "weights", "decoder", "workers", "gpus_per_worker")
def command(run: RunArgument, settings: dict[str, Any]) -> None:
    """The flags say where to render and where files are now. Finished pictures stay: the fingerprint must match."""
    begun_with = Run.at(run).info().run_config.model_dump()
    render(run, validated(RunConfig, {**begun_with, **settings}))
