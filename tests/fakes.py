"""Renderers that draw nothing or misbehave on purpose. The Ray, the store and the driver around them are real.

Nothing here imports torch, which would be most of what a worker's start costs.
"""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import ray

from cluster.context import Place, ShardReport
from cluster.run import Run, image_key, sha256
from cluster.storage import open_store
from dgn.errors import StoreError


class FakeActor:
    """Commits a row and a few bytes per target. Subclasses go wrong."""

    def __init__(self, context, weights, decoder):
        self.context = context
        self.steps = 0
        self.rendered = {}  # by attempt: shard, and when it began
        self.run = Run(open_store(context.url))
        self.before_start()

    def before_start(self):
        pass

    def ready(self):
        self.run.expect(self.context.run_id)
        return Place.here("fake")

    @ray.method(concurrency_group="pulse")
    def pulse(self):
        return self.steps

    def trouble(self, index, attempt):
        pass

    def finishing_trouble(self, index):
        pass

    def note(self, index):
        """Leaves a trace of each attempt beside the run."""
        folder = Path(os.environ.get("DGN_TEST_TRACE", self.context.url + "-trace"))
        folder.mkdir(exist_ok=True)
        (folder / f"{index}-{time.monotonic_ns()}").touch()
        return len(list(folder.glob(f"{index}-*")))

    def render(self, index, attempt):
        start = time.monotonic()
        self.trouble(index, attempt)
        self.rendered[attempt] = index, start

    @ray.method(concurrency_group="finish")
    def finish(self, attempt):
        index, start = self.rendered.pop(attempt)
        self.finishing_trouble(index)
        rows = []
        for target in self.context.plan.shard(index).targets:
            key, png = image_key(index, attempt, target.target_id), target.target_id.encode()
            self.run.store.write(key, png)
            rows.append(
                {
                    "run_id": self.context.run_id, "target_id": target.target_id, "shard": index, "attempt": attempt,
                    "layer": target.layer, "unit": target.unit, "mode": target.mode, "status": "ok",
                    "activation": float(target.unit or 0), "file_name": key, "sha256": sha256(png), "bytes": len(png),
                    "rendered_at": datetime.now(UTC),
                }
            )  # fmt: skip
        won = self.run.commit(index, attempt, rows, {"run_id": self.context.run_id})
        return ShardReport(index, len(rows), {"ok": len(rows)}, time.monotonic() - start, won)


class PoisonActor(FakeActor):
    """Shard 1 always raises, shard 2 always kills its process, shard 3 does so once."""

    def trouble(self, index, attempt):
        attempts = self.note(index)
        if index == 1:
            raise RuntimeError("this shard is poison\nwith a second line")
        if index == 2 or (index == 3 and attempts == 1):
            os._exit(1)


class LostAnswerActor(FakeActor):
    """Dies after its commit and before its answer: of two shards, one of them the last."""

    @ray.method(concurrency_group="finish")
    def finish(self, attempt):
        report = super().finish(attempt)
        if report.shard in (0, 7) and self.note(report.shard) == 1:
            os._exit(1)
        return report


class OverlappingActor(FakeActor):
    """Finishes a shard only after the next one has been rendered, and dawdles then: a worker that is given one shard at
    a time never comes to its end, one that is given too many has three."""

    def trouble(self, index, attempt):
        assert len(self.rendered) <= 1, f"shard {index} begins beside {self.rendered}"

    @ray.method(concurrency_group="finish")
    def finish(self, attempt):
        index, _ = self.rendered[attempt]
        until = time.monotonic() + 60
        while index % 2 == 0 and len(self.rendered) < 2:
            assert time.monotonic() < until, f"shard {index} is alone"
            time.sleep(0.01)
        time.sleep(0.3)
        return super().finish(attempt)


class FragileActor(FakeActor):
    """Shard 2 kills its process while it is saved and another one is rendered, once."""

    def trouble(self, index, attempt):
        if index == 3 and self.note(index) == 1:
            time.sleep(600)

    def finishing_trouble(self, index):
        if index == 2 and self.note(index) == 1:
            time.sleep(1.0)  # the next shard has begun
            os._exit(1)


class ForgetfulStoreActor(FakeActor):
    """The store refuses what is saved of shard 2, once, while another one is rendered."""

    def trouble(self, index, attempt):
        if index == 3:
            time.sleep(2.0)

    def finishing_trouble(self, index):
        if index == 2 and self.note(index) == 1:
            raise StoreError(f"cannot use {self.context.url}: no permission")


class HangingActor(FakeActor):
    def trouble(self, index, attempt):
        if index == 0 and self.note(index) == 1:
            time.sleep(600)  # longer than the test's deadline; the driver kills this process, nobody waits it out


class BusyActor(FakeActor):
    """A shard that takes long, step by step."""

    def trouble(self, index, attempt):
        for _ in range(12 if index == 0 else 1):
            time.sleep(1.0)
            self.steps += 1


class SomeUnstartableActor(FakeActor):
    """The first three of four do not start, at once; the fourth takes its time."""

    def before_start(self):
        if self.note("start") < 4:
            raise RuntimeError("no such device")
        time.sleep(2.0)


class ShutOutActor(FakeActor):
    """The store refuses the first three attempts, as a machine with old credentials has them refused."""

    def trouble(self, index, attempt):
        if self.note("any") <= 3:
            raise StoreError(f"cannot use {self.context.url}: no permission")


class UnstartableActor(FakeActor):
    def before_start(self):
        raise RuntimeError("no such device")


class SleepyActor(FakeActor):
    """A second per shard, so that something can happen in the middle of one."""

    def trouble(self, index, attempt):
        time.sleep(1.0)


class SlowActor(FakeActor):
    """Six seconds per shard: a machine can be told to leave before one is done."""

    def trouble(self, index, attempt):
        time.sleep(6.0)


class JumpingClockActor(SleepyActor):
    """The machine's clock goes forward by a day, then back by two, shard by shard."""

    def trouble(self, index, attempt):
        super().trouble(index, attempt)
        jump_clock(86400.0 if index % 2 else -172800.0)


real_time = time.time


def jump_clock(seconds):
    """Sets this process's wall clock off; its monotonic one cannot be."""
    time.time = lambda: real_time() + seconds


class FullDeviceActor(FakeActor):
    """A device that has no room for a single target of shard 2."""

    def before_start(self):
        import torch

        self.error = torch.OutOfMemoryError

    def trouble(self, index, attempt):
        if index == 2:
            raise self.error("CUDA out of memory")
