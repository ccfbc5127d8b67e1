"""What an independent network says of a run's pictures: `python -m benchmarks.second_opinion RUN --by squeezenet1_0`.

Prints a row per picture and, for each mode, the shares that D and the judge put first and in their top five, the
colours' mean saturation and the share of high frequencies; writes JSON with --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from torch import Tensor

from cluster.run import Run
from cluster.storage import open_store
from dgn import picture
from dgn.discriminator import Discriminator, load_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--by", required=True, help="the judging network")
    parser.add_argument("--weights", type=Path, help="its weights file")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    judge = Discriminator(load_weights(args.by, args.weights))
    run = Run(open_store(args.run))
    info = run.info()
    committed = run.committed(info.num_shards)
    rows = [
        row for table in run.tables(s for s in range(info.num_shards) if s in committed) for row in table.to_pylist()
    ]
    opinions = []
    for row in rows:
        pixels = torch.from_numpy(picture.decode(run.store.read(row["file_name"])).copy())
        image = pixels.permute(2, 0, 1)[None] / 255
        _, logits = judge.scores(image, judge.layout.class_layer)
        rank = 1 + int((logits[0] > logits[0, row["unit"]]).sum())
        opinion = {
            name: row[name] for name in ("unit", "label", "mode", "rank", "probability", "activation", "seconds")
        }
        opinion |= {"judge_rank": rank, "judge_probability": logits[0].softmax(0)[row["unit"]].item()}
        opinion |= {"kept_by_png": row["activation"] / row["unrounded_activation"]}
        opinion |= {"saturation": saturation(image[0]), "high_frequencies": high_frequencies(image[0])}
        opinions.append(opinion)
        print(
            f"{row['unit']:>4} {row['label']:<22} {row['mode']:<10} rank {row['rank']:>3} p {row['probability']:.3f}   "
            f"{args.by}: rank {rank:>3} p {opinion['judge_probability']:.3f}   {row['seconds']:.0f} s"
        )
    summaries = []
    for mode in dict.fromkeys(o["mode"] for o in opinions):
        of_mode = [o for o in opinions if o["mode"] == mode]
        summaries.append(
            {
                "discriminator": info.fingerprint["discriminator"],
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
