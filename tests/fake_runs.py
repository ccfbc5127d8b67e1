"""Runs of any size that nobody rendered: the real plan, layout and rows, with figures and pictures of a random stream.

python -m tests.fake_runs FOLDER --seeds 1     # 6,224 rows: every class in both modes and every filter of VGG-16
"""

import argparse
import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cluster.judgements import DISTORTED, write_judgements
from cluster.plan import RunConfig, fingerprint, make_plan
from cluster.rows import SCHEMA
from cluster.run import Run, metadata_key, sha256
from cluster.storage import open_store
from dgn import discriminator
from dgn.picture import encode_thumbnail

NUM_PICTURES = 48
STATUSES = np.array(["ok", "not_converged", "dead", "nonfinite"])
REASONS = {
    "not_converged": "rank 3 on the saved picture: tench is first",
    "dead": "the activation is 0 on the saved picture after 300 updates",
    "nonfinite": "the picture has values that are not finite: try another seed",
}


def draw_pictures(seed=0, side=224):
    """PNGs of soft random patterns, about as large as real ones."""
    stream = np.random.default_rng(seed)
    pictures = []
    for _ in range(NUM_PICTURES):
        coarse = Image.fromarray(stream.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
        noisy = np.asarray(coarse, np.int16) + stream.integers(-12, 13, (side, side, 3), dtype=np.int16)
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    return pictures


def write_fake_run(url, seeds=1, targets=("all",), shard_size=256, labels=None, has_pictures=True, seed=0):
    """Commits every shard. Rows share a few pictures, which lie where the rows say. Returns the Run."""
    config = RunConfig(targets=list(targets), seeds=seeds, shard_size=shard_size, preset="draft", decoder="drawings")
    layout = discriminator.layout("vgg16")
    plan = make_plan(config, layout)
    run = Run(open_store(url))
    identity = fingerprint(plan, config.render_config("float32"), "vgg16", "0" * 64, "0" * 64)
    info = run.start(identity, config, plan.num_targets, plan.num_shards)
    pngs = draw_pictures() if has_pictures else []
    names = [f"images/fake/00000000/{n:02d}.png" for n in range(len(pngs))]
    for name, png in zip(names, pngs, strict=True):
        run.store.write(name, png)
    thumbnails = [encode_thumbnail(png) for png in pngs]
    digests = [sha256(png) for png in pngs]
    stream = np.random.default_rng(seed)
    labels = labels or layout.labels
    for index in range(plan.num_shards):
        shard = plan.shard(index)
        n = len(shard)
        status = STATUSES[stream.choice(4, n, p=[0.9, 0.07, 0.02, 0.01])]
        scored = status != "nonfinite"
        activation = np.where(status == "dead", 0, stream.lognormal(3, 0.5, n)).astype(np.float32)
        rank = np.where(status == "not_converged", stream.integers(2, 9, n), 1)
        is_class = shard.block.layer == layout.class_layer
        which = stream.integers(0, max(1, len(pngs)), n)

        def where_scored(values, scored=scored):
            return [value if is_scored else None for value, is_scored in zip(values, scored, strict=True)]

        top = [
            [
                {"unit": unit, "label": layout.labels[unit] if is_class else None, "activation": 9.0 - k}
                for k, unit in enumerate(units)
            ]
            for units in stream.integers(0, 64, (n, 5)).tolist()
        ]  # fmt: skip
        curve = np.cumsum(stream.random((n, 64), dtype=np.float32), axis=1)
        columns = {
            "run_id": [info.run_id] * n,
            "target_id": [target.target_id for target in shard.targets],
            "shard": [index] * n,
            "attempt": ["00000000"] * n,
            "layer": [shard.block.layer] * n,
            "unit": [target.unit for target in shard.targets],
            "units": [[{"layer": t.layer, "unit": t.unit, "weight": 1.0}] for t in shard.targets],
            "label": [labels[t.unit] if is_class else None for t in shard.targets],
            "mode": [shard.block.mode] * n,
            "seed": [target.seed for target in shard.targets],
            "discriminator": ["vgg16"] * n,
            "status": status.tolist(),
            "reason": [REASONS.get(one) for one in status.tolist()],
            "activation": where_scored(activation.tolist()),
            "unrounded_activation": where_scored(activation.tolist()),
            "optimised_activation": activation.tolist(),
            "rank": where_scored(rank.tolist()),
            "probability": where_scored(stream.random(n).tolist()) if is_class else [None] * n,
            "top5": where_scored(top),
            "others_sum": where_scored(activation.tolist()),
            "activation_curve": curve.tolist(),
            "updates": [300] * n,
            "file_name": where_scored([names[k] if pngs else "images/none.png" for k in which]),
            "sha256": where_scored([digests[k] if pngs else "0" * 64 for k in which]),
            "bytes": where_scored([len(pngs[k]) if pngs else 0 for k in which]),
            "width": where_scored([224] * n),
            "height": where_scored([224] * n),
            "thumbnail": where_scored([thumbnails[k] if pngs else b"" for k in which]),
            "seconds": stream.uniform(20, 30, n).tolist(),
            "device": ["fake"] * n,
            "host": ["localhost"] * n,
            "rendered_at": [datetime(2026, 1, 1, tzinfo=UTC)] * n,
        }  # fmt: skip
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns, schema=SCHEMA), buffer)
        run.store.create(metadata_key(index), buffer.getvalue())
    return run


def judge_at_random(run, shard, stream, judge, attempt="00000000", is_again=False):
    """The rows in another order than the shard's."""
    names = pq.read_table(Path(run.store.url) / metadata_key(shard))["target_id"].to_pylist()
    stream.shuffle(names)
    rows = [
        {
            "target_id": name, "shard": shard, "attempt": attempt, "judge_rank": stream.randrange(1000),
            **{f"{one}_rank": stream.randrange(1000) for one in DISTORTED},
        }
        for name in names
    ]  # fmt: skip
    write_judgements(run, judge, shard, rows, {}, is_again)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    write_fake_run(arguments.url, arguments.seeds)
