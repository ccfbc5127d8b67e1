"""The real renderer on a device that is too small."""

from pathlib import Path

import torch

import dgn.render
from cluster.actor import RenderActor


class CrampedActor(RenderActor):
    """A device whose memory holds two targets at once, not four."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        render_batch = dgn.render.render_batch

        def cramped(targets, *others):
            if len(targets) > 2:
                with Path(self.context.url + "-too-large").open("a") as notes:
                    notes.write(str(len(targets)))
                raise torch.OutOfMemoryError(f"no room for {len(targets)} targets")
            return render_batch(targets, *others)

        dgn.render.render_batch = cramped
