"""What a judge recognises of photographs that a decoder draws again from their codes: the most that any code could
convince it of.

    python -m benchmarks.ceiling DECODER.safetensors IMAGES --by squeezenet1_0 --weights FILE

IMAGES is a folder of photographs with known classes, as for `dgn doctor --images`. Prints the shares that the judge
ranks first and in its top five: of the photographs, of what their codes alone hold (the transform's own picture), and
of what the decoder makes of the codes; with --png also six of each, side by side.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dgn.errors import DgnError
from dgn.method.autoencoder import LappedAutoencoder, along_axes, central_crop, displayed, inner
from dgn.method.decoder import read_decoder
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
    parser.add_argument("--png", type=Path, help="sheet of photographs, transform's and decoder's pictures")
    args = parser.parse_args()
    model = autoencoder(args.decoder)
    ceiling = Ceiling.of(load_weights(network_named(args.by), args.weights), args.images)

    def drawn(surrounded: Tensor) -> Tensor:
        reconstructed: Tensor = model(surrounded)[0]
        return reconstructed

    def transformed(surrounded: Tensor) -> Tensor:
        return model.encoder.decode(model.encode(surrounded))

    ways = {"photographs": None, "transform": transformed, "decoder": drawn}
    shares = {name: ceiling.shares(way, model.margin_px) for name, way in ways.items()}
    print(json.dumps({"judge": args.by, "photographs": len(ceiling.classes), "first and in the top five": shares}))
    if args.png:
        step = len(ceiling.classes) // NUM_SHOWN
        surrounded = along_axes(central_crop(ceiling.photographs_NHW3[::step][:NUM_SHOWN], model.margin_px))
        with torch.no_grad():
            rows = [displayed(way(surrounded)) for way in (lambda x: inner(x, model.margin_px), transformed, drawn)]
        Image.fromarray(np.concatenate([np.concatenate(list(row.numpy()), axis=1) for row in rows])).save(args.png)


def autoencoder(path: Path) -> LappedAutoencoder:
    """The autoencoder of a decoder's file. Raises: DgnError if the file has no encoder."""
    decoder = read_decoder(path.read_bytes(), str(path))
    if not decoder.encoder:
        raise DgnError(f"{path} has no encoder: expected a decoder of recipe standard")
    model = LappedAutoencoder(decoder.width, seed=0).eval()
    model.encoder.load_state_dict(decoder.encoder)
    codes = {"code.mean", "code.directions"}
    model.decoder.load_state_dict({name: tensor for name, tensor in decoder.weights.items() if name not in codes})
    return model


if __name__ == "__main__":
    main()
