"""Plain drawings as PNG files, to make a decoder from: `python -m tools.save_drawings FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from dgn.networks.embedded.drawings import PLAIN_LABELS, draw_plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-class", type=int, default=70)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    stream = np.random.default_rng(args.seed)
    for label in PLAIN_LABELS:
        folder = args.folder / label.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(args.per_class):
            Image.fromarray(draw_plain(label, stream, 256)).save(folder / f"{i:05d}.png")


if __name__ == "__main__":
    main()
