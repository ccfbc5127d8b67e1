"""What workers have in common: one device with one frozen copy of the classifier, and how the driver watches them."""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import torch

from dgn.cluster.context import ExamplesContext, Place, RunContext
from dgn.cluster.metrics import Metrics
from dgn.compiler import leave_out_compiler
from dgn.engine import engine_for
from dgn.errors import DgnError
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.weights import NetworkWeights
from dgn.runs.run import Run
from dgn.runs.stores import retry_observers


class DeviceWorker:
    """Lives on one device. The driver wraps it with `ray.remote`; tests call it directly.

    Subclasses set `classifier`, and have `render(index, attempt)`, after which the device is free for the next shard,
    and `finish(attempt)`, after which the shard is committed.
    """

    classifier: FrozenNetwork

    def __init__(self, context: RunContext | ExamplesContext, run: Run):
        leave_out_compiler()
        self.context, self.run = context, run
        # Ray sets it when it gives a worker its cores. PyTorch, which reads it, may have been imported before.
        if (num_cores := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
            torch.set_num_threads(int(num_cores))
        self.engine = engine_for()
        self._check_precision()
        # All arithmetic runs in this one thread. While a CUDA graph is recorded no other thread may call CUDA; and on a
        # CPU each thread that calculates gets helpers of its own, which sleep once they outnumber the cores.
        self.device_thread = ThreadPoolExecutor(1, "device")
        self.first_at: float | None = None  # when the first shard started
        self.busy_s = 0.0  # of the device
        self.steps = 0
        self.metrics = Metrics(context.run_id)
        retry_observers.extend([self.metrics.note_storage_retry, self._note_step])

    def _check_precision(self) -> None:
        """Raises: DgnError where each shard would fail, on a GPU that is older than those that the run began on."""
        is_bfloat16 = isinstance(self.context, RunContext) and self.context.render.precision == "bfloat16"
        if is_bfloat16 and self.engine.is_gpu and not self.engine.has_bfloat16:
            raise DgnError(
                f"the {self.engine.name} of {platform.node()} has no bfloat16 in hardware, which this run draws with: "
                "take machines with newer GPUs (Ampere and later), or begin another run with --precision float32"
            )

    def _load(self, weights: NetworkWeights, dtype: torch.dtype) -> FrozenNetwork:
        return self.device_thread.submit(FrozenNetwork, weights, self.engine, dtype).result()

    def ready(self) -> Place:
        """Answers once the classifier is loaded. Raises: StoreError if this machine does not see the run."""
        self.run.expect(self.context.run_id)
        return Place.here(self.engine.name, self.classifier.remark)

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> int:
        """Steps so far: updates, pictures saved, retries of the store. Answers while a shard is rendered; a count that
        stands still means that the shard hangs."""
        return self.steps

    def _note_step(self, *_: object) -> None:
        self.steps += 1

    def _about(self, shard: int, attempt: str) -> dict[str, Any]:
        return {"run": self.context.run_id, "shard": shard, "attempt": attempt, "host": platform.node()}
