"""Training the denoising autoencoder: Ray Train over Ray Data, one checkpoint an epoch.

Everything random in an epoch comes from (seed, epoch, rank), so that a training that was killed and resumed goes the
same way as one that was not.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow.fs
import ray
import ray.train
import torch
import torch.nn.functional as F
from ray.data import Dataset, ExecutionOptions
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue
from torch import Tensor

from cluster.photos import Survey, decoded, open_photos, survey
from cluster.storage import S3Store, Store
from dgn.autoencoder import Autoencoder, add_noise, central_crop, crop_and_flip, displayed, normalised
from dgn.errors import DgnError, ShardFailed

MAX_FAILURES = 3  # of workers in one training; each costs at most the epoch that it was in
SHUFFLED = 1024  # photographs that an epoch's order is drawn from at a time (200 MB)
NUM_SAMPLES = 6  # held-out photographs on the sheet of reconstructions
SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class Settings:
    """What decides a decoder besides the photographs; `epochs` alone may differ when a training is resumed."""

    width: float = 1.0
    epochs: int = 30
    batch_size: int = 16  # over all workers
    learning_rate: float = 1e-3  # AdamW's at the start, falling to 0 along half a cosine
    noise_sigma: float = 0.3  # of the input, in units of ImageNet's standard deviation
    seed: int = 0
    precision: str = "auto"
    workers: int = 1
    has_gpus: bool = False


@dataclass(frozen=True)
class Update:
    """How far a training is: after every few steps, and after every epoch with its losses."""

    epoch: int
    photos_done: int
    train_loss: float
    validation_loss: float | None = None  # mean squared error, in units of ImageNet's variance
    seconds: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A finished training. `decoder`: the pretrained G, its running averages, and the codes' mean and deviation."""

    settings: Settings
    survey: Survey
    history: tuple[dict[str, float], ...]
    decoder: dict[str, Tensor]
    samples_3NHW3: Tensor  # held-out photographs: clean, noisy, reconstructed; 8-bit RGB


