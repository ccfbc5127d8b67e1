"""A network of one's own, first example: trains MobileNetV2 to separate dogs from everything else.

    python -m examples.train_dogs IMAGES mobilenet_v2.safetensors dogs.pth --labels dogs.txt

IMAGES holds photographs in two folders, `dogs` and `other`. Training starts from ImageNet's weights and changes the
last inverted residual block, the last convolution and a new head of two classes: unit 0 is dog, unit 1 is other. What
lies before them stays as it is, so it sees each photograph only once.

With 2,400 dogs and 2,600 other photographs, training takes under 4 minutes on one core. Of the 500 photographs that it
did not see, the network gets 98.6 % right.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import MobileNet_V2_Weights, MobileNetV2, mobilenet_v2

FOLDERS = ["dogs", "other"]  # in the order of the classes
LABELS = ["dog", "other"]
NUM_FROZEN = 17  # of the 19 blocks of `features`
VALIDATION_SHARE = 0.1
BATCH = 32
SEED = 0


def read_photographs(folder: Path) -> ImageFolder:
    """Pairs of a photograph as MobileNetV2 wants it, (3, 224, 224) normalised RGB, and its class."""
    if missing := [name for name in FOLDERS if not (folder / name).is_dir()]:
        raise SystemExit(f"no folder {folder / missing[0]}: expected photographs in {folder}/dogs and {folder}/other")
    try:
        photographs = ImageFolder(folder, MobileNet_V2_Weights.IMAGENET1K_V1.transforms())
    except FileNotFoundError as error:
        raise SystemExit(f"a folder in {folder} is empty: {error}") from None
    if photographs.classes != FOLDERS:
        raise SystemExit(f"{folder} has {photographs.classes}: expected the folders dogs and other, and no more")
    return photographs


def build(weights: Path) -> MobileNetV2:
    """MobileNetV2 with ImageNet's weights and a new head of two classes."""
    if not weights.is_file():
        raise SystemExit(f"no weights file at {weights}: expected MobileNetV2's weights as .safetensors")
    model = mobilenet_v2()
    model.load_state_dict(load_file(weights))
    model.classifier[1] = nn.Linear(model.last_channel, len(LABELS))
    # Norms stay in eval mode while training, too: in a file with norms folded into the convolutions their statistics
    # are 0 and 1, and those of a batch would undo the folding.
    return model.eval()


@torch.no_grad()
def see_once(photographs: ImageFolder, frozen: nn.Module) -> tuple[Tensor, Tensor]:
    """Features of all photographs (N, 160, 7, 7) and their classes (N,)."""
    fast = fuse(frozen).to(memory_format=torch.channels_last)  # a copy, 4 times as fast on a CPU
    features, classes = [], []
    for images_N3HW, classes_N in DataLoader(photographs, batch_size=BATCH):
        features.append(fast(images_N3HW.contiguous(memory_format=torch.channels_last)))
        classes.append(classes_N)
    return torch.cat(features), torch.cat(classes)


def train(tail: nn.Module, features_NCHW: Tensor, classes_N: Tensor, num_epochs: int) -> None:
    """Trains the tail on nine tenths of the photographs, and prints after each epoch how it does on the others."""
    order = torch.randperm(len(classes_N))
    validation, training = order.tensor_split([round(VALIDATION_SHARE * len(order))])
    print(f"{len(training)} photographs for training, {len(validation)} for validation")
    optimiser = torch.optim.AdamW(tail.parameters(), lr=3e-4, weight_decay=0.01)
    num_steps = num_epochs * -(-len(training) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps)
    for epoch in range(num_epochs):
        start, num_right = time.monotonic(), 0
        for batch in training[torch.randperm(len(training))].split(BATCH):
            logits = tail(features_NCHW[batch])
            loss = F.cross_entropy(logits, classes_N[batch], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            num_right += int((logits.argmax(1) == classes_N[batch]).sum())
        print(
            f"epoch {epoch + 1}/{num_epochs}: right {num_right / len(training):.2%} in training, "
            f"{share_right(tail, features_NCHW[validation], classes_N[validation]):.2%} in validation, "
            f"{time.monotonic() - start:.0f} s"
        )


@torch.no_grad()
def share_right(tail: nn.Module, features_NCHW: Tensor, classes_N: Tensor) -> float:
    guesses_N = torch.cat([tail(batch).argmax(1) for batch in features_NCHW.split(BATCH)])
    return (guesses_N == classes_N).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="folder with the folders dogs and other")
    parser.add_argument("weights", help="ImageNet's weights of MobileNetV2, in torchvision's layout, as .safetensors")
    parser.add_argument("out", help="checkpoint to write")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--labels", help="text file to write, one label a line")
    args = parser.parse_args()
    for path in map(Path, filter(None, (args.out, args.labels))):
        if not path.parent.is_dir():
            raise SystemExit(f"no folder {path.parent} to write {path.name} to: make it first")
    torch.manual_seed(SEED)
    photographs, model = read_photographs(Path(args.images)), build(Path(args.weights))
    start = time.monotonic()
    features_NCHW, classes_N = see_once(photographs, model.features[:NUM_FROZEN])
    print(f"{len(classes_N)} photographs seen in {time.monotonic() - start:.0f} s")
    # As in MobileNetV2.forward.
    tail = nn.Sequential(model.features[NUM_FROZEN:], nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.classifier)
    train(tail, features_NCHW, classes_N, args.epochs)
    # What torchvision's reference script saves, without the state of its optimiser.
    torch.save({"model": model.state_dict(), "epoch": args.epochs - 1, "args": args}, args.out)
    if args.labels:
        Path(args.labels).write_text("\n".join(LABELS) + "\n")


if __name__ == "__main__":
    main()
