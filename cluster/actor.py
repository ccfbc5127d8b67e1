"""RenderActor: one device, one frozen replica of D, loaded once; renders shards and commits them."""

from __future__ import annotations

import itertools
import logging
import platform
import resource
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

import ray
import torch
from torch import Tensor

from cluster import storage
from cluster.context import Place, RunContext, ShardReport
from cluster.metrics import Metrics
from cluster.run import Run, image_key, sha256
from cluster.storage import open_store
from dgn import picture
from dgn.discriminator import Discriminator, FrozenWeights
from dgn.picture import Scores
from dgn.render import DTYPES, RenderResult, render_targets
from dgn.replay import is_out_of_memory
from dgn.targets import Mode, Target
from dgn.tuning import Tuned, device_model

log = logging.getLogger("dgn")

AUTO_BATCH_CPU = 4
MEMORY_SHARE = 0.8  # of a GPU's free memory that `--batch-size auto` plans with
NUM_SAVERS = 4  # batches of a shard that are saved at a time, each picture by picture
SCORED_TOGETHER = 32  # pictures, as the batch at work leaves little of a device's memory

Row = dict[str, Any]
Args = ParamSpec("Args")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Scored:
    """A picture as it is written, and how D sees it."""

    png: bytes
    scores: Scores
    unrounded_activation: float


@dataclass(frozen=True)
class _Rendered:
    """A shard whose pictures are made; its batches are being saved."""

    index: int
    begun_at: float
    saving: list[Future[list[Row]]]
    busy_s: float  # of the device, as ShardReport has them
    span_s: float