def train(
    images: str, column: str, folder: Store, settings: Settings, is_resumed: bool, observe: Callable[[Update], None]
) -> Outcome:
    """Trains, or goes on where the checkpoints in `folder` stop.

    Raises: DgnError for photographs or a folder that do not fit, ShardFailed where workers kept dying.
    """
    photos = open_photos(images, column)
    found = survey(photos, images)
    for line in found.broken:
        print(f"skipped {line}")
    _claim(folder, settings, found, is_resumed)
    board = Queue(actor_options={"num_cpus": 0})
    reader = Thread(target=_read_board, args=(board, observe), daemon=True)
    reader.start()
    held_out = decoded(photos, found.held_out, is_held_out=True).materialize()
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"settings": asdict(settings), "num_photos": found.num_photos, "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.has_gpus,
            resources_per_worker=None if settings.has_gpus else {"CPU": _cpus_each(settings.workers)},
        ),
        run_config=ray.train.RunConfig(
            **_storage(folder),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
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
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ShardFailed(
            f"training failed {MAX_FAILURES + 1} times: {lines[-1][:300]}; --resume goes on from the last whole epoch"
        ) from error
    finally:
        board.put(None)
        reader.join(timeout=10)
        board.shutdown()
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as local:
        state = torch.load(Path(local) / "state.pt", weights_only=True)
    return _outcome(settings, found, state, held_out)


def _cpus_each(workers: int) -> float:
    """One CPU of the cluster has to stay free for decoding; how many threads a worker uses is its own affair."""
    cpus = ray.cluster_resources().get("CPU", 1.0)
    return min(1.0, max(0.01, (cpus - 1) / workers))


def _storage(folder: Store) -> dict[str, Any]:
    """Where Ray Train keeps checkpoints, in its own words."""
    if isinstance(folder, S3Store):
        parent, _, name = folder.url.removeprefix("s3://").rpartition("/")
        handler = pyarrow.fs.FSSpecHandler(folder.fs)
        return {"storage_path": parent, "name": name, "storage_filesystem": pyarrow.fs.PyFileSystem(handler)}
    parent, _, name = folder.url.rpartition("/")
    return {"storage_path": parent, "name": name}


def _claim(folder: Store, settings: Settings, found: Survey, is_resumed: bool) -> None:
    """Begins a folder of checkpoints, or makes sure that it is of the same training. Raises: DgnError."""
    ours = {**asdict(settings), "photos_sha256": found.sha256}
    try:
        theirs = json.loads(folder.read(SETTINGS_FILE))
    except FileNotFoundError:
        if is_resumed:
            raise DgnError(f"nothing to resume: {folder.url} has no checkpoints; leave out --resume") from None
        folder.write(SETTINGS_FILE, json.dumps(ours, indent=2).encode())
        return
    if not is_resumed:
        raise DgnError(f"{folder.url} holds a training that did not end: --resume goes on with it, or delete it")
    differing = [name for name in ours if ours[name] != theirs.get(name) and name not in ("workers", "has_gpus")]
    if differing:
        name = differing[0]
        raise DgnError(
            f"{folder.url} holds a training of other settings: {name} is {theirs.get(name)} there, {ours[name]} here"
        )


def _read_board(board: Queue, observe: Callable[[Update], None]) -> None:
    while (update := board.get()) is not None:
        observe(update)


def _outcome(settings: Settings, found: Survey, state: dict[str, Any], held_out: Dataset) -> Outcome:
    model = Autoencoder(settings.width, settings.seed).eval()
    model.load_state_dict(state["model"])
    photos = torch.stack([torch.from_numpy(row["photo"].copy()) for row in held_out.take(NUM_SAMPLES)])
    clean = normalised(central_crop(photos))
    noisy = add_noise(clean, settings.noise_sigma, torch.Generator().manual_seed(settings.seed))
    with torch.no_grad():
        reconstructed, _ = model(noisy)
    samples = torch.stack([displayed(pictures) for pictures in (clean, noisy, reconstructed)])
    codes = {"code.mean": state["code_mean"], "code.std": state["code_std"]}
    return Outcome(settings, found, tuple(state["history"]), model.decoder.state_dict() | codes, samples)


# From here on: what runs in the workers.


def _train_worker(config: dict[str, Any]) -> None:
    settings, board = Settings(**config["settings"]), config["board"]
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
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
    if state:
        optimiser.load_state_dict(state["optimiser"])
    history: list[dict[str, float]] = state["history"] if state else []
    num_train = config["num_photos"] / world
    batch_size = max(1, settings.batch_size // world)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=_is_bfloat16(settings.precision, device))
    for epoch in range(len(history), settings.epochs):
        start = time.monotonic()
        stream = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch * 1009 + rank)
        codes = _CodeStatistics()
        model.train()
        total, done, noted = 0.0, 0, start
        for photos in _batches("train", batch_size, settings.seed + epoch, device):
            progress = (epoch + min(1.0, done / num_train)) / settings.epochs
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
            clean = normalised(crop_and_flip(photos, stream))
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
                board.put(Update(epoch, done * world, total / done))
        validation_loss = _validate(model, settings, autocast, device) if rank == 0 else math.nan
        history.append({"epoch": epoch + 1, "train": total / max(1, done), "validation": validation_loss})
        if rank == 0:
            seconds = time.monotonic() - start
            board.put(Update(epoch, done * world, total / max(1, done), validation_loss, seconds))
        _report(rank, model, optimiser, history, codes)


def _num_cores() -> int:
    """Cores that this process may use; not every system can tell them from all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_bfloat16(precision: str, device: torch.device) -> bool:
    if precision != "auto":
        return precision == "bfloat16"
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()


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
        clean = normalised(central_crop(photos))
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
        return torch.load(Path(folder) / "state.pt", map_location="cpu", weights_only=True)


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
        torch.save(state | codes.state(), Path(folder) / "state.pt")
        ray.train.report(history[-1], checkpoint=ray.train.Checkpoint.from_directory(folder))
