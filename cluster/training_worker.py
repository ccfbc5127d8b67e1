"""The training loop on one device: epochs of the denoising autoencoder, one checkpoint each.

All randomness in an epoch derives from (seed, epoch, rank), so a training that was killed and resumed takes the same
course as one that was not.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.nn.functional as F
from ray.exceptions import RayError
from ray.util.queue import Queue
from torch import Tensor

from dgn.cluster.training_settings import TrainingSettings
from dgn.engine import engine_for
from dgn.method.architecture import PICTURE_PX
from dgn.method.autoencoder import (
    Autoencoder,
    LappedAutoencoder,
    PaperAutoencoder,
    add_noise,
    along_axes,
    central_crop,
    crop_and_flip,
    inner,
    new_autoencoder,
)
from dgn.method.engine import Engine
from dgn.method.lapped import WINDOW_PX, principal_transform
from dgn.method.likeness import Likeness
from dgn.method.linear_start import start_linear
from dgn.networks.frozen import FrozenNetwork
from dgn.pictures.ceiling import Ceiling

SHUFFLED = 1024  # photographs from which the next one is drawn (200 MB)
SCALES_RATE = 1 / 150  # of the learning rate, for scales and shifts of normalisations, and for biases
PAPER_RATE, STANDARD_RATE = 0.3, 0.03  # where settings give no learning rate
CONTRAST_RATE = 1 / 30  # of the learning rate, for the scales and shifts of the paper's pictures themselves
DRAWING_RATE = 1 / 30  # of the learning rate, for the kernels of the paper's decoder except the last
NUM_STARTING = 1500  # photographs from which the standard recipe's transform is found, four windows of each
NUM_FITTED = 64  # of them, to which its decoder is fitted before the training
STATE_FILE = "state.pt"


@dataclass(frozen=True)
class Update:
    """A training's progress: sent about once a second, and after every epoch with its losses."""

    epoch: int
    photographs_done: int
    train_loss: float
    validation_loss: float | None = None  # mean squared error, in variances of photographs' colours
    recognised: float | None = None  # share of the judge's photographs that are in its top five once reconstructed
    seconds: float | None = None


