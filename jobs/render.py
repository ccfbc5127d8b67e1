"""`dgn render` and `dgn resume`: a target set becomes pictures and rows."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from cluster.index import forget_missing, update_index
from cluster.plan import Plan, RunConfig, fingerprint, make_plan
from cluster.run import RUN_FILE, Run
from cluster.storage import LocalStore, open_store, read_url
from dgn import discriminator as discriminators
from dgn import embedded, info, tuning
from dgn.decoder import FrozenDecoder, read_decoder
from dgn.errors import DgnError, ShardFailed, WeightsMismatch, WeightsMissing
from dgn.recipes import RenderConfig
from dgn.targets import Mode

log = logging.getLogger("dgn")
LOG_EVERY_S = 10.0
Settings = TypeVar("Settings", bound=BaseModel)
ASSUMED_OPS_PER_S = 50e12  # of one device, for --dry-run's estimate; an assumption, not a measurement


def load_config(path: Path | None, flags: dict[str, Any]) -> RunConfig:
    """The YAML file's settings with the flags that were given over them.

    Raises: DgnError, in one line, naming the first setting that is wrong.
    """
    settings: Any = {}
    if path is not None:
        try:
            settings = yaml.safe_load(path.read_text()) or {}
        except (OSError, UnicodeDecodeError) as error:
            raise DgnError(f"cannot read the configuration {path}: {error}") from error
        except yaml.YAMLError as error:
            raise DgnError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
        if not isinstance(settings, dict):
            raise DgnError(f"{path} holds a {type(settings).__name__}: expected settings such as 'preset: draft'")
    given = {name: value for name, value in flags.items() if value is not None}
    for name in ("targets", "modes"):
        if isinstance(settings.get(name), str):
            settings[name] = [settings[name]]
    return validated(RunConfig, {**settings, **given})


def validated(model: type[Settings], settings: dict[str, Any]) -> Settings:
    """Raises: DgnError, in one line, naming the first setting that is wrong."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][:1])
        known = "" if name in model.model_fields else f" (known: {', '.join(model.model_fields)})"
        message = first["msg"].removeprefix("Value error, ")
        raise DgnError(f"setting {name}: {message}, got {first['input']!r}{known}") from error


def render_command(url: str, config: RunConfig, dry_run: bool) -> None:
    """Checks everything that can be wrong before anything is written, then renders."""
    from cluster import driver, fleet
    from cluster.context import RunContext

    layout = discriminators.layout(config.discriminator)
    plan = make_plan(config, layout)
    config.render_config("float32")
    store = open_store(url)
    modes = {block.mode for block in plan.blocks}
    if dry_run:
        has_decoder = "pretrained" in modes and config.decoder is not None
        print_plan(plan, config, _decoder(config).width if has_decoder else None)
        if "pretrained" in modes and not has_decoder:
            print("the pretrained pictures need --decoder FILE; --modes untrained leaves them out")
        return
    paths = {"weights": config.weights, "decoder": config.decoder}
    local = {name: path for name, path in paths.items() if path and "://" not in path and path != embedded.DECODER}
    absolute = {name: str(Path(path).absolute()) for name, path in local.items()}
    config = config.model_copy(update=absolute)  # dgn resume may be typed in another folder
    if "pretrained" in modes and config.decoder is None:
        raise DgnError(
            "pretrained mode without a decoder: give --decoder FILE (dgn pretrain IMAGES FILE makes one; "
            f"'{embedded.DECODER}' is the one that ships with dgn), or --modes untrained"
        )
    weights = discriminators.load_weights(config.discriminator, Path(config.weights) if config.weights else None)
    decoder = _decoder(config) if "pretrained" in modes else None
    tuned = tuning.load(tuning.stored_at())
    store.check(must_write=True)
    log_to_stderr(config.log_format)
    log.info("%s pictures in %s shards, Ray starts", f"{plan.num_targets:,}", f"{plan.num_shards:,}")
    fleet.connect(config.log_format)
    workers = fleet.choose_workers(config.workers_range, config.gpus_per_worker)
    if isinstance(store, LocalStore):
        fleet.check_shared(store)
    run = Run(store)
    precision: str = config.precision
    if precision == "auto" and store.exists(RUN_FILE):  # other machines may be up than when the run began
        precision = run.info().run_config.precision
    config = config.model_copy(update={"precision": resolve_precision(precision, workers.gpus_each > 0, tuned)})
    render_config = config.render_config(config.precision, decoder and decoder.width)  # type: ignore[arg-type]
    identity = fingerprint(
        plan, render_config, config.discriminator, weights.sha256, decoder.sha256 if decoder else None
    )
    run_info = run.start(identity, config, plan.num_targets, plan.num_shards)
    context = RunContext(
        url=store.url,
        run_id=run_info.run_id,
        plan=plan,
        render=render_config,
        fingerprint=identity,
        batch_size=None if config.batch_size == "auto" else config.batch_size,
        tuned=tuned,
    )
    forget_missing(run)
    with progress_shown() as observe:
        frozen = decoder.weights if decoder else None
        progress = driver.Driver(run, run_info, context, weights, frozen, workers, observe).loop()
    counts = ", ".join(f"{count} {name}" for name, count in sorted(progress.statuses.items()))
    outcomes = f"this time {counts}" if counts else "nothing was left to do"
    print(f"{progress.pictures_done} of {progress.num_targets} pictures in {store.url} ({outcomes})")
    try:
        update_index(run)
    except DgnError as error:
        if not progress.quarantined:
            raise
        log.error("the index is not up to date: %s", error)
    if progress.quarantined:
        listed = ", ".join(f"{shard:06d}" for shard in progress.quarantined[:20])
        raise ShardFailed(
            f"{len(progress.quarantined)} shards failed again and again and are left out: {listed}; "
            f"dgn failed {url} tells why, the same line tries them again"
        )


