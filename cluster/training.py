"""Training the paper's denoising autoencoder with Ray Train over Ray Data, one checkpoint per epoch.

This is the driver's side; `training_worker.py` runs on the devices.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow.fs
import ray
import ray.train
import torch
from ray.data import Dataset, ExecutionOptions
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from dgn.cluster.dataset import Survey, decoded, open_photographs, survey
from dgn.cluster.rules import Workers
from dgn.cluster.training_settings import TrainingSettings
from dgn.cluster.training_worker import STATE_FILE, Update, train_worker
from dgn.errors import DgnError, Incomplete
from dgn.method.autoencoder import Autoencoder, add_noise, along_axes, central_crop, displayed
from dgn.method.decoder import FORMAT_VERSION
from dgn.pictures.ceiling import Ceiling
from dgn.runs.stores.base import KeyExists, Store
from dgn.runs.stores.local import LocalStore
from dgn.text import NOT_JSON, in_one_line, printable

log = logging.getLogger("dgn")
MAX_FAILURES = 3  # of workers in one training; each costs at most the epoch that it was in
NUM_SAMPLES = 6  # held-out photographs on the sheet of reconstructions
SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class Outcome:
    """A finished decoder."""

    survey: Survey
    decoder: dict[str, Tensor]  # the content of its file, see `method.decoder.FrozenDecoder`
    history: tuple[dict[str, float], ...]  # one entry per epoch; of recipe `standard` one in all
    samples: dict[str, Tensor]  # of held-out photographs: originals, reconstructions and so on, 8-bit RGB (N, H, W, 3)

    @property
    def error(self) -> float:
        """Mean squared error over the held-out photographs, in variances of photographs' colours."""
        return self.history[-1]["validation"]


def train(
    images: str,
    column: str,
    folder: Store,
    settings: TrainingSettings,
    workers: Workers,
    is_resumed: bool,
    observe: Callable[[Update], None],
    ceiling: Ceiling | None = None,
) -> Outcome:
    """Trains from the start, or from the last checkpoint in `folder`.

    Args:
        ceiling: judged photographs, whose share is measured after every epoch.

    Raises: DgnError for unusable photographs, folder or settings; Incomplete if workers kept dying.
    """
    identity = {**settings.model_dump(), "decoder_format": FORMAT_VERSION}
    _check_folder(folder, identity, is_resumed)
    photographs = open_photographs(images, column)
    found = survey(photographs, images)
    for line in found.broken:
        log.warning("skipped %s", printable(line))
    held_out = decoded(photographs, found.held_out, is_held_out=True).materialize()
    num_train = found.num_photographs - held_out.count()
    if num_train < workers.at_most:
        raise DgnError(
            f"{num_train} photographs to train on in {images}: each of {workers.at_most} workers needs at least one"
        )
    _claim(folder, identity, found, is_resumed)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # On this machine, so that it lives as long as this process.
    board = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    reader = Thread(target=_read_board, args=(board, observe), daemon=True)
    reader.start()
    is_on_gpus = workers.gpus_each > 0
    judged = None if ceiling is None else ray.put(ceiling)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "settings": settings.model_dump(),
            "num_train": num_train,
            "board": board,
            "ceiling": judged,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.at_most,
            use_gpu=is_on_gpus,
            placement_strategy="PACK" if is_on_gpus else "SPREAD",
            resources_per_worker=None if is_on_gpus else {"CPU": _cpus_each(workers.at_most)},
        ),
        run_config=ray.train.RunConfig(
            **_storage(folder),
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]
                max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
        datasets={"train": decoded(photographs, found.held_out, is_held_out=False), "validation": held_out},
        dataset_config=ray.train.DataConfig(
            datasets_to_split=["train"], execution_options=ExecutionOptions(preserve_order=True)
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        reason = in_one_line(error)
        raise Incomplete(f"training ended: {reason}; --resume continues from the last whole epoch") from error
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
            f"the training diverged in epoch {last['epoch']}: delete {folder.url} and give a lower --learning-rate"
        )
    return _outcome(settings, found, state, held_out)


def _cpus_each(num_workers: int) -> float:
    """The CPUs each worker claims: all but one of the cluster's, which stays free for decoding.

    Workers choose their number of threads themselves.
    """
    cpus = ray.cluster_resources().get("CPU", 1.0)
    return min(1.0, max(0.01, (cpus - 1) / num_workers))


def _storage(folder: Store) -> dict[str, Any]:
    """Ray Train's settings for keeping checkpoints in `folder`."""
    files, root = folder.arrow()
    parent, _, name = root.rpartition("/")
    if isinstance(folder, LocalStore):
        return {"storage_path": parent, "name": name}
    handler = pyarrow.fs.FSSpecHandler(files)
    return {"storage_path": parent, "name": name, "storage_filesystem": pyarrow.fs.PyFileSystem(handler)}


def _check_folder(folder: Store, identity: dict[str, Any], is_resumed: bool) -> None:
    """Raises: DgnError if --resume is missing or wrong. Runs before anything slow."""
    is_begun = folder.exists(SETTINGS_FILE)
    if is_begun and not is_resumed:
        raise DgnError(f"{folder.url} holds an unfinished training: give --resume to continue it, or delete it")
    if is_resumed and not is_begun:
        raise DgnError(f"nothing to resume: {folder.url} has no checkpoints; leave out --resume")
    if is_begun:
        _compare(folder, identity)


def _claim(folder: Store, identity: dict[str, Any], found: Survey, is_resumed: bool) -> None:
    """Starts a folder of checkpoints, or checks that it is of the same photographs. Raises: DgnError."""
    ours = {**identity, "photos_sha256": found.sha256}
    if is_resumed:
        _compare(folder, ours)
        return
    try:
        folder.create(SETTINGS_FILE, json.dumps(ours, indent=2).encode())
    except KeyExists as error:
        raise DgnError(f"another training into {folder.url} started just now") from error


def _compare(folder: Store, ours: dict[str, Any]) -> None:
    try:
        theirs = json.loads(folder.read(SETTINGS_FILE))
    except NOT_JSON:
        theirs = None
    if not isinstance(theirs, dict):
        raise DgnError(f"{folder.url}/{SETTINGS_FILE} does not hold settings: delete the folder and start again")
    for name, value in ours.items():
        if value != theirs.get(name):
            raise DgnError(
                f"{folder.url} holds a training with other settings: {name} is {theirs.get(name)} there, {value} here"
            )


def _read_board(board: Queue, observe: Callable[[Update], None]) -> None:
    while (update := board.get()) is not None:
        observe(update)


def _outcome(settings: TrainingSettings, found: Survey, state: dict[str, Any], held_out: Dataset) -> Outcome:
    model = Autoencoder(settings.width, settings.seed).eval()
    model.load_state_dict(state["model"])
    photographs = torch.stack([torch.from_numpy(row["photograph"].copy()) for row in held_out.take(NUM_SAMPLES)])
    clean = along_axes(central_crop(photographs))
    noisy = add_noise(clean, settings.noise_sigma, torch.Generator().manual_seed(settings.seed))
    with torch.no_grad():
        shown = {"original": clean, "noisy": noisy, "reconstruction": model(noisy)}
    samples = {title: displayed(pictures) for title, pictures in shown.items()}
    return Outcome(found, model.decoder.state_dict(), tuple(state["history"]), samples)
