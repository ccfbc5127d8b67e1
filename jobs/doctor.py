"""`dgn doctor`: checks whether this machine is ready."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgn.cost.tuned import load_tuned, tuned_path
from dgn.errors import Incomplete, WeightsMissing
from dgn.jobs.common.flags import with_settings
from dgn.runs.config import NETWORK_SETTINGS, RunConfig
from dgn.runs.stores import Store, open_store
from dgn.runs.stores.base import NUM_WRITERS
from dgn.runs.validation import validated
from dgn.text import as_flag, plural

if TYPE_CHECKING:
    from dgn.networks.weights import NetworkWeights

NUM_ROUNDS = 4  # of writers that create a key at once


@with_settings(RunConfig, *NETWORK_SETTINGS)
def command(
    settings: dict[str, Any],
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Also check that this folder or bucket can be written.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also measure the network's accuracy on photographs with known classes: in folders named as the "
            "classes, or with names such as 668_mosque.jpg.",
        ),
    ] = None,
) -> None:
    """Prints one line per check.

    Raises: DgnError for the first problem; Incomplete if the network lacks weights or sees photographs wrongly.
    """
    from dgn.engine import describe_devices, engine_for
    from dgn.runs.networks import load_network

    config = validated(RunConfig, settings)
    print(", ".join(f"{package} {version(package)}" for package in ("torch", "torchvision", "ray")))
    for device in describe_devices():
        print(f"ok  device {device}")
    model = engine_for().model
    tuned = load_tuned(tuned_path()).get(model)
    print(f"ok  tuning of {model}: {tuned or 'none; dgn tune measures what is fastest here'}")
    problem = None
    try:
        weights = load_network(config)
        print(f"ok  weights {weights.source} for {weights.network.name}, sha256 {weights.sha256[:12]}")
        for remark in weights.remarks:
            print(f"    {remark}")
        if images is not None:
            problem = _check_accuracy(weights, images)
    except WeightsMissing as error:
        print(f"--  weights: {error}")
        problem = f"{config.discriminator} has no weights here: give --weights FILE"
    if run is not None:
        _check_store(open_store(run))
    if problem:
        raise Incomplete(problem)


def _check_store(store: Store) -> None:
    """Raises: StoreError if the store cannot be used."""
    for _ in range(NUM_ROUNDS):
        store.check(must_write=True)
    raced = f"of {NUM_WRITERS} writers at once, one created each of {NUM_ROUNDS} keys"
    print(f"ok  store {store.url} can be written; {raced}")
    if remark := store.remark():
        print(f"    {remark}")


def _check_accuracy(weights: NetworkWeights, images: Path) -> str | None:
    """Prints the network's accuracy. Returns what is wrong with it, if it looks wrong."""
    from dgn.pictures.accuracy import measure_accuracy

    found = measure_accuracy(weights, images)
    shares = f"{found.first:.0%} first, {found.top5:.0%} in its first five"
    left_out = [
        f"{num:,} {why}"
        for num, why in ((found.num_without_class, "without a class"), (found.num_unreadable, "that cannot be read"))
        if num
    ]
    what = f"accuracy of {weights.network.name} on {plural(found.num_photographs, 'photograph')}: {shares}"
    print(f"{'--' if found.better else 'ok'}  {what}")
    if left_out:
        print(f"    left out photographs: {', '.join(left_out)}")
    if found.better is None:
        return None
    settings, share = found.better
    mean, std = (as_flag(settings[name]) for name in ("mean", "std"))
    flags = f"--mean {mean} --std {std} --value-range {settings['value_range']:g}"
    return f"the network's preprocessing looks wrong: {share:.0%} are first with {flags}"
