"""RenderActor: one device, one frozen replica of D, loaded once; renders shards and commits them."""

from __future__ import annotations

import logging
import platform
import resource
import time
from datetime import UTC, datetime
from typing import Any

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
from dgn.render import DTYPES, RenderResult, render_targets
from dgn.targets import Mode

log = logging.getLogger("dgn")

AUTO_BATCH_CPU = 4
MEMORY_SHARE = 0.8  # of a GPU's free memory that `--batch-size auto` plans with


class RenderActor:
    """Lives on one device. The driver wraps it with `ray.remote`, tests call it as it is."""

    def __init__(self, context: RunContext, weights: FrozenWeights, decoder: dict[str, Tensor] | None):
        self.context, self.decoder = context, decoder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.discriminator = Discriminator(weights, self.device, DTYPES[context.render.precision])
        is_exact = context.render.precision == "float32"
        self.judge = self.discriminator if is_exact else Discriminator(weights, self.device)
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

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"

    def render(self, index: int, attempt: str) -> ShardReport:
        """Renders a shard, saves its pictures under the attempt, and commits its rows in one step."""
        start = time.monotonic()
        shard = self.context.plan.shard(index)
        kind = (shard.block.mode, shard.block.layer)
        about = {"run": self.context.run_id, "shard": index, "attempt": attempt, "host": platform.node()}
        log.info("shard %06d begins: %d targets", index, len(shard), extra=about)
        rows: list[dict[str, Any]] = []
        for result in render_targets(
            shard.targets,
            self.context.render,
            self.discriminator,
            self.decoder,
            self.largest_batch.get(kind) or self.context.batch_size or self._auto_batch(*kind),
            on_halved=lambda size: self.largest_batch.update({kind: size}),
            on_update=self._note_step,
        ):
            row = self._save(result, index, attempt)
            self._note_step()
            rows.append(row)
            self.metrics.picture_seconds.observe(result.seconds, {"mode": kind[0], "layer": kind[1]})
            log.info("%s: %s", row["target_id"], row["status"], extra={**about, "target": row["target_id"]})
        self.metrics.device_memory.set(self._most_memory_bytes(), {"device": self.device_name})
        won = self.run.commit(index, attempt, rows, {"run_id": self.context.run_id, **self.context.fingerprint})
        statuses: dict[str, int] = {}
        for row in rows:
            statuses[row["status"]] = statuses.get(row["status"], 0) + 1
        return ShardReport(index, len(rows), statuses, time.monotonic() - start, won)

    def _save(self, result: RenderResult, shard: int, attempt: str) -> dict[str, Any]:
        """Writes one target's PNG and returns its row, scored from those very bytes."""
        target, scores, png = result.target, None, None
        if result.is_finite:
            png = picture.encode_png(result.picture_3HW)
            scores = picture.rescore([png], [target], self.judge)[0]
        layout = self.discriminator.layout
        status, reason = picture.judge(result, scores, layout.class_layer)
        row: dict[str, Any] = {
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
        if png is not None and scores is not None:
            key = image_key(shard, attempt, target.target_id)
            self.run.store.write(key, png)
            row |= {
                "activation": scores.activation,
                "unrounded_activation": picture.score(result.picture_3HW[None], [target], self.judge)[0].activation,
                "rank": scores.rank,
                "probability": scores.probability,
                "top5": [top.__dict__ for top in scores.top5],
                "others_sum": scores.others_sum,
                "file_name": key,
                "sha256": sha256(png),
                "bytes": len(png),
                "width": result.picture_3HW.shape[2],
                "height": result.picture_3HW.shape[1],
                "thumbnail": picture.encode_thumbnail(png),
            }
        return row

    def _auto_batch(self, mode: Mode, layer: str) -> int:
        """As many targets as fit on a GPU by the counted bytes; on a CPU more than a few bring nothing (measured)."""
        if self.device.type == "cpu":
            return AUTO_BATCH_CPU
        from dgn.info import cost  # brings Triton along, half a second that a CPU's worker need not wait

        free, _ = torch.cuda.mem_get_info(self.device)
        free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        if (mode, layer) not in self.bytes_per_target:
            counted = cost(self.context.render, mode, self.discriminator.network, layer)
            self.bytes_per_target[mode, layer] = counted.bytes_per_target
        return max(1, int(free * MEMORY_SHARE) // self.bytes_per_target[mode, layer])
