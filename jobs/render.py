"""`dgn render`: renders a set of targets into pictures and rows."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dgn.errors import DgnError, Incomplete
from dgn.jobs.common.arguments import RunArgument
from dgn.jobs.common.flags import load_settings, with_settings
from dgn.jobs.common.progress import log_to_stderr, render_progress
from dgn.runs.config import RunConfig
from dgn.runs.stores import open_store
from dgn.runs.validation import validated
from dgn.text import plural

if TYPE_CHECKING:
    from dgn.cluster.progress import Progress
    from dgn.runs.extensions import FailedAgain, MoreTargets
    from dgn.runs.info import RunInfo
    from dgn.runs.run import Run

log = logging.getLogger("dgn")

ADDED = ("targets", "modes", "seed", "seeds")  # the settings that --extend takes for what it adds
ASSUMED_OPS_PER_S = 50e12  # of one device, for the estimate of --dry-run; an assumption, not a measurement


@with_settings(RunConfig)
def command(
    run: RunArgument,
    settings: dict[str, Any],
    more_targets: Annotated[
        list[str] | None, typer.Argument(metavar="TARGETS", help="More targets, after --targets.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="File of settings; flags override it.")
    ] = None,
    extend: Annotated[
        bool,
        typer.Option("--extend", help="Add these targets to RUN, whose other settings stay; it may be whole or not."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan with its memory and cost; write nothing.")
    ] = False,
) -> None:
    if more_targets and "targets" not in settings:
        raise DgnError(
            f"unexpected '{more_targets[0]}': targets come after --targets, and RUN is one folder or address"
        )
    if more_targets:
        settings["targets"] = [*settings["targets"], *more_targets]
    if extend:
        if dry_run or config:
            raise DgnError("--extend takes RUN's own settings and renders: leave --dry-run and --config out")
        _extend(run, settings)
        return
    chosen = load_settings(RunConfig, config, settings)
    if dry_run:
        print_plan(run, chosen)
    else:
        render(run, chosen)


def _extend(url: str, settings: dict[str, Any]) -> None:
    from dgn.networks.directions import with_absolute_path
    from dgn.runs.extensions import MoreTargets
    from dgn.runs.origin import own_config
    from dgn.runs.run import Run

    if "targets" not in settings:
        raise DgnError("--extend: give the targets to add with --targets, such as --targets classes:9")
    own = {name: value for name, value in settings.items() if name not in ADDED}
    config = own_config(Run.at(url).info(), own, draws=True)
    added = validated(RunConfig, {**config.model_dump(), **settings})
    targets = tuple(map(with_absolute_path, added.targets))
    render(url, config, MoreTargets(targets, added.modes, added.seed, added.seeds))


def render(url: str, config: RunConfig, addition: MoreTargets | FailedAgain | None = None) -> None:
    """Renders, prints the outcome, and updates the index.

    Args:
        addition: targets to add to the run before.

    Raises: Incomplete if shards were quarantined.
    """
    from dgn.cluster import connection
    from dgn.cluster.start import start_ray_ahead
    from dgn.runs.run import Run

    log_to_stderr(config.log_format)
    with connection.until_done():
        with render_progress() as observe:
            start_ray_ahead(url, config)
            from dgn.cluster.launch import launch  # imports PyTorch, while Ray's processes do

            progress = launch(url, config, observe, addition)
        from dgn.runs.index import update_index

        run = Run.at(url)
        indexing = _beside(partial(update_index, run))  # while Ray ends
    _conclude(run, progress, indexing)


def conclude_whole(run: Run, info: RunInfo) -> None:
    """Prints the outcome of a run that lacks nothing, and updates its index, without PyTorch and Ray."""
    from dgn.cluster.progress import Progress
    from dgn.runs.index import forget_missing, update_index

    log_to_stderr(info.run_config.log_format)
    forget_missing(run)
    _conclude(run, Progress.of_whole(info), _beside(partial(update_index, run)))


def _conclude(run: Run, progress: Progress, indexing: Future[None]) -> None:
    counts = ", ".join(f"{count} {name}" for name, count in sorted(progress.statuses.items()))
    outcomes = f"now {counts}" if counts else "all were there already"
    print(f"{progress.pictures_done:,} of {plural(progress.num_targets, 'picture')} in {run.store.url} ({outcomes})")
    try:
        indexing.result()
    except DgnError as error:
        if not progress.quarantined:
            raise
        log.error("the index is not up to date: %s", error)
    if progress.quarantined:
        listed = ", ".join(f"{shard:06d}" for shard in progress.quarantined[:20])
        raise Incomplete(
            f"{plural(len(progress.quarantined), 'shard')} failed repeatedly and were left out: {listed}; "
            f"dgn failed {run.store.url} shows the errors, and repeating the command tries them again"
        )


def _beside(task: Callable[[], object]) -> Future[None]:
    """Begins a task in a thread that does not keep an interrupted command from ending."""
    ended = Future[None]()

    def run() -> None:
        try:
            task()
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)

    Thread(target=run, daemon=True).start()
    return ended


def print_plan(url: str, config: RunConfig) -> None:
    """Prints targets and shards by mode and layer, memory per target, operations, what the run has of them, and the
    workers if settings or RAY_ADDRESS say something of them.

    Raises: DgnError for settings that the run or the cluster refuses.
    """
    import torch

    from dgn.cost.counted import Cost, count_cost
    from dgn.method.precision import DTYPES
    from dgn.networks.drawable import drawable, without_weights
    from dgn.runs.decoders import needed_decoder
    from dgn.runs.networks import describe_network
    from dgn.runs.origin import compare_settings
    from dgn.runs.plan import make_plan
    from dgn.runs.run import Run

    network = describe_network(config)
    plan = make_plan(config, network.layers)
    modes = tuple(dict.fromkeys(block.mode for block in plan.blocks))
    decoder = needed_decoder(modes, config) if config.decoder or config.generator else None
    dtype = DTYPES["float32" if config.precision == "float32" else "bfloat16"]
    tried = drawable(partial(without_weights, network), plan.layers, dtype, or_float32=config.precision == "auto")
    precision: Literal["float32", "bfloat16"] = "float32" if tried.dtype == DTYPES["float32"] else "bfloat16"
    render_config = config.render_config(precision, decoder)
    drawing = decoder.on(torch.device("cpu")) if decoder else None
    run = Run(open_store(url).impatient())
    begun = run.begun()
    if begun:
        compare_settings(run, begun, config, network, decoder)
    print(
        f"{plural(plan.num_targets, 'target')} in {plural(plan.num_shards, 'shard')}, preset {config.preset}, "
        f"{network.name}"
    )
    if tried.dtype != dtype:
        print(f"  {network.name} does not run in bfloat16: with precision auto it runs in float32")
    total_ops = 0
    costs: dict[tuple[str, str], Cost] = {}
    for block in plan.blocks:
        cost = costs[block.mode, block.layer] = count_cost(render_config, block.mode, network, block.layer, drawing)
        total_ops += cost.ops_per_picture * len(block)
        num = plural(len(block), "target")
        print(f"  {block.mode:<10} {block.layer:<12} {num:>17}  {cost.ops_per_picture / 1e12:8.1f} TFLOP per picture")
    for mode in modes:
        needed = max(cost.bytes_per_target for (of_mode, _), cost in costs.items() if of_mode == mode)
        of_worker = max(cost.cpu_worker_bytes for (of_mode, _), cost in costs.items() if of_mode == mode)
        print(f"  memory per {mode} target: at most {needed / 1e6:.0f} MB; worker on a CPU: {of_worker / 1e6:,.0f} MB")
    seconds = total_ops / ASSUMED_OPS_PER_S
    unit, size = next(((u, s) for u, s in (("hours", 3600), ("minutes", 60)) if seconds > s), ("seconds", 1))
    rate = f"{ASSUMED_OPS_PER_S / 1e12:.0f} TFLOP/s"
    print(f"  {total_ops / 1e15:,.3g} PFLOP in all: {seconds / size:,.2g} device {unit} at {rate}, assumed for a GPU")
    if "pretrained" in modes and not decoder:
        print("the pretrained mode needs --decoder FILE; leave it out with --modes untrained")
    if begun:
        num_whole = run.committed(begun.num_shards).count
        print(f"  {run.store.url} has {num_whole:,} of its {plural(begun.num_shards, 'shard')}")
    if config.workers or config.gpus_per_worker is not None or os.environ.get("RAY_ADDRESS"):
        from dgn.cluster.launch import planned_workers

        workers = planned_workers(config, plan.num_shards)
        each = f"{workers.gpus_each:g} GPU, {workers.cpus_each:g} CPU"
        print(f"  {plural(workers.at_most, 'worker')}, each with {each}")
