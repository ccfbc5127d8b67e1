"""What a judge recognises of photographs that a decoder draws again from their codes: the most that any code could
convince it of.

    python -m benchmarks.ceiling DECODER.safetensors IMAGES --by squeezenet1_0 --weights FILE

IMAGES is a folder of photographs with known classes, as for `dgn doctor --images`. Prints the shares that the judge
ranks first and in its top five: of the photographs, and of what windows make of their codes; with --png also six of
each, side by side.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dgn.errors import DgnError
from dgn.method.autoencoder import along_axes, central_crop, displayed
from dgn.method.decoder import read_decoder
from dgn.method.lapped import LappedTransform
from dgn.networks.registry import network_named
from dgn.networks.weights import load_weights
from dgn.pictures.ceiling import Ceiling

NUM_SHOWN = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("decoder", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--by", required=True, help="the judging network")
    parser.add_argument("--weights", type=Path, help="its weights file")
    parser.add_argument("--png", type=Path, help="sheet of photographs and what windows make of them")
    args = parser.parse_args()
    decoder = read_decoder(args.decoder.read_bytes(), str(args.decoder))
    if decoder.generator != "windows":
        raise DgnError(f"{args.decoder} is of convolutions, whose encoder is not kept: expected one of windows")
    transform = LappedTransform.of(decoder.weights)
    ceiling = Ceiling.of(load_weights(network_named(args.by), args.weights), args.images)

    shares = {name: ceiling.shares(way) for name, way in (("photographs", None), ("windows", transform.reconstruct))}
    print(json.dumps({"judge": args.by, "photographs": len(ceiling.classes), "first and in the top five": shares}))
    if args.png:
        step = max(1, len(ceiling.classes) // NUM_SHOWN)
        clean = along_axes(central_crop(ceiling.photographs_NHW3[::step][:NUM_SHOWN]))
        rows = [displayed(pictures).numpy() for pictures in (clean, transform.reconstruct(clean))]
        Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows])).save(args.png)


if __name__ == "__main__":
    main()