def resume_command(url: str, given: dict[str, Any]) -> None:
    """`given`: paths that may have moved since (the fingerprint tells whether the files are the same), and workers."""
    store = open_store(url)
    store.check(must_write=False)
    begun_with = Run(store).info().run_config.model_dump()
    new = {name: value for name, value in given.items() if value is not None}
    render_command(url, validated(RunConfig, {**begun_with, **new}), dry_run=False)


def _decoder(config: RunConfig) -> FrozenDecoder:
    """Raises: WeightsMissing, WeightsMismatch."""
    source = str(embedded.weights_path(config.decoder) if config.decoder == embedded.DECODER else config.decoder)
    try:
        data = read_url(source)
    except FileNotFoundError as error:
        raise WeightsMissing(f"no decoder at {source}: dgn pretrain IMAGES OUT.safetensors makes one") from error
    decoder = read_decoder(data, source)
    if config.width not in (None, decoder.width):
        raise WeightsMismatch(
            f"decoder {source} was made with --width {decoder.width:g}, not {config.width:g}: leave --width out, or "
            "give the decoder of that width"
        )
    return decoder


def resolve_precision(
    precision: str, has_gpus: bool, tuned: Mapping[str, tuning.Tuned] | None = None
) -> Literal["float32", "bfloat16"]:
    """`auto` is bfloat16 where the hardware multiplies it: on the cluster's GPUs, or on this machine's CPU; but what is
    tuned for this machine's device, where that is of the kind that renders."""
    if precision in ("float32", "bfloat16"):
        return precision  # type: ignore[return-value]
    if has_gpus:
        from cluster.fleet import has_old_gpus

        if has_old_gpus():
            return "float32"
    device = tuning.device_at_hand()
    own = tuned.get(tuning.device_model(device)) if tuned and (device.type == "cuda") == has_gpus else None
    if own:
        log.info("tuned: %s, the faster on this machine's %s", own.precision, own.device)
        return own.precision
    if has_gpus:
        return "bfloat16"
    import torch

    return "bfloat16" if tuning.has_bfloat16(torch.device("cpu")) else "float32"


def print_plan(plan: Plan, config: RunConfig, decoder_width: float | None = None) -> None:
    """What --dry-run shows: targets and shards by mode and layer, memory per target, operations."""
    precision: Literal["float32", "bfloat16"] = "float32" if config.precision == "float32" else "bfloat16"
    render_config: RenderConfig = config.render_config(precision, decoder_width)
    print(f"{plan.num_targets:,} targets in {plan.num_shards:,} shards, preset {config.preset}, {config.discriminator}")
    total_ops = 0
    costs: dict[tuple[Mode, str], info.Cost] = {}
    for block in plan.blocks:
        cost = costs[block.mode, block.layer] = info.cost(render_config, block.mode, config.discriminator, block.layer)
        ops = cost.ops_per_update * cost.num_updates
        total_ops += ops * len(block)
        print(f"  {block.mode:<10} {block.layer:<12} {len(block):>9,} targets  {ops / 1e12:8.1f} TFLOP a picture")
    for mode in dict.fromkeys(block.mode for block in plan.blocks):
        needed = max(cost.bytes_per_target for (of_mode, _), cost in costs.items() if of_mode == mode)
        print(f"  memory per {mode} target: {needed / 1e6:.0f} MB at most")
    hours = total_ops / ASSUMED_OPS_PER_S / 3600
    rate = f"{ASSUMED_OPS_PER_S / 1e12:.0f} TFLOP/s"
    print(f"  {total_ops / 1e15:,.1f} PFLOP in all: {hours:,.1f} device hours at an assumed {rate}")


def log_to_stderr(log_format: Literal["text", "json"] = "text") -> None:
    """Lines of text; as JSON they are Ray's to write, from `fleet.connect` on."""
    if log_format == "text":
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for chatty in ("ray", "botocore", "aiobotocore", "s3fs", "fsspec", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


@contextmanager
def progress_shown() -> Iterator[Callable[[Any], None]]:
    """An observer for the driver: a bar with pictures per minute and time left on a terminal, log lines elsewhere."""
    if not sys.stderr.isatty():
        yield _log_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("pictures", rate="")

        def observe(progress: Any) -> None:
            rate = f"{progress.pictures_per_minute:.1f}/min" if progress.workers_ready else "starting workers"
            bar.update(task, completed=progress.pictures_done, total=progress.num_targets, rate=rate)

        yield observe


def _log_progress() -> Callable[[Any], None]:
    last: tuple[int, float] = (-1, 0.0)

    def observe(progress: Any) -> None:
        nonlocal last
        if progress.pictures_done not in (0, last[0]) and time.monotonic() - last[1] > LOG_EVERY_S:
            last = (progress.pictures_done, time.monotonic())
            rate = progress.pictures_per_minute
            num_left = progress.num_targets - progress.pictures_done
            left = f", {num_left / rate:.0f} minutes left" if rate and num_left else ""
            log.info(
                "%d of %d pictures, %.1f a minute%s, %d retries",
                progress.pictures_done, progress.num_targets, rate, left, progress.retries,
                extra={"run": progress.run_id},
            )  # fmt: skip

    return observe
