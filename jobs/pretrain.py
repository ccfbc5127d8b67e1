"""`dgn pretrain`: trains a decoder, the generator of the pretrained mode, on photographs."""

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

if TYPE_CHECKING:
    from dgn.cluster.training import Outcome
    from dgn.cluster.training_worker import Update
    from dgn.networks.weights import NetworkWeights
    from dgn.pictures.ceiling import Ceiling

log = logging.getLogger("dgn")


@with_settings(TrainingSettings)
def command(
    images: Annotated[
        str, typer.Argument(help="Folder or s3:// prefix of JPEG, PNG and WebP files, or of Parquet files.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT.safetensors", help="File or s3:// object to write.")],
    settings: dict[str, Any],
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Number of workers. Default: one per GPU, or without GPUs one per machine."),
    ] = None,
    column: Annotated[str, typer.Option(help="Column of Parquet files that holds the pictures.")] = "image",
    features_weights: Annotated[
        str | None, typer.Option(help="Weights file of the network of --features; a path or an address.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Network that says after every epoch what it recognises of --judge-images.")
    ] = None,
    judge_weights: Annotated[
        str | None, typer.Option(help="Weights file of the network of --judge; a path or an address.")
    ] = None,
    judge_images: Annotated[
        Path | None,
        typer.Option(help="Folder of photographs for --judge, with classes as dgn doctor --images has them."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last whole epoch.")] = False,
) -> None:
    """Writes OUT, and next to it a loss curve and a few reconstructions as PNG.

    Checkpoints are in a folder `.training` next to OUT until OUT is written.
    """
    chosen = validated(TrainingSettings, settings)
    parent, name = _split(out)
    store = open_store(parent)
    store.check(must_write=True)
    if store.exists(name):
        raise DgnError(f"{out} exists: give another name, or delete it")
    from dgn.cluster import connection, fleet
    from dgn.cluster.precision import resolve_precision
    from dgn.cluster.training import train
    from dgn.method.decoder import serialise

    log_to_stderr()
    compared = _compared(chosen, features_weights)
    ceiling = _ceiling(judge, judge_weights, judge_images)
    connection.connect()
    devices = fleet.choose_trainers(workers)
    chosen = chosen.model_copy(update={"precision": resolve_precision(chosen.precision, devices.gpus_each > 0)})
    stem = name.removesuffix(".safetensors")
    folder = open_store(f"{parent.rstrip('/')}/{stem}.training")
    with _training_progress(chosen) as observe:
        outcome = train(images, column, folder, chosen, devices, resume, observe, compared, ceiling)
    about = {
        "width": chosen.width,
        "settings": chosen.model_dump(),
        "num_photos": outcome.survey.num_photographs,
        "num_held_out": len(outcome.survey.held_out),
        "photos_sha256": outcome.survey.sha256,
        "validation_error": outcome.history[-1]["validation"],
        "history": outcome.history,
    }
    store.write(f"{stem}.loss.png", _loss_curve(outcome))
    store.write(f"{stem}.samples.png", _samples(outcome))
    store.write(name, serialise(outcome.decoder, about))
    store.delete_folder(f"{stem}.training")
    print(
        f"{out}: {outcome.survey.num_photographs} photographs ({len(outcome.survey.held_out)} held out, "
        f"{len(outcome.survey.broken)} skipped), {chosen.epochs} epochs, "
        f"validation error {about['validation_error']:.4f} (began at {outcome.history[0]['validation']:.4f}); "
        f"see {stem}.samples.png and {stem}.loss.png beside it"
    )


def _network(name: str, weights: str | None) -> NetworkWeights:
    from dgn.runs.config import RunConfig
    from dgn.runs.networks import load_network

    return load_network(validated(RunConfig, {"discriminator": name, "weights": weights}))


def _compared(settings: TrainingSettings, weights: str | None) -> NetworkWeights | None:
    """The network whose features are compared, tried on a picture as training shows it. Raises: DgnError."""
    if settings.recipe == "paper":
        if weights:
            raise DgnError("--features-weights is for recipe standard: recipe paper compares no features")
        return None
    from dgn.method.autoencoder import CROP_PX
    from dgn.method.likeness import Likeness
    from dgn.networks.frozen import FrozenNetwork

    network = FrozenNetwork(compared := _network(settings.features, weights))
    Likeness(network, network.layers.filter_layers, CROP_PX)
    return compared


def _ceiling(judge: str | None, weights: str | None, folder: Path | None) -> Ceiling | None:
    if judge is None:
        if weights or folder:
            raise DgnError("--judge is missing: name the network whose weights or photographs are given")
        return None
    if folder is None:
        raise DgnError(f"--judge {judge} needs photographs: give --judge-images FOLDER")
    from dgn.pictures.ceiling import Ceiling

    ceiling = Ceiling.of(_network(judge, weights), folder)
    _, top5 = ceiling.shares(None, 0)
    log.info("%s has %.0f %% of %d untouched photographs in its top five", judge, 100 * top5, len(ceiling.classes))
    return ceiling


def _split(out: str) -> tuple[str, str]:
    parent, _, name = out.rpartition("/")
    if not name.endswith(".safetensors") or name == ".safetensors":
        raise DgnError(f"OUT is '{out}': expected a file or s3:// object ending in .safetensors")
    return parent or ("/" if out.startswith("/") else "."), name


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

    num_photographs = outcome.samples_3NHW3.shape[1]
    figure = Figure(figsize=(6, 2 * num_photographs + 0.3), layout="constrained")
    grid = figure.subplots(num_photographs, 3, squeeze=False)
    for column, title in enumerate(("original", "noisy", "reconstruction")):
        grid[0, column].set_title(title)
        for row in range(num_photographs):
            grid[row, column].imshow(outcome.samples_3NHW3[column, row].numpy())
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
