"""What an independent network says of a run's pictures: `python -m benchmarks.second_opinion RUN --by squeezenet1_0`.

Prints a row per picture and the shares that D and the judge put first and in their top five; writes JSON beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

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
        image = torch.from_numpy(picture.decode(run.store.read(row["file_name"])).copy()).permute(2, 0, 1)[None] / 255
        _, logits = judge.scores(image, judge.layout.class_layer)
        rank = 1 + int((logits[0] > logits[0, row["unit"]]).sum())
        opinion = {
            name: row[name] for name in ("unit", "label", "mode", "rank", "probability", "activation", "seconds")
        }
        opinion |= {"judge_rank": rank, "judge_probability": logits[0].softmax(0)[row["unit"]].item()}
        opinions.append(opinion)
        print(
            f"{row['unit']:>4} {row['label']:<22} {row['mode']:<10} rank {row['rank']:>3} p {row['probability']:.3f}   "
            f"{args.by}: rank {rank:>3} p {opinion['judge_probability']:.3f}   {row['seconds']:.0f} s"
        )
    summary = {
        "run": run.store.url.rsplit("/", 1)[-1],
        "discriminator": info.fingerprint["discriminator"],
        "by": args.by,
        "pictures": len(opinions),
        "first_by_discriminator": sum(o["rank"] == 1 for o in opinions),
        "first_by_judge": sum(o["judge_rank"] == 1 for o in opinions),
        "top5_by_judge": sum(o["judge_rank"] <= 5 for o in opinions),
        "least_share_kept_by_png": min(row["activation"] / row["unrounded_activation"] for row in rows),
        "median_seconds": statistics.median(o["seconds"] for o in opinions),
    }
    print(json.dumps(summary))
    if args.out:
        args.out.write_text(json.dumps({"summary": summary, "pictures": opinions}, indent=2))


if __name__ == "__main__":
    main()
