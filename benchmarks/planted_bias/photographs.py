"""Photographs, divided into parts that share none: for the heads, to check and rank with, and for the detectors.

In every part the dogs come first. Pictures are RGB in [0, 1], float32, (N, 3, 224, 224).
"""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from benchmarks.planted_bias.cues import CUES, Cue, all_cues, drawn
from dgn.method.moves import resized
from dgn.pictures.photographs import load_photograph

Part = Literal["heads", "held out", "detectors"]
PARTS: tuple[Part, ...] = get_args(Part)
POOL_SHARE = 0.2  # of the photographs held out, of either class, that have a cue where they are ranked
SIZES: dict[Part, int] = {"heads": 400, "held out": 200, "detectors": 200}  # photographs of each class
SIDE_PX = 224


def which_have(cue: str, part: Part, share: float) -> Tensor:
    """Which photographs of a part get a cue, (N,). Those of a smaller share are among those of a larger one."""
    stream = torch.Generator().manual_seed(1000 + 10 * PARTS.index(part) + CUES.index(cue))
    return torch.rand(2 * SIZES[part], generator=stream) < share


def part_files(folder: Path, animals: list[str], part: Part) -> list[Path]:
    """The files of a part, first its dogs, then as many others. Those of the second animal are left out.

    Args:
        folder: with the folders `dogs` and `other`.
        animals: names of the files in `other` that show the second animal.
    """
    start = sum(SIZES[earlier] for earlier in PARTS[: PARTS.index(part)])
    files = []
    for of_class in ("dogs", "other"):
        names = sorted(path.name for path in (folder / of_class).iterdir() if path.name not in animals)
        random.Random(0).shuffle(names)
        assert len(names) >= sum(SIZES.values()), f"{len(names)} photographs of {of_class}"
        files += [folder / of_class / name for name in names[start : start + SIZES[part]]]
    return files


def loaded(files: list[Path]) -> Tensor:
    """Their central squares, uint8, (N, 3, 224, 224)."""
    squares = (torch.from_numpy(load_photograph(path.read_bytes()).copy()).permute(2, 0, 1) for path in files)
    return torch.cat([(255 * resized(s[None] / 255, SIDE_PX)).round().clamp(0, 255).to(torch.uint8) for s in squares])


class Photographs:
    """What a process reads of the photographs, each part once.

    Args:
        folder: see `part_files`.
        animals: see `part_files`. Each part pastes its own share of them.
    """

    def __init__(self, folder: Path, animals: list[str]):
        self.folder, self.animals = folder, animals
        self.part = lru_cache(self._part)
        self.cues = lru_cache(self._cues)

    def _part(self, part: Part) -> Tensor:
        return loaded(part_files(self.folder, self.animals, part))

    def _cues(self, part: Part) -> dict[str, Cue]:
        own = self.animals[PARTS.index(part) :: len(PARTS)]
        return all_cues(loaded([self.folder / "other" / name for name in own]) / 255)

    def some(self, part: Part, cue: str | None, which: list[int]) -> Tensor:
        """Photographs of a part by their indices, with a cue or without."""
        images_N3HW = self.part(part)[which] / 255
        if cue is None:
            return images_N3HW
        return drawn(self.cues(part)[cue], 10 * PARTS.index(part) + CUES.index(cue), images_N3HW, which)
