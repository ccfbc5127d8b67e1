"""RenderWorker: one device with one frozen copy of the classifier. It renders shards and commits them.

Data flows one way: the loop returns a batch's pictures; they are rounded to 8 bits and scored between two batches, on
the device's thread; then they are encoded and written by other threads while the device renders on.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass

import ray
import torch

from dgn.cluster.context import RunContext, ShardReport
from dgn.cluster.device_worker import DeviceWorker
from dgn.cost.batches import choose_batch_size
from dgn.engine import engine_for
from dgn.method.loop import render_targets
from dgn.method.precision import DTYPES
from dgn.networks.weights import NetworkWeights
from dgn.pictures.codec import encode_png, encode_thumbnail
from dgn.pictures.scoring import Best, ScoredPicture, score_results
from dgn.runs.decoders import Decoder
from dgn.runs.rows import Provenance, Row, make_row
from dgn.runs.run import Run
from dgn.runs.stores import open_store
from dgn.targets import Mode, Target

log = logging.getLogger("dgn")

NUM_SAVERS = 4  # batches of a shard that are saved at a time


@dataclass(frozen=True)
class _Rendered:
    """A shard whose pictures are made and are being saved."""

    index: int
    started_at: float
    saving: list[Future[list[Row]]]
    busy_s: float  # as in ShardReport
    span_s: float


class RenderWorker(DeviceWorker):
    """Renders shards.

    `render` returns when a shard's pictures are made, and the device is free for the next shard; `finish` returns when
    the shard is committed.
    """

    context: RunContext

    def __init__(self, context: RunContext, weights: NetworkWeights, decoder: Decoder | None):
        super().__init__(context, Run(open_store(context.url)))
        self.tuned = context.tuned.get(self.engine.model)
        if self.tuned:
            self.engine = engine_for(self.engine.device, self.tuned.is_winograd is not False)
            log.info("tuned: %s", self._describe_tuning())
        self.classifier = self._load(weights, DTYPES[context.render.precision])
        self.decoder = decoder.on(self.engine.device) if decoder else None
        is_exact = context.render.precision == "float32"
        self.scorer = self.classifier if is_exact else self._load(weights, torch.float32)
        self.savers = ThreadPoolExecutor(NUM_SAVERS, "saver")
        self.rendered: dict[str, _Rendered] = {}  # by attempt
        self.largest_batch: dict[tuple[Mode, str], int] = {}  # after one was halved for memory

    def render(self, index: int, attempt: str) -> None:
        """Renders a shard and returns when the device is free; the last pictures are still being saved then.

        Raises: StoreError from saving an earlier batch of the shard.
        """
        self.rendered[attempt] = self.device_thread.submit(self._render, index, attempt).result()

    @ray.method(concurrency_group="finish")
    def finish(self, attempt: str) -> ShardReport:
        """Commits a rendered shard once its pictures are saved. Raises: StoreError."""
        shard = self.rendered.pop(attempt)
        rows = [row for batch in shard.saving for row in batch.result()]
        self.run.commit(shard.index, attempt, rows, {"run_id": self.context.run_id, **self.context.fingerprint})
        statuses = dict(Counter(row["status"] for row in rows))
        seconds = time.monotonic() - shard.started_at
        return ShardReport(shard.index, len(rows), statuses, seconds, shard.busy_s, shard.span_s)

    def _render(self, index: int, attempt: str) -> _Rendered:
        started_at = time.monotonic()
        self.first_at = self.first_at or started_at
        shard = self.context.plan.shard(index)
        kind = (shard.block.mode, shard.block.layer)
        log.info("shard %06d starts: %d targets", index, len(shard), extra=self._about(index, attempt))
        saving: list[Future[list[Row]]] = []
        waited_s = 0.0
        best = Best(shard.targets)
        with self.engine.keep_memory():
            batches = render_targets(
                [one for target in shard.targets for one in target.tries],
                self.context.render,
                self.classifier,
                self.decoder,
                self._batch_size(*kind),
                on_halved=lambda size: self.largest_batch.update({kind: size}),
                on_update=self._note_step,
            )
            for results in batches:
                complete = best.add(score_results(results, self.scorer))
                saving.append(self.savers.submit(self._save, complete, index, attempt))
                for result in results:
                    self.metrics.picture_seconds.observe(result.seconds, {"mode": kind[0], "layer": kind[1]})
                # Pictures wait in memory, and a store may be away for minutes: no more than NUM_SAVERS batches do.
                waiting_since = time.monotonic()
                wait_for(saving[:-NUM_SAVERS])
                waited_s += time.monotonic() - waiting_since
                for saved in filter(Future.done, saving):
                    saved.result()
        self.metrics.device_memory.set(self.engine.peak_bytes(), {"device": self.engine.name})
        ended_at = time.monotonic()
        self.busy_s += ended_at - started_at - waited_s
        return _Rendered(index, started_at, saving, self.busy_s, ended_at - self.first_at)

    def _save(self, pictures: list[tuple[Target, ScoredPicture]], shard: int, attempt: str) -> list[Row]:
        """Writes a batch's PNGs, unless rows hold them, and returns its rows."""
        rows = []
        origin = Provenance(self.context.run_id, shard, attempt, self.engine.name)
        for target, one in pictures:
            png = thumbnail = None
            if one.picture_HW3 is not None:
                png, thumbnail = encode_png(one.picture_HW3), encode_thumbnail(one.picture_HW3)
            row = make_row(one, self.classifier.layers, origin, png, thumbnail, target, self.context.is_packed)
            if png is not None and not self.context.is_packed:
                self.run.store.write(row["file_name"], png)
            self._note_step()
            about = {**self._about(shard, attempt), "target": row["target_id"]}
            log.info("%s: %s", row["target_id"], row["status"], extra=about)
            rows.append(row)
        return rows

    def _batch_size(self, mode: Mode, layer: str) -> int:
        known = self.largest_batch.get((mode, layer)) or self.context.batch_size
        return known or choose_batch_size(self.context.render, mode, self.classifier, layer, self.tuned, self.decoder)

    def _describe_tuning(self) -> str:
        assert self.tuned
        run: str = self.context.render.precision
        if self.context.batch_size:
            run += f", batches of {self.context.batch_size}"
        measured = f"measured with {self.tuned.discriminator}, preset {self.tuned.preset}"
        return f"{self.tuned.device} is fastest with {self.tuned} ({measured}); the run asks for {run}"
