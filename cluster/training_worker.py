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
from dgn.method.autoencoder import Autoencoder, add_noise, along_axes, central_crop, crop_and_flip
from dgn.method.engine import Engine
from dgn.pictures.ceiling import Ceiling

SHUFFLED = 1024  # photographs from which the next one is drawn (200 MB)
SCALES_RATE = 1 / 150  # of the learning rate, for scales and shifts of normalisations, and for biases
CONTRAST_RATE = 1 / 30  # of the learning rate, for the scales and shifts of the pictures themselves
DRAWING_RATE = 1 / 30  # of the learning rate, for the decoder's kernels except the last
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

    `config`: `settings`, the number of photographs `num_train`, the progress's `board`; an object reference of the
    judge's photographs `ceiling` (`Ceiling`), None without.
    """
    settings, board, num_train = TrainingSettings(**config["settings"]), config["board"], config["num_train"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    engine = engine_for(device)
    if not engine.is_gpu:
        torch.set_num_threads(max(1, _num_cores() // context.get_local_world_size()))  # Ray would leave it at one
    own = Autoencoder(settings.width, settings.seed)
    state = _load_state()
    if state:
        own.load_state_dict(state["model"])
    # Moves it to the device, and wraps it if there are several workers.
    model: torch.nn.Module = ray.train.torch.prepare_model(own.to(memory_format=torch.channels_last))
    optimiser = torch.optim.Adam(_learning_rates(own, settings.learning_rate), betas=(0.9, 0.99))
    if state:
        optimiser.load_state_dict(state["optimiser"])
    history: list[dict[str, float]] = state["history"] if state else []
    batch_size = max(1, settings.batch_size // world)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")
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
            clean = along_axes(crop_and_flip(photographs, stream))
            with autocast:
                reconstructed = model(add_noise(clean, settings.noise_sigma, stream))
            loss = F.mse_loss(reconstructed.float(), clean)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
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
        _report(rank, own, optimiser, history)
        if rank == 0:
            seconds = time.monotonic() - start
            update = Update(epoch, done * world, entry["train"], entry["validation"], entry.get("recognised"), seconds)
            _report_progress(board, update)
        if not math.isfinite(entry["train"]):
            return  # diverged; the driver reports it


def _learning_rates(own: Autoencoder, learning_rate: float) -> list[dict[str, Any]]:
    """Adam's learning rate for each parameter.

    A layer's weights learn at a rate inverse to its number of inputs, so that its output moves by the same amount at
    any width. The last normalisation learns faster, because contrast and colours depend on it. The decoder's kernels
    before the last learn more slowly, or they come to draw smooth things only (docs/experiments.md).
    """
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
        clean = along_axes(central_crop(photographs))
        with autocast:
            reconstructed = own(add_noise(clean, settings.noise_sigma, stream))
        total += F.mse_loss(reconstructed.float(), clean).item() * len(photographs)
        done += len(photographs)
    return total / done


def _recognised(own: Autoencoder, ceiling: Ceiling, engine: Engine, autocast: Any) -> float:
    def reconstruct(clean: Tensor) -> Tensor:
        with autocast:
            return own(clean.to(engine.device))

    own.eval()
    return ceiling.shares(reconstruct, engine)[1]


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
) -> None:
    """Reports the epoch, as every rank must; rank 0 adds the checkpoint."""
    if rank:
        ray.train.report(history[-1])
        return
    with tempfile.TemporaryDirectory() as folder:
        state = {"model": own.state_dict(), "optimiser": optimiser.state_dict(), "history": history}
        torch.save(state, Path(folder) / STATE_FILE)
        ray.train.report(history[-1], checkpoint=ray.train.Checkpoint.from_directory(folder))
