"""Pictures of the class "dogs" of a network with a head of our own: by dgn in both modes, and by lucent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.planted_bias.heads import with_head
from benchmarks.time_to_picture import lucents
from dgn.method.colours import IMAGENET_MEAN, IMAGENET_STD
from dgn.method.loop import render_batch
from dgn.method.precision import DTYPES
from dgn.method.recipes import Precision, RenderConfig
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.network import Network
from dgn.networks.weights import NetworkWeights
from dgn.pictures.codec import encode_png, quantised
from dgn.runs.decoders import load_decoder
from dgn.targets import Mode, Target, WeightedUnit

DECODER = "photographs"
DOGS = 0


@dataclass(frozen=True)
class Contender:
    """What draws pictures, and how many.

    Args:
        preset: dgn's, or `lucent`, which has no mode.
        num_biased: pictures of each biased head.
        num_clean: pictures of the clean twin.
    """

    preset: str
    mode: Mode
    num_biased: int
    num_clean: int


CONTENDERS = {
    "untrained": Contender("draft", "untrained", 3, 40),  # 80 updates of two views
    "pretrained": Contender("draft", "pretrained", 3, 40),
    "untrained, standard": Contender("standard", "untrained", 3, 20),  # 200 updates of four views
    "lucent": Contender("lucent", "untrained", 3, 20),
}
LUCENT_STEPS = 128  # a quarter of its default


class _AsTorchvision(nn.Module):
    """A network behind torchvision's normalisation, which lucent applies by itself: it is undone, and the network's own
    follows."""

    def __init__(self, network: Network, module: nn.Module):
        super().__init__()
        self.network = module
        self.mean_c11, self.std_c11 = (torch.tensor(one)[:, None, None] for one in (IMAGENET_MEAN, IMAGENET_STD))
        self.own_mean_c11, self.own_std_c11 = (
            torch.tensor(one)[:, None, None] / network.value_range for one in (network.means, network.stds)
        )

    def forward(self, normalised_N3HW: Tensor) -> Tensor:
        images_N3HW = normalised_N3HW * self.std_c11 + self.mean_c11
        values_NC: Tensor = self.network((images_N3HW - self.own_mean_c11) / self.own_std_c11)
        return values_NC


def draw(
    weights: NetworkWeights,
    weight_CK: Tensor,
    bias_C: Tensor,
    contender: Contender,
    seeds: Sequence[int],
    precision: Precision,
    folder: Path,
) -> None:
    """Draws and saves the class "dogs" as `SEED.png`, with each seed."""
    weights = with_head(weights, weight_CK, bias_C)
    layer = cast("str", weights.network.layers.class_layer)
    if contender.preset == "lucent":
        pictures = [_by_lucent(weights, layer, seed) for seed in seeds]
    else:
        decoder = load_decoder(DECODER).weights if contender.mode == "pretrained" else None
        classifier = FrozenNetwork(weights, dtype=DTYPES[precision])
        targets = [Target((WeightedUnit(layer, DOGS),), contender.mode, seed) for seed in seeds]
        config = RenderConfig.from_preset(contender.preset, precision)
        pictures = [result.picture_3HW for result in render_batch(targets, config, classifier, decoder)]
    folder.mkdir(parents=True, exist_ok=True)
    for seed, picture_3HW in zip(seeds, pictures, strict=True):
        (folder / f"{seed}.png").write_bytes(encode_png(quantised(picture_3HW)))


def _by_lucent(weights: NetworkWeights, layer: str, seed: int) -> Tensor:
    module = weights.network.built()
    module.load_state_dict(weights.state)
    plain = _AsTorchvision(weights.network, module).eval()
    np.random.seed(seed)  # for its transforms; torch's draws its start
    torch.manual_seed(seed)
    [(_, [picture_3HW])] = lucents(plain, f"network_{layer.replace('.', '_')}", DOGS, LUCENT_STEPS, 1)
    return picture_3HW


def pictures_in(folder: Path, count: int) -> Tensor:
    """The first pictures in order of their seeds, RGB in [0, 1], (N, 3, H, W)."""
    files = [folder / f"{seed}.png" for seed in range(count)]
    return torch.stack([torch.from_numpy(np.array(Image.open(f).convert("RGB"))).permute(2, 0, 1) for f in files]) / 255
