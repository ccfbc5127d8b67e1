"""Training the denoising autoencoder: Ray Train over Ray Data, one checkpoint an epoch.

Everything random in an epoch comes from (seed, epoch, rank), so that a training that was killed and resumed goes the
same way as one that was not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import pyarrow.fs
import ray
import ray.train
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from ray.data import Dataset, ExecutionOptions
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from cluster.fleet import Workers
from cluster.photos import Survey, decoded, open_photos, survey
from cluster.storage import KeyExists, S3Store, Store
from dgn.autoencoder import Autoencoder, add_noise, along_axes, central_crop, crop_and_flip, displayed
from dgn.decoder import FORMAT_VERSION, code_directions
from dgn.errors import NOT_JSON, DgnError, ShardFailed, in_one_line, printable

log = logging.getLogger("dgn")

MAX_FAILURES = 3  # of workers in one training; each costs at most the epoch that it was in
SHUFFLED = 1024  # photographs that an epoch's order is drawn from at a time (200 MB)
NUM_SAMPLES = 6  # held-out photographs on the sheet of reconstructions
SCALES_RATE = 1 / 150  # of the learning rate: of normalisations' scales and shifts, and of biases
CONTRAST_RATE = 1 / 30  # of the learning rate: of the pictures' scales and shifts
DRAWING_RATE = 1 / 30  # of the learning rate: of the decoder's kernels but its last
SETTINGS_FILE = "settings.json"
STATE_FILE = "state.pt"


class Settings(BaseModel):
    """What decides a decoder besides the photographs. Only `workers` may differ when a training is resumed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: float = Field(default=1.0, gt=0, le=4)
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=16, ge=1)  # over all workers
    learning_rate: float = Field(default=0.3, gt=0)  # Adam's, times a layer's inputs; half a cosine to 0
    noise_sigma: float = Field(default=0.3, ge=0)  # of the input, in standard deviations of photographs' colours
    seed: int = Field(default=0, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class Update:
    """How far a training is: after every few steps, and after every epoch with its losses."""

    epoch: int
    photos_done: int
    train_loss: float
    validation_loss: float | None = None  # mean squared error, in variances of photographs' colours
    seconds: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A finished training. `decoder`: what its file holds, see `dgn.decoder.FrozenDecoder`."""

    settings: Settings
    survey: Survey
    history: tuple[dict[str, float], ...]
    decoder: dict[str, Tensor]
    samples_3NHW3: Tensor  # held-out photographs: clean, noisy, reconstructed; 8-bit RGB


def train(
    images: str,
    column: str,
    folder: Store,
    settings: Settings,
    workers: Workers,
    is_resumed: bool,
    observe: Callable[[Update], None],
) -> Outcome:
    """Trains, or goes on where the checkpoints in `folder` stop.

    Raises: DgnError for photographs, a folder or settings that do not fit, ShardFailed where workers kept dying.
    """
    _check_folder(folder, settings, is_resumed)
    photos = open_photos(images, column)
    found = survey(photos, images)
    for line in found.broken:
        print(printable(f"skipped {line}"))
    held_out = decoded(photos, found.held_out, is_held_out=True).materialize()
    num_train = found.num_photos - held_out.count()
    if num_train < workers.at_most:
        raise DgnError(f"{num_train} photographs to train on in {images}: {workers.at_most} workers need one each")
    _claim(folder, settings, found, is_resumed)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # lives as long as this process does
    reader = Thread(target=_read_board, args=(board, observe), daemon=True)
    reader.start()
    is_on_gpus = workers.gpus_each > 0
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"settings": settings.model_dump(), "num_train": num_train, "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.at_most,
            use_gpu=is_on_gpus,
            resources_per_worker=None if is_on_gpus else {"CPU": _cpus_each(workers.at_most)},
        ),
        run_config=ray.train.RunConfig(
            **_storage(folder),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES),  # type: ignore[call-arg]
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
        datasets={"train": decoded(photos, found.held_out, is_held_out=False), "validation": held_out},
        dataset_config=ray.train.DataConfig(
            datasets_to_split=["train"], execution_options=ExecutionOptions(preserve_order=True)
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        reason = in_one_line(error)
        raise ShardFailed(f"training ended: {reason}; --resume goes on from the last whole epoch") from error
    finally:
        board.put(None)
        reader.join(timeout=10)
        board.shutdown()
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as local:
        state = torch.load(Path(local) / STATE_FILE, map_location="cpu", weights_only=True)
    last = state["history"][-1]
    if not math.isfinite(last["train"] + last["validation"]):
        raise DgnError(
            f"the training diverged in epoch {last['epoch']} with --learning-rate {settings.learning_rate:g}: "
            f"delete {folder.url} and give a lower one"
        )
    try:
        return _outcome(settings, found, state, held_out)
    except DgnError as error:
        raise DgnError(f"{error}: delete {folder.url}, and train longer or on more photographs") from error


def _cpus_each(num_workers: int) -> float:
    """One CPU of the cluster has to stay free for decoding; how many threads a worker uses is its own affair."""
    cpus = ray.cluster_resources().get("CPU", 1.0)
    return min(1.0, max(0.01, (cpus - 1) / num_workers))


def _storage(folder: Store) -> dict[str, Any]:
    """Where Ray Train keeps checkpoints, in its own words."""
    if isinstance(folder, S3Store):
        parent, _, name = folder.url.removeprefix("s3://").rpartition("/")
        handler = pyarrow.fs.FSSpecHandler(folder.fs)
        return {"storage_path": parent, "name": name, "storage_filesystem": pyarrow.fs.PyFileSystem(handler)}
    parent, _, name = folder.url.rpartition("/")
    return {"storage_path": parent, "name": name}


def _check_folder(folder: Store, settings: Settings, is_resumed: bool) -> None:
    """Raises: DgnError where --resume is missing or does not fit, before anything else takes its time."""
    is_begun = folder.exists(SETTINGS_FILE)
    if is_begun and not is_resumed:
        raise DgnError(f"{folder.url} holds a training that did not end: --resume goes on with it, or delete it")
    if is_resumed and not is_begun:
        raise DgnError(f"nothing to resume: {folder.url} has no checkpoints; leave out --resume")
    if is_begun:
        _compare(folder, _identity(settings))


def _claim(folder: Store, settings: Settings, found: Survey, is_resumed: bool) -> None:
    """Begins a folder of checkpoints, or makes sure that it is of the same photographs. Raises: DgnError."""
    ours = {**_identity(settings), "photos_sha256": found.sha256}
    if is_resumed:
        _compare(folder, ours)
        return
    try:
        folder.create(SETTINGS_FILE, json.dumps(ours, indent=2).encode())
    except KeyExists as error:
        raise DgnError(f"another training into {folder.url} began just now") from error


def _identity(settings: Settings) -> dict[str, Any]:
    return {**settings.model_dump(), "decoder_format": FORMAT_VERSION}


def _compare(folder: Store, ours: dict[str, Any]) -> None:
    try:
        theirs = json.loads(folder.read(SETTINGS_FILE))
    except NOT_JSON:
        theirs = None
    if not isinstance(theirs, dict):
        raise DgnError(f"{folder.url}/{SETTINGS_FILE} holds no settings: delete the folder and begin again")
    for name, value in ours.items():
        if value != theirs.get(name):
            raise DgnError(
                f"{folder.url} holds a training of other settings: {name} is {theirs.get(name)} there, {value} here"
            )


def _read_board(board: Queue, observe: Callable[[Update], None]) -> None:
    while (update := board.get()) is not None:
        observe(update)


def _outcome(settings: Settings, found: Survey, state: dict[str, Any], held_out: Dataset) -> Outcome:
    model = Autoencoder(settings.width, settings.seed).eval()
    model.load_state_dict(state["model"])
    photos = torch.stack([torch.from_numpy(row["photo"].copy()) for row in held_out.take(NUM_SAMPLES)])
    clean = along_axes(central_crop(photos))
    noisy = add_noise(clean, settings.noise_sigma, torch.Generator().manual_seed(settings.seed))
    with torch.no_grad():
        reconstructed, _ = model(noisy)
    samples = torch.stack([displayed(pictures) for pictures in (clean, noisy, reconstructed)])
    decoder = model.decoder.state_dict()
    mean, std = state["code_mean"], state["code_std"]
    log.info("trained; measuring the directions of the code, which takes two minutes at full width")
    codes = {"code.mean": mean, "code.directions": code_directions(decoder, settings.width, mean, std)}
    return Outcome(settings, found, tuple(state["history"]), decoder | codes, samples)


# From here on: what runs in the workers.


def _train_worker(config: dict[str, Any]) -> None:
    settings, board, num_train = Settings(**config["settings"]), config["board"], config["num_train"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, _num_cores() // context.get_local_world_size()))  # Ray's default is one
    model: torch.nn.Module = Autoencoder(settings.width, settings.seed).to(memory_format=torch.channels_last)
    state = _load_state()
    if state:
        model.load_state_dict(state["model"])
    model = ray.train.torch.prepare_model(model)  # on its device, and wrapped where there are several workers
    optimiser = torch.optim.Adam(_learning_rates(model, settings.learning_rate), betas=(0.9, 0.99))
    if state:
        optimiser.load_state_dict(state["optimiser"])
    history: list[dict[str, float]] = state["history"] if state else []
    batch_size = max(1, settings.batch_size // world)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")
    for epoch in range(len(history), settings.epochs):
        start = time.monotonic()
        stream = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch * 1009 + rank)
        codes = _CodeStatistics()
        model.train()
        total, done, noted = 0.0, 0, start
        for photos in _batches("train", batch_size, settings.seed + epoch, device):
            progress = (epoch + min(1.0, done * world / num_train)) / settings.epochs
            for group in optimiser.param_groups:
                group["lr"] = group["first_lr"] * 0.5 * (1 + math.cos(math.pi * progress))
            clean = along_axes(crop_and_flip(photos, stream))
            with autocast:
                reconstructed, code_NK = model(add_noise(clean, settings.noise_sigma, stream))
            loss = F.mse_loss(reconstructed.float(), clean)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            codes.add(code_NK.detach())
            total, done = total + loss.item() * len(photos), done + len(photos)
            if rank == 0 and time.monotonic() - noted > 1:
                noted = time.monotonic()
                _tell(board, Update(epoch, done * world, total / done))
        validation_loss = _validate(model, settings, autocast, device) if rank == 0 else math.nan
        train_loss = _mean_over_workers(total, done, world, device)
        history.append({"epoch": epoch + 1, "train": train_loss, "validation": validation_loss})
        _report(rank, model, optimiser, history, codes)
        if rank == 0:
            seconds = time.monotonic() - start
            _tell(board, Update(epoch, done * world, train_loss, validation_loss, seconds))
        if not math.isfinite(train_loss):
            return  # diverged; the driver says so


def _learning_rates(model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
    """Adam's rate of each parameter: of a layer's weights inversely to its inputs, so that what comes out of it moves
    by the same whatever its width; of the last normalisation higher, because contrast and colours wait for it; of the
    decoder's kernels before the last lower, or they unlearn to draw anything but what is smooth (docs/method.md)."""
    inner: Any = getattr(model, "module", model)
    *drawing, _ = (module.weight for module in inner.decoder.modules() if isinstance(module, torch.nn.Conv2d))
    slow, last = set(drawing), set(inner.decoder.last_norm.parameters())
    groups = []
    for parameter in model.parameters():
        if parameter.ndim > 1:
            rate = learning_rate * (DRAWING_RATE if parameter in slow else 1) / parameter[0].numel()
        else:
            rate = learning_rate * (CONTRAST_RATE if parameter in last else SCALES_RATE)
        groups.append({"params": [parameter], "lr": rate, "first_lr": rate})
    return groups


def _num_cores() -> int:
    """Cores that this process may use; not every system can tell them from all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _mean_over_workers(total: float, count: int, world: int, device: torch.device) -> float:
    sums = torch.tensor([total, count], dtype=torch.float64, device=device)
    if world > 1:
        torch.distributed.all_reduce(sums)
    return (sums[0] / sums[1]).item()


def _tell(board: Queue, update: Update) -> None:
    """Progress is for people: a training does not end because nobody listens any more."""
    with contextlib.suppress(RayError):
        board.put(update)


def _batches(name: str, batch_size: int, seed: int | None, device: torch.device) -> Iterator[Tensor]:
    """(N, 256, 256, 3) uint8, shuffled where a seed is given."""
    shuffle = {} if seed is None else {"local_shuffle_buffer_size": SHUFFLED, "local_shuffle_seed": seed}
    shard = ray.train.get_dataset_shard(name)
    for batch in shard.iter_torch_batches(batch_size=batch_size, prefetch_batches=2, device=str(device), **shuffle):
        yield batch["photo"]


@torch.no_grad()
def _validate(model: torch.nn.Module, settings: Settings, autocast: Any, device: torch.device) -> float:
    """Mean squared error over the held-out photographs, with running averages and noise that is the same each time."""
    model.eval()
    stream = torch.Generator().manual_seed(settings.seed)
    total, done = 0.0, 0
    inner = getattr(model, "module", model)  # one rank alone must not enter DDP's forward pass
    for photos in _batches("validation", settings.batch_size, None, device):
        clean = along_axes(central_crop(photos))
        with autocast:
            reconstructed, _ = inner(add_noise(clean, settings.noise_sigma, stream))
        total += F.mse_loss(reconstructed.float(), clean).item() * len(photos)
        done += len(photos)
    return total / done


class _CodeStatistics:
    """Mean and standard deviation of every element of the code over an epoch."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, code_NK: Tensor) -> None:
        code = code_NK.double().cpu()
        self.count += len(code)
        self.sum, self.squares = self.sum + code.sum(0), self.squares + code.square().sum(0)

    def state(self) -> dict[str, Tensor]:
        mean = self.sum / self.count
        variance = (self.squares / self.count - mean.square()).clamp_min(0)
        return {"code_mean": mean.float(), "code_std": variance.sqrt().float()}


def _load_state() -> dict[str, Any] | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return torch.load(Path(folder) / STATE_FILE, map_location="cpu", weights_only=True)


def _report(
    rank: int,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    history: list[dict[str, float]],
    codes: _CodeStatistics,
) -> None:
    """The epoch's checkpoint, from rank 0; all ranks have to come here."""
    if rank:
        ray.train.report(history[-1])
        return
    inner = getattr(model, "module", model)
    with tempfile.TemporaryDirectory() as folder:
        state = {"model": inner.state_dict(), "optimiser": optimiser.state_dict(), "history": history}
        torch.save(state | codes.state(), Path(folder) / STATE_FILE)
        ray.train.report(history[-1], checkpoint=ray.train.Checkpoint.from_directory(folder))