def train_worker(config: dict[str, Any]) -> None:
    """The whole training of one worker.

    `config`: `settings`, the number of photographs `num_train`, the progress's `board`; object references of the
    `features` (`NetworkWeights`) and the judge's photographs `ceiling` (`Ceiling`), None without.
    """
    settings, board, num_train = TrainingSettings(**config["settings"]), config["board"], config["num_train"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    engine = engine_for(device)
    if not engine.is_gpu:
        torch.set_num_threads(max(1, _num_cores() // context.get_local_world_size()))  # Ray would leave it at one
    own = new_autoencoder(settings.recipe, settings.width, settings.seed)
    state = _load_state()
    if state:
        own.load_state_dict(state["model"])
    elif isinstance(own, LappedAutoencoder) and rank == 0:  # the others get it from this worker
        _start(own, settings)
    # Moves it to the device, and wraps it if there are several workers.
    model: torch.nn.Module = ray.train.torch.prepare_model(own.to(memory_format=torch.channels_last))
    optimiser = torch.optim.Adam(_learning_rates(own, _rate(settings)), betas=(0.9, 0.99))
    if state:
        optimiser.load_state_dict(state["optimiser"])
    history: list[dict[str, float]] = state["history"] if state else []
    batch_size = max(1, settings.batch_size // world)
    is_bfloat16 = settings.precision == "bfloat16"
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=is_bfloat16)
    likeness = None
    if config["features"] is not None:
        features = FrozenNetwork(ray.get(config["features"]), engine, torch.bfloat16 if is_bfloat16 else torch.float32)
        likeness = Likeness(features, features.layers.filter_layers, own.crop_px)
    ceiling = ray.get(config["ceiling"]) if config["ceiling"] is not None and rank == 0 else None
    for epoch in range(len(history), settings.epochs):
        start = time.monotonic()
        stream = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch * 1009 + rank)
        model.train()
        total, done, noted = 0.0, 0, start
        for photographs in _batches("train", batch_size, settings.seed + epoch, device):
            progress = (epoch + min(1.0, done * world / num_train)) / settings.epochs
            for group in optimiser.param_groups:
                group["lr"] = group["first_lr"] * 0.5 * (1 + math.cos(math.pi * progress))
            clean = along_axes(crop_and_flip(photographs, stream, own.crop_px, own.margin_px))
            with autocast:
                reconstructed, _ = model(add_noise(clean, settings.noise_sigma, stream))
            wanted = inner(clean, own.margin_px)
            loss = F.mse_loss(reconstructed.float(), wanted)
            optimiser.zero_grad(set_to_none=True)
            if likeness is None:
                loss.backward()
            else:
                reconstructed.backward(likeness.gradient(reconstructed.float(), wanted).to(reconstructed.dtype))
            optimiser.step()
            total, done = total + loss.item() * len(photographs), done + len(photographs)
            if rank == 0 and time.monotonic() - noted > 1:
                noted = time.monotonic()
                _report_progress(board, Update(epoch, done * world, total / done))
        entry = {"epoch": epoch + 1, "train": _mean_over_workers(total, done, world, device), "validation": math.nan}
        if rank == 0:
            entry["validation"] = _validate(own, settings, autocast, device)
            if ceiling:
                entry["recognised"] = _recognised(own, ceiling, engine, autocast)
        history.append(entry)
        is_last = epoch + 1 == settings.epochs
        codes = _code_statistics(own, settings, world, device) if is_last else {}
        _report(rank, own, optimiser, history, codes)
        if rank == 0:
            seconds = time.monotonic() - start
            update = Update(epoch, done * world, entry["train"], entry["validation"], entry.get("recognised"), seconds)
            _report_progress(board, update)
        if not math.isfinite(entry["train"]):
            return  # diverged; the driver reports it


def _start(own: LappedAutoencoder, settings: TrainingSettings) -> None:
    """The standard recipe's start: the transform of photographs, and the decoder that draws as it does."""
    stream = torch.Generator().manual_seed(settings.seed)
    fitted: list[Tensor] = []

    def windows() -> Iterator[Tensor]:
        for photographs in _batches("start", 16, None, torch.device("cpu")):
            if len(fitted) * 16 < NUM_FITTED:
                fitted.append(along_axes(crop_and_flip(photographs, stream, PICTURE_PX, own.margin_px)))
            for _ in range(4):
                yield along_axes(crop_and_flip(photographs, stream, WINDOW_PX, 0))

    own.encoder = principal_transform(windows(), own.architecture.feature_channels)
    start_linear(own.decoder, own.encoder, torch.cat(fitted), settings.seed)


def _rate(settings: TrainingSettings) -> float:
    return settings.learning_rate or (PAPER_RATE if settings.recipe == "paper" else STANDARD_RATE)


def _learning_rates(own: Autoencoder, learning_rate: float) -> list[dict[str, Any]]:
    """Adam's learning rate for each parameter.

    A layer's weights learn at a rate inverse to its number of inputs, so that its output moves by the same amount at
    any width. In the paper's autoencoder the last normalisation learns faster, because contrast and colours depend on
    it, and the decoder's kernels before the last more slowly, or they come to draw smooth things only
    (docs/experiments.md).
    """
    slow: set[torch.nn.Parameter] = set()
    last: set[torch.nn.Parameter] = set()
    if isinstance(own, PaperAutoencoder):
        *drawing, _ = (own.decoder.get_parameter(f"conv{i}.weight") for i in range(len(own.architecture.convs)))
        slow, last = set(drawing), set(own.decoder.last_norm.parameters())
    groups = []
    for parameter in own.parameters():
        if parameter.ndim > 1:
            rate = learning_rate * (DRAWING_RATE if parameter in slow else 1) / parameter[0].numel()
        else:
            rate = learning_rate * (CONTRAST_RATE if parameter in last else SCALES_RATE)
        groups.append({"params": [parameter], "lr": rate, "first_lr": rate})
    return groups


def _num_cores() -> int:
    """The number of cores that this process may use. On systems that do not limit it, all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _mean_over_workers(total: float, count: int, world: int, device: torch.device) -> float:
    sums = torch.tensor([total, count], dtype=torch.float64, device=device)
    if world > 1:
        torch.distributed.all_reduce(sums)
    return (sums[0] / sums[1]).item()


def _report_progress(board: Queue, update: Update) -> None:
    """Progress is only displayed: training continues if its reader is gone."""
    with contextlib.suppress(RayError):
        board.put(update)


def _batches(name: str, batch_size: int, seed: int | None, device: torch.device) -> Iterator[Tensor]:
    """(N, 256, 256, 3) uint8; shuffled if there is a seed."""
    shuffle = {} if seed is None else {"local_shuffle_buffer_size": SHUFFLED, "local_shuffle_seed": seed}
    shard = ray.train.get_dataset_shard(name)
    for batch in shard.iter_torch_batches(batch_size=batch_size, prefetch_batches=2, device=str(device), **shuffle):
        yield batch["photograph"]


@torch.no_grad()
def _validate(own: Autoencoder, settings: TrainingSettings, autocast: Any, device: torch.device) -> float:
    """Mean squared error over the held-out photographs, with the same noise every time."""
    own.eval()
    stream = torch.Generator().manual_seed(settings.seed)
    total, done = 0.0, 0
    for photographs in _batches("validation", settings.batch_size, None, device):
        clean = along_axes(central_crop(photographs, own.margin_px))
        with autocast:
            reconstructed, _ = own(add_noise(clean, settings.noise_sigma, stream))
        total += F.mse_loss(reconstructed.float(), inner(clean, own.margin_px)).item() * len(photographs)
        done += len(photographs)
    return total / done


def _recognised(own: Autoencoder, ceiling: Ceiling, engine: Engine, autocast: Any) -> float:
    def reconstruct(surrounded: Tensor) -> Tensor:
        with autocast:
            return own(surrounded.to(engine.device))[0]

    own.eval()
    return ceiling.shares(reconstruct, own.margin_px, engine)[1]


@torch.no_grad()
def _code_statistics(
    own: Autoencoder, settings: TrainingSettings, world: int, device: torch.device
) -> dict[str, Tensor]:
    """Over the photographs' codes: their mean (K,), and the covariance (C, C) of a place's channels around it."""
    own.eval()
    channels, count = own.architecture.feature_channels, torch.zeros(1, dtype=torch.float64, device=device)
    total = torch.zeros(own.architecture.num_features, dtype=torch.float64, device=device)
    products = torch.zeros(channels, channels, dtype=torch.float64, device=device)
    for photographs in _batches("train", settings.batch_size, None, device):
        code = own.encode(along_axes(central_crop(photographs, own.margin_px))).double()
        total, count = total + code.flatten(1).sum(0), count + len(code)
        flat = code.flatten(2).transpose(0, 1).flatten(1)  # (C, all places)
        products += flat @ flat.T
    if world > 1:
        for each in (total, count, products):
            torch.distributed.all_reduce(each)
    mean = total / count
    places = mean.unflatten(0, (channels, -1))
    covariance = products / (count * places.shape[1]) - places @ places.T / places.shape[1]
    return {"code_mean": mean.float().cpu(), "code_covariance": covariance.float().cpu()}


def _load_state() -> dict[str, Any] | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return torch.load(Path(folder) / STATE_FILE, map_location="cpu", weights_only=True)


def _report(
    rank: int,
    own: Autoencoder,
    optimiser: torch.optim.Optimizer,
    history: list[dict[str, float]],
    codes: dict[str, Tensor],
) -> None:
    """Reports the epoch, as every rank must; rank 0 adds the checkpoint."""
    if rank:
        ray.train.report(history[-1])
        return
    with tempfile.TemporaryDirectory() as folder:
        state = {"model": own.state_dict(), "optimiser": optimiser.state_dict(), "history": history}
        torch.save(state | codes, Path(folder) / STATE_FILE)
        ray.train.report(history[-1], checkpoint=ray.train.Checkpoint.from_directory(folder))
