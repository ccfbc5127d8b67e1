"""`dgn pretrain`: photographs become a decoder, the G of the pretrained mode."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cluster.storage import open_store
from dgn.errors import DgnError
from jobs.progress import bar
from jobs.render import log_to_stderr, resolve_precision, validated

if TYPE_CHECKING:
    from cluster.pretrain import Outcome, Settings, Update

log = logging.getLogger("dgn")


def pretrain_command(images: str, out: str, column: str, workers: int | None, is_resumed: bool, **given: Any) -> None:
    """Writes OUT, and beside it the loss curve and a few reconstructions as PNG. Checkpoints live in OUT's `.training`
    folder until OUT is written."""
    parent, name = _split(out)
    store = open_store(parent)
    store.check(must_write=True)
    if store.exists(name):
        raise DgnError(f"{out} exists: give another name, or delete it")
    from cluster import fleet, pretrain
    from dgn.decoder import serialise

    chosen = {key: value for key, value in given.items() if value is not None}
    precision = chosen.pop("precision", "auto")
    settings = validated(pretrain.Settings, chosen if precision == "auto" else chosen | {"precision": precision})
    log_to_stderr()
    fleet.connect()
    at_hand = fleet.choose_workers((workers, workers) if workers else None, None)
    num_gpus = fleet.choose_workers(None, None).at_most if at_hand.gpus_each else 0
    if num_gpus and at_hand.at_most > num_gpus:
        raise DgnError(f"--workers {at_hand.at_most}: the cluster has {num_gpus} GPUs, one for each worker")
    if precision == "auto":
        settings = settings.model_copy(update={"precision": resolve_precision("auto", num_gpus > 0)})
    stem = name.removesuffix(".safetensors")
    folder = open_store(f"{parent.rstrip('/')}/{stem}.training")
    with _progress_shown(settings) as observe:
        outcome = pretrain.train(images, column, folder, settings, at_hand, is_resumed, observe)
    about = {
        "width": settings.width,
        "settings": settings.model_dump(),
        "num_photos": outcome.survey.num_photos,
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
        f"{out}: {outcome.survey.num_photos} photographs ({len(outcome.survey.held_out)} held out, "
        f"{len(outcome.survey.broken)} skipped), {settings.epochs} epochs, "
        f"validation error {about['validation_error']:.4f} (began at {outcome.history[0]['validation']:.4f}); "
        f"see {stem}.samples.png and {stem}.loss.png beside it"
    )


def _split(out: str) -> tuple[str, str]:
    parent, _, name = out.rpartition("/")
    if not name.endswith(".safetensors") or name == ".safetensors":
        raise DgnError(f"OUT is '{out}': expected a file or s3:// object that ends in .safetensors")
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

    num_photos = outcome.samples_3NHW3.shape[1]
    figure = Figure(figsize=(6, 2 * num_photos + 0.3), layout="constrained")
    grid = figure.subplots(num_photos, 3, squeeze=False)
    for column, title in enumerate(("original", "noisy", "reconstruction")):
        grid[0, column].set_title(title)
        for row in range(num_photos):
            grid[row, column].imshow(outcome.samples_3NHW3[column, row].numpy())
            grid[row, column].axis("off")
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


@contextmanager
def _progress_shown(settings: Settings) -> Iterator[Callable[[Update], None]]:
    """An observer for the training: a bar on a terminal, a line per epoch everywhere."""

    def line(update: Update) -> str:
        losses = f"train {update.train_loss:.4f}, validation {update.validation_loss:.4f}"
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
                    task, state=f"epoch {update.epoch + 1}, {update.photos_done:,} photographs, {update.train_loss:.4f}"
                )

        yield observe
