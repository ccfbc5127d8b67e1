"""`dgn doctor`: checks whether this machine is ready."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from dgn.cost.tuned import load_tuned, tuned_path
from dgn.errors import Incomplete, WeightsMissing
from dgn.jobs.common.flags import with_settings
from dgn.runs.config import RunConfig
from dgn.runs.stores import open_store
from dgn.runs.validation import validated


@with_settings(RunConfig, "discriminator", "weights")
def command(
    settings: dict[str, Any],
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Also check that this folder or bucket can be written.")
    ] = None,
) -> None:
    """Prints one line per check. Raises: DgnError for the first problem."""
    from dgn.engine import describe_devices, engine_for
    from dgn.networks.weights import load_weights

    config = validated(RunConfig, settings)
    print(", ".join(f"{package} {version(package)}" for package in ("torch", "torchvision", "ray")))
    for device in describe_devices():
        print(f"ok  device {device}")
    model = engine_for().model
    tuned = load_tuned(tuned_path()).get(model)
    print(f"ok  tuning of {model}: {tuned or 'none; dgn tune measures what is fastest here'}")
    is_missing = False
    try:
        weights = load_weights(config.discriminator, Path(config.weights) if config.weights else None)
        print(f"ok  weights {weights.source} for {config.discriminator}, sha256 {weights.sha256[:12]}")
    except WeightsMissing as error:
        print(f"--  weights: {error}")
        is_missing = True
    if run is not None:
        store = open_store(run)
        store.check(must_write=True)
        print(f"ok  store {store.url} can be written and supports create-once")
    if is_missing:
        raise Incomplete(f"{config.discriminator} has no weights here: give --weights FILE")