class RenderActor:
    """Lives on one device. The driver wraps it with `ray.remote`, tests call it as it is.

    The device works while what it made is encoded and written: `render` returns when a shard's pictures are made, and
    the next one may begin; `finish` returns when the shard is committed.
    """

    def __init__(self, context: RunContext, weights: FrozenWeights, decoder: dict[str, Tensor] | None):
        self.context, self.decoder = context, decoder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.device_name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        self.tuned = self._tuned()
        is_winograd = self.tuned is None or self.tuned.is_winograd is not False
        # All arithmetic runs in one thread. While it records a CUDA graph, no other may call CUDA; on a CPU every one
        # that calculates gets helpers of its own, and where these outnumber the cores all sleep between two tasks.
        self.on_device = ThreadPoolExecutor(1, "device")

        def load(dtype: torch.dtype, is_winograd: bool) -> Discriminator:
            return self.on_device.submit(Discriminator, weights, self.device, dtype, is_winograd).result()

        self.discriminator = load(DTYPES[context.render.precision], is_winograd)
        is_exact = context.render.precision == "float32"
        self.judge = self.discriminator if is_exact else load(torch.float32, is_winograd)
        self.savers = ThreadPoolExecutor(NUM_SAVERS, "saver")
        self.to_score: deque[tuple[Future[list[Scores]], Callable[[], Tensor], list[Target]]] = deque()
        self.first_at: float | None = None  # when its first shard began
        self.busy_s = 0.0  # of the device
        self.rendered: dict[str, _Rendered] = {}  # by attempt
        self.steps = 0
        self.metrics = Metrics(context.run_id)
        storage.retry_observers += [self.metrics.note_storage_retry, self._note_step]
        self.run = Run(open_store(context.url))
        self.bytes_per_target: dict[tuple[Mode, str], int] = {}
        self.largest_batch: dict[tuple[Mode, str], int] = {}  # where one had to be halved for memory

    def ready(self) -> Place:
        """Answers once the replica is loaded. Raises: StoreError where this machine does not see the run."""
        self.run.expect(self.context.run_id)
        return Place.here(self.device_name)

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> int:
        """Steps made so far: updates, pictures saved, retries of the store. Answers while a shard is rendered; a count
        that stands still means that it hangs."""
        return self.steps

    def _note_step(self, *_: object) -> None:
        self.steps += 1

    def _most_memory_bytes(self) -> int:
        """The most that this process has held: of its GPU, or, on a CPU, of the machine's memory."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB

    def render(self, index: int, attempt: str) -> None:
        """Renders a shard and returns as soon as the device is free; its pictures are still being saved then.

        Raises: StoreError, from saving an earlier batch of the shard.
        """
        start = time.monotonic()
        shard = self.context.plan.shard(index)
        kind = (shard.block.mode, shard.block.layer)
        about = self._about(index, attempt)
        log.info("shard %06d begins: %d targets", index, len(shard), extra=about)
        results = render_targets(
            shard.targets,
            self.context.render,
            self.discriminator,
            self.decoder,
            self.largest_batch.get(kind) or self.context.batch_size or self._auto_batch(*kind),
            on_halved=lambda size: self.largest_batch.update({kind: size}),
            on_update=self._note_update,
        )
        self.first_at = self.first_at or start
        saving: list[Future[list[Row]]] = []
        while batch := self._use_device(next, results, None).result():
            saving.append(self.savers.submit(self._save, batch, index, attempt))
            wait_for(saving[:-NUM_SAVERS])  # pictures wait in memory, and a store may be away for minutes
            for saved in filter(Future.done, saving):
                saved.result()
            for result in batch:
                self.metrics.picture_seconds.observe(result.seconds, {"mode": kind[0], "layer": kind[1]})
        self.metrics.device_memory.set(self._most_memory_bytes(), {"device": self.device_name})
        self.rendered[attempt] = _Rendered(index, start, saving, self.busy_s, time.monotonic() - self.first_at)

    @ray.method(concurrency_group="finish")
    def finish(self, attempt: str) -> ShardReport:
        """Commits a rendered shard in one step, once its pictures are saved. Raises: StoreError."""
        shard = self.rendered.pop(attempt)
        rows = list(itertools.chain.from_iterable(batch.result() for batch in shard.saving))
        won = self.run.commit(shard.index, attempt, rows, {"run_id": self.context.run_id, **self.context.fingerprint})
        return ShardReport(
            shard.index,
            len(rows),
            dict(Counter(row["status"] for row in rows)),
            time.monotonic() - shard.begun_at,
            won,
            shard.busy_s,
            shard.span_s,
        )

    def _about(self, shard: int, attempt: str) -> dict[str, Any]:
        return {"run": self.context.run_id, "shard": shard, "attempt": attempt, "host": platform.node()}

    def _use_device(self, work: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Future[Result]:
        """Work for the device, behind what was asked of it before; the time that it takes is counted."""

        def timed() -> Result:
            start = time.monotonic()
            try:
                return work(*args, **kwargs)
            finally:
                self.busy_s += time.monotonic() - start

        return self.on_device.submit(timed)

    def _note_update(self, *_: object) -> None:
        self._note_step()
        self._score_waiting()  # else a shard could be committed only when the next one is rendered

    def _save(self, results: list[RenderResult], shard: int, attempt: str) -> list[Row]:
        """Writes a batch's PNGs and returns its rows."""
        finite = [result for result in results if result.is_finite]
        scored = dict(zip((result.target for result in finite), self._scored(finite), strict=True))
        rows = []
        for result in results:
            row = self._row(result, scored.get(result.target), shard, attempt)
            if saved := scored.get(result.target):
                self.run.store.write(row["file_name"], saved.png)
            self._note_step()
            about = {**self._about(shard, attempt), "target": row["target_id"]}
            log.info("%s: %s", row["target_id"], row["status"], extra=about)
            rows.append(row)
        return rows

    def _scored(self, results: list[RenderResult]) -> list[_Scored]:
        """Pictures as they are written, scored from those very bytes."""
        if not results:
            return []
        pngs = [picture.encode_png(result.picture_3HW) for result in results]
        targets = [result.target for result in results]
        images = (lambda: picture.stacked(pngs) / 255), (lambda: torch.stack([r.picture_3HW for r in results]))
        asked = [self._score(make, targets) for make in images]
        saved, unrounded = (scores.result() for scores in asked)
        return [_Scored(png, own, other.activation) for png, own, other in zip(pngs, saved, unrounded, strict=True)]

    def _score(self, images: Callable[[], Tensor], targets: list[Target]) -> Future[list[Scores]]:
        """Asks the device's thread to make (N, 3, H, W) and to score them, between two updates or when it has nothing
        else."""
        scores: Future[list[Scores]] = Future()
        self.to_score.append((scores, images, targets))
        self._use_device(self._score_waiting)
        return scores

    def _score_waiting(self) -> None:
        while self.to_score:
            scores, images, targets = self.to_score.popleft()
            try:
                scores.set_result(self._scores(images(), targets))
            except Exception as error:  # whoever asked raises it
                scores.set_exception(error)

    def _scores(self, images_N3HW: Tensor, targets: list[Target]) -> list[Scores]:
        """Some pictures at a time, fewer where a batch that is being optimised leaves a GPU too little memory."""
        found: list[Scores] = []
        size = SCORED_TOGETHER
        while len(found) < len(targets):
            some = slice(len(found), len(found) + size)
            try:
                found += picture.score(images_N3HW[some], targets[some], self.judge)
            except RuntimeError as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
                size //= 2
        return found

    def _row(self, result: RenderResult, scored: _Scored | None, shard: int, attempt: str) -> Row:
        """`scored`: None for a picture that is not finite."""
        target, layout = result.target, self.discriminator.layout
        status, reason = picture.judge(result, scored.scores if scored else None, layout.class_layer)
        row: Row = {
            "run_id": self.context.run_id,
            "target_id": target.target_id,
            "shard": shard,
            "attempt": attempt,
            "layer": target.layer,
            "unit": target.unit,
            "units": [{"layer": u.layer, "unit": u.unit, "weight": u.weight} for u in target.units],
            "label": layout.label(target),
            "mode": target.mode,
            "seed": target.seed,
            "discriminator": layout.network,
            "status": status,
            "reason": reason,
            "optimised_activation": result.optimised_activation,
            "activation_curve": list(result.activation_curve),
            "updates": result.num_updates,
            "file_name": None,
            "seconds": result.seconds,
            "device": self.device_name,
            "host": platform.node(),
            "rendered_at": datetime.now(UTC),
        }
        if scored:
            row |= {
                "activation": scored.scores.activation,
                "unrounded_activation": scored.unrounded_activation,
                "rank": scored.scores.rank,
                "probability": scored.scores.probability,
                "top5": [top.__dict__ for top in scored.scores.top5],
                "others_sum": scored.scores.others_sum,
                "file_name": image_key(shard, attempt, target.target_id),
                "sha256": sha256(scored.png),
                "bytes": len(scored.png),
                "width": result.picture_3HW.shape[2],
                "height": result.picture_3HW.shape[1],
                "thumbnail": picture.encode_thumbnail(scored.png),
            }
        return row

    def _auto_batch(self, mode: Mode, layer: str) -> int:
        """The tuned size, on a GPU no more than fit by the counted bytes. Untuned as many as fit on a GPU; on a CPU
        more than a few bring nothing (measured)."""
        tuned = self.tuned.batch_size.get(mode) if self.tuned else None
        if self.device.type == "cpu":
            return tuned or AUTO_BATCH_CPU
        from dgn.info import cost  # brings Triton along, half a second that a CPU's worker need not wait

        free, _ = torch.cuda.mem_get_info(self.device)
        free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        if (mode, layer) not in self.bytes_per_target:
            counted = cost(self.context.render, mode, self.discriminator.network, layer)
            self.bytes_per_target[mode, layer] = counted.bytes_per_target
        fitting = max(1, int(free * MEMORY_SHARE) // self.bytes_per_target[mode, layer])
        return min(tuned, fitting) if tuned else fitting

    def _tuned(self) -> Tuned | None:
        """The entry of this device's model, if there is one; says so once."""
        tuned = self.context.tuned.get(device_model(self.device)) if self.context.tuned else None
        if tuned:
            of_run = f"; the run wants {self.context.render.precision}"
            if self.context.batch_size:
                of_run += f", batches of {self.context.batch_size}"
            measured = f"{tuned.discriminator}, preset {tuned.preset}"
            log.info("tuned: %s is fastest with %s (measured with %s)%s", tuned.device, tuned, measured, of_run)
        return tuned
