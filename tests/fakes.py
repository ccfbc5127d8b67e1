"""Renderers that draw nothing or misbehave on purpose. The Ray, the store and the driver around them are real."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

from cluster.actor import ShardReport
from cluster.run import Run, image_key, sha256
from cluster.storage import open_store


class FakeActor:
    """Commits a row and a few bytes per target. Subclasses go wrong."""

    def __init__(self, context, weights, decoder):
        self.context = context
        self.run = Run(open_store(context.url))
        self.before_start()

    def before_start(self):
        pass

    def ready(self):
        return "fake"

    def trouble(self, index, attempt):
        pass

    def note(self, index):
        """Leaves a trace of each attempt beside the run."""
        folder = Path(os.environ.get("DGN_TEST_TRACE", self.context.url + "-trace"))
        folder.mkdir(exist_ok=True)
        (folder / f"{index}-{time.monotonic_ns()}").touch()
        return len(list(folder.glob(f"{index}-*")))

    def render(self, index, attempt):
        self.trouble(index, attempt)
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
        return ShardReport(index, len(rows), {"ok": len(rows)}, 0.1, won)


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

    def render(self, index, attempt):
        report = super().render(index, attempt)
        if index in (0, 7) and self.note(index) == 1:
            os._exit(1)
        return report


class HangingActor(FakeActor):
    def trouble(self, index, attempt):
        if index == 0 and self.note(index) == 1:
            time.sleep(600)  # longer than the test's deadline; the driver kills this process, nobody waits it out


class UnstartableActor(FakeActor):
    def before_start(self):
        raise RuntimeError("no such device")
