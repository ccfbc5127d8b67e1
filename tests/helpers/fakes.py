"""Workers that draw nothing, or misbehave on purpose. The Ray, the store and the driver around them are real.

Nothing here imports torch, which would be most of what a worker's start costs.
"""

import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import ray

from dgn.cluster.context import Place, ShardReport
from dgn.errors import StoreError
from dgn.runs.layout import image_key, sha256
from dgn.runs.run import Run
from dgn.runs.stores import open_store


def hang():
    """Waits to be killed with its process, by the driver or by another thread. Tests that wait so long time out."""
    time.sleep(600)


class FakeWorker:
    """Commits a row and a few bytes per target. Subclasses go wrong."""

    def __init__(self, context, weights, decoder):
        self.context = context
        self.steps = 0
        self.rendered = {}  # by attempt: its shard, and when it began
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
        """Leaves a trace of each attempt beside the run, and returns how many there are."""
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
        self.run.commit(index, attempt, rows, {"run_id": self.context.run_id})
        return ShardReport(index, len(rows), {"ok": len(rows)}, time.monotonic() - start)


class PoisonWorker(FakeWorker):
    """Shard 1 always raises, shard 2 always kills its process, shard 3 does so once."""

    def trouble(self, index, attempt):
        attempts = self.note(index)
        if index == 1:
            raise RuntimeError("this shard is poison\nwith a second line")
        if index == 2 or (index == 3 and attempts == 1):
            os._exit(1)


class DoomedWorker(FakeWorker):
    """Whoever renders shard 7 first kills all workers, when the others have had nothing to do for a while."""

    def before_start(self):
        self.note(f"process.{os.getpid()}.")

    def trouble(self, index, attempt):
        if index == 7 and self.note(index) == 1:
            time.sleep(1.0)
            others = {int(path.name.split(".")[1]) for path in Path(self.context.url + "-trace").glob("process.*")}
            for process in (*others - {os.getpid()}, os.getpid()):
                os.kill(process, signal.SIGKILL)


class LostAnswerWorker(FakeWorker):
    """Dies after its commit and before its answer: with two of the shards, one of them the last."""

    @ray.method(concurrency_group="finish")
    def finish(self, attempt):
        report = super().finish(attempt)
        if report.shard in (0, 7) and self.note(report.shard) == 1:
            os._exit(1)
        return report


class OverlappingWorker(FakeWorker):
    """Finishes a shard only after the next one has been rendered, and then takes its time. A worker that is given one
    shard at a time never ends; one that is given too many has three."""

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


class FragileWorker(FakeWorker):
    """Kills its process once, while shard 2 is saved and shard 3 is rendered."""

    def trouble(self, index, attempt):
        if index == 3 and self.note(index) == 1:
            hang()

    def finishing_trouble(self, index):
        if index == 2 and self.note(index) == 1:
            time.sleep(1.0)  # the next shard has begun
            os._exit(1)


class ForgetfulStoreWorker(FakeWorker):
    """The store refuses shard 2 once while shard 3 is rendered, and shard 5 once while it is rendered itself."""

    def refuse(self, index):
        if self.note(index) == 1:
            raise StoreError(f"cannot use {self.context.url}: no permission")

    def trouble(self, index, attempt):
        if index == 3:
            time.sleep(1.0)
        if index == 5:
            self.refuse(index)

    def finishing_trouble(self, index):
        if index == 2:
            self.refuse(index)


class HangingWorker(FakeWorker):
    """Shard 0 hangs at the first attempt; shard 1 takes long, step by step."""

    def trouble(self, index, attempt):
        if index == 0 and self.note(index) == 1:
            hang()
        for _ in range(10 if index == 1 else 0):
            time.sleep(0.5)
            self.steps += 1


class StragglingWorker(FakeWorker):
    """Shard 0 takes ten minutes at the first attempt."""

    def trouble(self, index, attempt):
        if index == 0 and self.note(index) == 1:
            hang()


class SomeUnstartableWorker(FakeWorker):
    """The first three of four do not start, at once; the fourth takes its time."""

    def before_start(self):
        if self.note("start") < 4:
            raise RuntimeError("no such device")
        time.sleep(2.0)


class UnstartableWorker(FakeWorker):
    def before_start(self):
        raise RuntimeError("no such device")


class SleepyWorker(FakeWorker):
    """Half a second per shard, so that something can happen in the middle of one."""

    def trouble(self, index, attempt):
        time.sleep(0.5)


class NappingWorker(FakeWorker):
    """A second per shard: time for two drivers to see each other."""

    def trouble(self, index, attempt):
        time.sleep(1.0)


class SlowWorker(FakeWorker):
    """Three seconds per shard: time to announce that its machine leaves."""

    def trouble(self, index, attempt):
        time.sleep(3.0)


class JumpingClockWorker(SleepyWorker):
    """The machine's clock jumps forward by a day, then back by two, shard by shard."""

    def trouble(self, index, attempt):
        super().trouble(index, attempt)
        jump_clock(86400.0 if index % 2 else -172800.0)


real_time = time.time


def jump_clock(seconds):
    """Changes this process's wall clock. Its monotonic clock cannot jump."""
    time.time = lambda: real_time() + seconds


class FullDeviceWorker(FakeWorker):
    """A device that has no room for a single target of shard 2."""

    def trouble(self, index, attempt):
        if index == 2:
            import torch  # not for the other shards, since it takes seconds

            raise torch.OutOfMemoryError("CUDA out of memory")
