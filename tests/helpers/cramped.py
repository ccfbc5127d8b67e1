"""The real renderer on a device that is too small."""

from pathlib import Path

import torch

from dgn.cluster.worker import RenderWorker
from dgn.method import loop


class CrampedWorker(RenderWorker):
    """A device whose memory holds two targets at once, not four."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        render_batch = loop.render_batch

        def cramped(targets, *others):
            if len(targets) > 2:
                with Path(self.context.url + "-too-large").open("a") as notes:
                    notes.write(str(len(targets)))
                raise torch.OutOfMemoryError(f"no room for {len(targets)} targets")
            return render_batch(targets, *others)

        loop.render_batch = cramped  # in this worker's process alone
