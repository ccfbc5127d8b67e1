"""How many photographs a network recognises once encoded and decoded: what the best codes would convince it of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgn.method.autoencoder import along_axes, central_crop, displayed
from dgn.method.engine import Engine
from dgn.networks.weights import NetworkWeights
from dgn.pictures.accuracy import labelled_photographs, right_ranks

BATCH = 8  # photographs that are decoded at a time


@dataclass(frozen=True)
class Ceiling:
    """Photographs with known classes, and the network that judges them.

    photographs_NHW3: 8-bit RGB, 256 px. classes: of each, in the judge's numbering.
    """

    judge: NetworkWeights
    photographs_NHW3: Tensor
    classes: list[int]

    @classmethod
    def of(cls, judge: NetworkWeights, folder: Path) -> Ceiling:
        """At most 150 photographs from a folder. Raises: DgnError as `accuracy.labelled_photographs` does."""
        found = labelled_photographs(folder, judge.network.layers)
        return cls(judge, torch.from_numpy(np.stack(found.pictures)), found.classes)

    @torch.no_grad()
    def shares(
        self,
        reconstruct: Callable[[Tensor], Tensor] | None,
        engine: Engine | None = None,
    ) -> tuple[float, float]:
        """Shares whose class the judge ranks first and in its top five, of the 8-bit pictures.

        Args:
            reconstruct: pictures (N, 3, 224, 224) along the colour axes, encoded and decoded; None: the photographs
                themselves.
        """
        pictures = []
        for photographs in central_crop(self.photographs_NHW3).split(BATCH):
            clean = along_axes(photographs)
            pictures.append(displayed(reconstruct(clean) if reconstruct else clean).cpu())
        images_N3HW = torch.cat(pictures).permute(0, 3, 1, 2) / 255
        is_first_N, is_top5_N = right_ranks(self.judge, images_N3HW, self.classes, engine)
        return is_first_N.float().mean().item(), is_top5_N.float().mean().item()
