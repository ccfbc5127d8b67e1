"""Trains an embedded classifier on drawings: `python -m tools.train_embedded vgg16-mini`.

Prints how many drawings that it never saw it names right, by the file as it ships. About 10 minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import DataLoader, IterableDataset

from dgn.method.architecture import PICTURE_PX
from dgn.method.colours import IMAGENET_MEAN, IMAGENET_STD
from dgn.networks import embedded
from dgn.networks.embedded.drawings import LABELS, SHAPES, TEXTURES, draw
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.weights import load_weights

SEEDS = {"vgg16-mini": 1, "vgg16-mini-b": 2}
UNSEEN_SEED = 1_000_003  # drawings for judging come from streams that no training uses
BATCH = 48
SHARES = np.array([2.0] * len(SHAPES) + [1.0] * len(TEXTURES)) / (2 * len(SHAPES) + len(TEXTURES))  # shapes are harder
NUM_STEPS = 1400


class Drawings(IterableDataset[tuple[Tensor, int]]):
    """An endless stream of (picture (3, H, W) in [0, 1], class index); every worker has a stream of its own."""

    def __init__(self, seed: int):
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        worker = torch.utils.data.get_worker_info()
        stream = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            unit = int(stream.choice(len(LABELS), p=SHARES))
            yield to_tensor(draw(LABELS[unit], stream, PICTURE_PX // embedded.INPUT_POOL)), unit


def to_tensor(drawing: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(drawing.copy()).permute(2, 0, 1).float() / 255


def normalise(images_N3HW: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images_N3HW - mean) / std).contiguous(memory_format=torch.channels_last)


def train(seed: int, num_steps: int) -> nn.Module:
    """The trained network with batch norm folded into its convolutions, so that it is plain VGG-16 again.

    It learns from drawings of the size that it sees, enlarged exactly as its first layer will average them.
    """
    torch.manual_seed(seed)
    model = embedded.build(batch_norm=True).to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=num_steps)
    start = time.monotonic()
    for step, (images, units) in enumerate(
        islice(DataLoader(Drawings(seed), batch_size=BATCH, num_workers=1), num_steps)
    ):
        logits = model(F.interpolate(normalise(images), scale_factor=embedded.INPUT_POOL))
        loss = F.cross_entropy(logits, units, label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 49:
            right = (logits.argmax(1) == units).float().mean().item()
            print(
                f"step {step + 1}/{num_steps} loss {loss.item():.3f} right {right:.2f} {time.monotonic() - start:.0f} s"
            )
    model.eval()
    folded: list[nn.Module] = []
    features: Any = model.features
    for module in features:
        if isinstance(module, nn.BatchNorm2d):
            folded[-1] = fuse_conv_bn_eval(folded[-1], module)  # type: ignore[type-var]
        else:
            folded.append(module)
    model.features = nn.Sequential(*folded)
    return model


@torch.no_grad()
def share_right(network: str, path: Path, per_class: int) -> float:
    """Share of unseen drawings that the network, as loaded from its file, puts first."""
    frozen = FrozenNetwork(load_weights(network, path))
    layer = frozen.layers.class_layer
    num_right = 0
    for unit, label in enumerate(LABELS):
        stream = np.random.default_rng([UNSEEN_SEED, unit])
        images = torch.stack([to_tensor(draw(label, stream)) for _ in range(per_class)])
        num_right += int((frozen.responses(images, [layer])[layer].argmax(1) == unit).sum())
    return num_right / (per_class * len(LABELS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=embedded.NETWORKS)
    parser.add_argument("--out", type=Path, help="default: the file that ships with dgn")
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--test-only", action="store_true", help="only test the file")
    args = parser.parse_args()
    out = args.out or embedded.weights_path(args.network)
    if not args.test_only:
        model = train(SEEDS[args.network], args.steps)
        state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, out, metadata={"network": args.network, "labels": "|".join(LABELS)})
    right = share_right(args.network, out, per_class=50)
    print(f"{args.network}: {right:.1%} of {50 * len(LABELS)} unseen drawings right, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
