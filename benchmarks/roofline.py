"""How near the update is to the device's own ceilings: `python -m benchmarks.roofline --out benchmarks/roofline.json`.

The rate of dgn's update, in the operations of plain convolutions (`dgn info`), as a share of a square matrix product
and of the best of VGG-16's convolutions, both with stock PyTorch and measured in the same run, before and after. VGG-16
with random weights, preset `paper` (one view) and `standard` (four).
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.engine import Ours, frozen, peaks
from benchmarks.machine import machine
from benchmarks.timing import DEVICE, HAS_GPU
from dgn.engine import engine_for
from dgn.method.precision import DTYPES
from dgn.networks.frozen import FrozenNetwork


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32 if HAS_GPU else 8)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    weights = frozen("vgg16")
    classifiers = {p: FrozenNetwork(weights, engine_for(DEVICE), DTYPES[p]) for p in ("float32", "bfloat16")}
    contestants = {
        (preset, mode, precision): Ours(classifiers[precision], "class", mode, precision, args.batch, preset)
        for preset in ("paper", "standard")
        for mode in ("untrained", "pretrained")
        for precision in ("float32", "bfloat16")
    }
    measured: dict[tuple[str, str, str], list[float]] = {key: [] for key in contestants}
    ceilings = [peaks()]
    for _ in range(args.rounds):
        for key, contestant in contestants.items():
            measured[key].append(contestant.measure(args.updates))
        ceilings.append(peaks())
    best = {name: max(one[name] for one in ceilings) for name in ceilings[0]}
    report: dict[str, Any] = {"machine": machine(), "batch": args.batch, "ceilings": best, "rows": []}
    print(" · ".join(f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in best.items()))
    for (preset, mode, precision), times in measured.items():
        seconds, operations = statistics.median(times), contestants[preset, mode, precision].operations()
        row = {"preset": preset, "mode": mode, "precision": precision, "seconds": seconds, "operations": operations}
        row["executed"] = contestants[preset, mode, precision].executed()
        row["of_product"] = operations / seconds / best[f"{precision}_product"]
        row["of_convolution"] = operations / seconds / best[f"{precision}_convolution"]
        row["executed_of_convolution"] = row["executed"] / seconds / best[f"{precision}_convolution"]
        report["rows"].append(row)
        print(
            f"{preset:9}{mode:11}{precision:9} {seconds:7.4f} s an update and target, {operations / 1e9:6.1f} GFLOP, "
            f"{operations / seconds / 1e9:8,.0f} GFLOP/s: {row['of_product']:.1%} of the product's, "
            f"{row['of_convolution']:.1%} of the convolution's ({row['executed_of_convolution']:.1%} executed)"
        )
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
