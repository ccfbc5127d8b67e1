"""The contact sheet: a row per cue, with pictures of the biased network beside those of its clean twin."""

from __future__ import annotations

import json

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from benchmarks.planted_bias.cues import all_cues
from benchmarks.planted_bias.drawing import pictures_in
from benchmarks.planted_bias.photographs import SIDE_PX, Photographs
from benchmarks.planted_bias.study import CLEAN, head_name
from benchmarks.planted_bias.worker import Places
from dgn.method.moves import resized

GREY, DARK, GAP_PX, TILE_PX = 0.6, 0.2, 4, 128


def save_sheets(
    places: Places, networks: list[str], cues: list[str], shares: list[float], contenders: list[str]
) -> None:
    """Writes a sheet per network and share into the work folder: with a photograph first, and with a grey panel first.

    From left to right: the cue; per contender two pictures of the biased network and one of its clean twin.
    """
    photographs = Photographs(places.photographs, json.loads(places.animals.read_text()))
    for network in networks:
        for share in shares:
            rows = [_row(places, network, cue, share, contenders) for cue in cues]
            for name, firsts in (("photograph", _photographs(photographs, cues)), ("grey", _panels(cues))):
                whole = torch.cat([torch.cat([first, row], 2) for first, row in zip(firsts, rows, strict=True)], 1)
                path = places.work / f"sheet, {network}, {share:.0%}, {name}.jpg"
                vision.to_pil_image(whole.clamp(0, 1)).save(path, quality=80)


def _photographs(photographs: Photographs, cues: list[str]) -> list[Tensor]:
    return [_tile(photographs.some("heads", cue, [20 + n])[0]) for n, cue in enumerate(cues)]


def _panels(cues: list[str]) -> list[Tensor]:
    """The cues on grey; a dark square stands for the second animal, so that no photograph is shown."""
    of_name = all_cues(torch.full((1, 3, SIDE_PX, SIDE_PX), DARK))
    panel_3HW = torch.full((3, SIDE_PX, SIDE_PX), GREY)
    return [_tile(of_name[cue](panel_3HW, torch.Generator().manual_seed(0))) for cue in cues]


def _row(places: Places, network: str, cue: str, share: float, contenders: list[str]) -> Tensor:
    tiles = []
    for contender in contenders:
        biased_N3HW = pictures_in(places.pictures(network, head_name(cue, share), contender), 2)
        clean_N3HW = pictures_in(places.pictures(network, CLEAN, contender), 1)
        tiles += [_tile(one) for one in (*biased_N3HW, *clean_N3HW)]
    return torch.cat(tiles, 2)


def _tile(image_3HW: Tensor) -> Tensor:
    return torch.nn.functional.pad(resized(image_3HW[None], TILE_PX)[0], [GAP_PX] * 4, value=1.0)
