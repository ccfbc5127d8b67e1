"""How far pictures drift with rounding: `python -m benchmarks.rounding`.

Same targets, same streams; batch size and precision differ. Prints the median relative difference of the re-scored
activation over 20 targets.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

from dgn import picture
from dgn.discriminator import Discriminator, load_weights
from dgn.recipes import RenderConfig
from dgn.render import DTYPES, render_targets
from dgn.targets import Target, WeightedUnit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--discriminator", default="vgg16-mini")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    weights = load_weights(args.discriminator, args.weights)
    exact = Discriminator(weights)
    targets = [Target((WeightedUnit(exact.layout.class_layer, u),), "untrained", 0) for u in range(args.targets)]

    def activations(precision: str, batch_size: int) -> list[float]:
        config = RenderConfig.from_preset("standard", precision, num_updates=args.updates, width=args.width)  # type: ignore[arg-type]
        discriminator = Discriminator(weights, dtype=DTYPES[precision])
        results = render_targets(targets, config, discriminator, batch_size=batch_size)
        return [
            picture.rescore([picture.encode_png(r.picture_3HW)], [r.target], exact)[0].activation
            for batch in results
            for r in batch
        ]

    made = {(p, n): activations(p, n) for p in ("float32", "bfloat16") for n in (1, 8)}
    again = activations("float32", 1)
    report = {}
    for name, one, other in (
        ("float32, batch 1, twice", made["float32", 1], again),
        ("float32, batch 8 against 1", made["float32", 1], made["float32", 8]),
        ("bfloat16, batch 8 against 1", made["bfloat16", 1], made["bfloat16", 8]),
        ("bfloat16 against float32, batch 1", made["float32", 1], made["bfloat16", 1]),
    ):
        report[name] = statistics.median(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(one, other, strict=True))
        print(f"{name}: median difference of activation {report[name]:.2%}")
    if args.out:
        args.out.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
