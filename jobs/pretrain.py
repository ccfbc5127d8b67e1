"""`dgn pretrain`: makes a decoder, the generator of the pretrained mode, of photographs."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgn.cluster.training_settings import TrainingSettings
from dgn.errors import DgnError
from dgn.jobs.common.flags import with_settings
from dgn.jobs.common.progress import bar, log_to_stderr
from dgn.runs.stores import open_store
from dgn.runs.validation import validated
from dgn.text import A_BUCKET

if TYPE_CHECKING:
    from dgn.cluster.training import Outcome
    from dgn.cluster.training_worker import Update
    from dgn.networks.weights import NetworkWeights
    from dgn.pictures.ceiling import Ceiling
    from dgn.runs.stores.base import Store

log = logging.getLogger("dgn")


@with_settings(TrainingSettings)
def command(
    images: Annotated[
        str, typer.Argument(help=f"Folder, or {A_BUCKET}, of JPEG, PNG and WebP files, or of Parquet files.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT.safetensors", help="File to write, or object in a bucket.")],
    settings: dict[str, Any],
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of workers of recipe paper. Default: one per GPU, or without GPUs one per machine.",
        ),
    ] = None,
    column: Annotated[str, typer.Option(help="Column of Parquet files that holds the pictures.")] = "image",
    judge: Annotated[
        str | None, typer.Option(help="Network that says what it still recognises of --judge-images.")
    ] = None,
    judge_weights: Annotated[
        str | None, typer.Option(help="Weights file of the network of --judge; a path or an address.")
    ] = None,
    judge_images: Annotated[
        Path | None,
        typer.Option(help="Folder of photographs for --judge, with classes as dgn doctor --images has them."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue recipe paper from its last whole epoch.")] = False,
) -> None:
    """Writes OUT, and next to it a few reconstructions as PNG; recipe paper also a loss curve.

    Recipe paper keeps checkpoints in a folder `.training` next to OUT until OUT is written.
    """
    chosen = validated(TrainingSettings, settings)
    chosen.check(*(flag for flag, value in (("workers", workers), ("resume", resume)) if value))
    parent, name = _split(out)
    store = open_store(parent)
    store.check(must_write=True)
    if store.exists(name):
        raise DgnError(f"{out} exists: give another name, or delete it")
    from dgn.cluster import connection
    from dgn.method.decoder import serialise

    log_to_stderr()
    ceiling = _ceiling(judge, judge_weights, judge_images)
    stem = name.removesuffix(".safetensors")
    with connection.until_done():
        connection.connect()
        if chosen.recipe == "paper":
            folder = open_store(f"{parent.rstrip('/')}/{stem}.training")
            chosen, outcome = _trained(images, column, folder, chosen, workers, resume, ceiling)
        else:
            outcome = _fitted(images, column, chosen, ceiling)
    if chosen.recipe == "paper":
        store.write(f"{stem}.loss.png", _loss_curve(outcome))
    about = {
        "width": chosen.width,
        "settings": chosen.model_dump(include=None if chosen.recipe == "paper" else {"recipe", "width"}),
        "num_photos": outcome.survey.num_photographs,
        "num_held_out": len(outcome.survey.held_out),
        "photos_sha256": outcome.survey.sha256,
        "validation_error": outcome.error,
        "history": outcome.history,
    }
    store.write(f"{stem}.samples.png", _samples(outcome))
    store.write(name, serialise(outcome.decoder, about))
    if chosen.recipe == "paper":
        store.delete_folder(f"{stem}.training")
    print(f"{out}: {_summary(outcome, chosen)}; see {stem}.samples.png beside it")


def _summary(outcome: Outcome, settings: TrainingSettings) -> str:
    found, first, last = outcome.survey, outcome.history[0], outcome.history[-1]
    parts = [
        f"{found.num_photographs} photographs ({len(found.held_out)} held out, {len(found.broken)} skipped)",
        *([f"{settings.epochs} epochs"] if settings.recipe == "paper" else []),
        f"validation error {outcome.error:.4f}" + (f" (began at {first['validation']:.4f})" if last != first else ""),
        *([f"{last['recognised']:.0%} recognised"] if "recognised" in last else []),
    ]
    return ", ".join(parts)


def _trained(
    images: str,
    column: str,
    folder: Store,
    settings: TrainingSettings,
    workers: int | None,
    is_resumed: bool,
    ceiling: Ceiling | None,
) -> tuple[TrainingSettings, Outcome]:
    """Recipe paper, with the precision that its devices have."""
    from dgn.cluster import fleet
    from dgn.cluster.precision import resolve_precision
    from dgn.cluster.training import train

    devices = fleet.choose_trainers(workers)
    settings = settings.model_copy(update={"precision": resolve_precision(settings.precision, devices.gpus_each > 0)})
    with _training_progress(settings) as observe:
        return settings, train(images, column, folder, settings, devices, is_resumed, observe, ceiling)


def _fitted(images: str, column: str, settings: TrainingSettings, ceiling: Ceiling | None) -> Outcome:
    """Recipe standard."""
    from dgn.cluster.fitting import fit

    with bar("fitting windows", None, "reading photographs") as (progress, task):

        def observe(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, state=f"{done:,} photographs")

        return fit(images, column, settings.width, observe, ceiling)


def _split(out: str) -> tuple[str, str]:
    parent, _, name = out.rpartition("/")
    if not name.endswith(".safetensors") or name == ".safetensors":
        raise DgnError(f"OUT is '{out}': expected a file, or an object in a bucket, ending in .safetensors")
    return parent or ("/" if out.startswith("/") else "."), name


def _network(name: str, weights: str | None) -> NetworkWeights:
    from dgn.runs.config import RunConfig
    from dgn.runs.networks import load_network

    return load_network(validated(RunConfig, {"discriminator": name, "weights": weights}))


def _ceiling(judge: str | None, weights: str | None, folder: Path | None) -> Ceiling | None:
    if judge is None:
        if weights or folder:
            raise DgnError("--judge is missing: name the network whose weights or photographs are given")
        return None
    if folder is None:
        raise DgnError(f"--judge {judge} needs photographs: give --judge-images FOLDER")
    from dgn.pictures.ceiling import Ceiling

    ceiling = Ceiling.of(_network(judge, weights), folder)
    _, top5 = ceiling.shares(None)
    log.info("%s has %.0f %% of %d untouched photographs in its top five", judge, 100 * top5, len(ceiling.classes))
    return ceiling


def _loss_curve(outcome: Outcome) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="mean squared error (ImageNet's variance is 1)")
    epochs = [entry["epoch"] for entry in outcome.history]
    for name in ("train", "validation"):
        axes.plot(epochs, [entry[name] for entry in outcome.history], marker=".", label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return _png(figure)


def _samples(outcome: Outcome) -> bytes:
    from matplotlib.figure import Figure

    num_photographs = len(outcome.samples["original"])
    figure = Figure(figsize=(2 * len(outcome.samples), 2 * num_photographs + 0.3), layout="constrained")
    grid = figure.subplots(num_photographs, len(outcome.samples), squeeze=False)
    for column, (title, pictures) in enumerate(outcome.samples.items()):
        grid[0, column].set_title(title)
        for row, picture in enumerate(pictures):
            grid[row, column].imshow(picture.numpy())
            grid[row, column].axis("off")
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


@contextmanager
def _training_progress(settings: TrainingSettings) -> Iterator[Callable[[Update], None]]:
    """Yields an observer of the training: a bar on a terminal, and a line per epoch."""

    def line(update: Update) -> str:
        losses = f"train {update.train_loss:.4f}, validation {update.validation_loss:.4f}"
        if update.recognised is not None:
            losses += f", {update.recognised:.0%} recognised"
        return f"epoch {update.epoch + 1} of {settings.epochs}: {losses}, {update.seconds:.0f} s"

    if not sys.stderr.isatty():
        yield lambda update: log.info(line(update)) if update.validation_loss is not None else None
        return
    with bar("training", settings.epochs, "starting workers") as (progress, task):

        def observe(update: Update) -> None:
            if update.validation_loss is not None:
                progress.console.print(line(update))
                progress.update(task, completed=update.epoch + 1)
            else:
                progress.update(
                    task,
                    state=f"epoch {update.epoch + 1}, {update.photographs_done:,} photographs, {update.train_loss:.4f}",
                )

        yield observe
