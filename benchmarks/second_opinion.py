"""The look of a run's pictures beside a judge's opinion of them: `python -m benchmarks.second_opinion RUN --by
squeezenet1_0`, for runs of classes.

`dgn judge RUN` gives the shares that the classifier and the judge put first. This adds, for each mode, the colours'
mean saturation, the share of high frequencies, how much of the activation the 8-bit PNG keeps, and the seconds. It
prints a row per picture and writes JSON with --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from torch import Tensor

from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import network_named
from dgn.networks.weights import load_weights
from dgn.pictures.scoring import read_pictures
from dgn.pictures.second_opinion import judged
from dgn.runs.query import Rows
from dgn.runs.run import Run
from dgn.runs.stores import open_store
from dgn.targets import Target, WeightedUnit

KEPT = ("unit", "label", "mode", "rank", "probability", "activation", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--by", required=True, help="the judging network")
    parser.add_argument("--weights", type=Path, help="its weights file")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    judge = FrozenNetwork(load_weights(args.by, args.weights))
    run = Run(open_store(args.run))
    own = run.info().run_config.discriminator
    columns = [*KEPT, "units", "seed", "unrounded_activation", "file_name", "sha256"]
    opinions = []
    for row in (row for table in Rows(run).tables(columns) for row in table.to_pylist()):
        target = Target(tuple(WeightedUnit(**unit) for unit in row["units"]), row["mode"], row["seed"])
        pixels_N3HW = read_pictures([run.picture(row["file_name"], row["sha256"])], 224)
        [scores] = judged(pixels_N3HW, [target], network_named(own).layers, judge)
        assert scores, f"{target.target_id} is not a class"
        opinion = {name: row[name] for name in KEPT}
        opinion |= {"judge_rank": scores.rank, "judge_probability": scores.probability}
        opinion |= {"kept_by_png": row["activation"] / row["unrounded_activation"]}
        image_3HW = pixels_N3HW[0] / 255
        opinion |= {"saturation": saturation(image_3HW), "high_frequencies": high_frequencies(image_3HW)}
        opinions.append(opinion)
        print(
            f"{row['unit']:>4} {row['label']:<22} {row['mode']:<10} rank {row['rank']:>3} p {row['probability']:.3f}   "
            f"{args.by}: rank {scores.rank:>3} p {scores.probability:.3f}   {row['seconds']:.0f} s"
        )
    summaries = []
    for mode in dict.fromkeys(o["mode"] for o in opinions):
        of_mode = [o for o in opinions if o["mode"] == mode]
        summaries.append(
            {
                "discriminator": own,
                "by": args.by,
                "mode": mode,
                "pictures": len(of_mode),
                "first_by_discriminator": sum(o["rank"] == 1 for o in of_mode),
                "first_by_judge": sum(o["judge_rank"] == 1 for o in of_mode),
                "top5_by_judge": sum(o["judge_rank"] <= 5 for o in of_mode),
                "least_share_kept_by_png": min(o["kept_by_png"] for o in of_mode),
                "mean_saturation": statistics.mean(o["saturation"] for o in of_mode),
                "mean_high_frequencies": statistics.mean(o["high_frequencies"] for o in of_mode),
                "median_seconds": statistics.median(o["seconds"] for o in of_mode),
            }
        )
        print(json.dumps(summaries[-1]))
    if args.out:
        args.out.write_text(json.dumps({"summaries": summaries, "pictures": opinions}, indent=2))


def saturation(image_3HW: Tensor) -> float:
    """Mean of HSV's saturation, (max - min) / max over the channels, 0 where black."""
    highest, lowest = image_3HW.amax(0), image_3HW.amin(0)
    return ((highest - lowest) / highest.clamp_min(1e-6)).mean().item()


def high_frequencies(image_3HW: Tensor) -> float:
    """Share of the luminance's power above a quarter of Nyquist (0.125 cycles per px), the mean left out."""
    luminance = (image_3HW * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    power = torch.fft.fft2(luminance - luminance.mean()).abs().square()
    frequency_y, frequency_x = (torch.fft.fftfreq(side) for side in luminance.shape)
    radius = (frequency_y[:, None].square() + frequency_x[None].square()).sqrt()
    return (power[radius > 0.125].sum() / power.sum()).item()


if __name__ == "__main__":
    main()
