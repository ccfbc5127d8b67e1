"""Runs of any size that nobody rendered: the real plan, layers and rows, with figures and pictures of a random stream.

python -m tests.helpers.fake_runs FOLDER --seeds 1     # 6,224 rows: every class in both modes, every filter of VGG-16
"""

import argparse
import functools
import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dgn.networks.registry import network_named
from dgn.pictures.codec import encode_png, encode_thumbnail
from dgn.runs.config import RunConfig
from dgn.runs.judgements import DISTORTION_NAMES, write_judgements
from dgn.runs.layout import image_key, metadata_key, sha256
from dgn.runs.plan import fingerprint, make_plan
from dgn.runs.run import Run
from dgn.runs.schema import BY_NAME, SCHEMA
from dgn.runs.stores import LocalStore, open_store

NUM_PICTURES = 48
NOISE = 12  # of 255: PNGs of 103 kB; with 3 they have 73
STATUSES = np.array(["ok", "not_converged", "dead", "nonfinite"])
REASONS = {
    "not_converged": "rank 3 on the saved picture: tench is first",
    "dead": "the activation is 0 on the saved picture after 300 updates",
    "nonfinite": "the picture has values that are not finite: try another seed",
}
RENDERED_AT = datetime(2026, 1, 1, tzinfo=UTC)


def draw_pictures():
    """PNGs of soft random patterns, about as large as real ones."""
    return _drawn(False)[0]


@functools.cache
def _drawn(are_flat, noise=NOISE):
    """PNGs and their thumbnails. Flat ones have one colour each and are tiny."""
    stream, side = np.random.default_rng(0), 224
    pngs, thumbnails = [], []
    for _ in range(NUM_PICTURES):
        coarse = Image.fromarray(stream.integers(0, 256, (1, 1, 3) if are_flat else (7, 7, 3), dtype=np.uint8))
        picture = np.asarray(coarse.resize((side, side), Image.BICUBIC))
        if not are_flat:
            noisy = picture + stream.integers(-noise, noise + 1, (side, side, 3), dtype=np.int16)
            picture = noisy.clip(0, 255).astype(np.uint8)
        pngs.append(encode_png(picture))
        thumbnails.append(encode_thumbnail(picture))
    return pngs, thumbnails


def write_fake_run(
    url, seeds=1, targets=("all",), shard_size=256, labels=None, has_pictures=True, seed=0, are_flat=False,
    noise=NOISE, has_own_files=False,
):  # fmt: skip
    """Commits every shard. Rows share a few pictures, which lie where the rows say; with `has_own_files`, each has a
    file of its own, as in a real run. Returns the Run."""
    config = RunConfig(targets=list(targets), seeds=seeds, shard_size=shard_size, preset="draft", decoder="drawings")
    layers = network_named("vgg16").layers
    plan = make_plan(config, layers)
    run = Run(open_store(url))
    identity = fingerprint(plan, config.render_config("float32"), network_named("vgg16"), "0" * 64, "0" * 64)
    info = run.start(identity, config, plan.num_targets, plan.num_shards, layers)
    pngs, thumbnails = _drawn(are_flat, noise) if has_pictures else ([b""], [b""])
    names = [f"images/fake/00000000/{n:02d}.png" for n in range(len(pngs))] if has_pictures else ["images/none.png"]
    if has_pictures:
        for name, png in zip(names, pngs, strict=True):
            _put(run.store, name, png)
    of_picture = {
        "file_name": names, "sha256": [sha256(png) for png in pngs], "bytes": [len(png) for png in pngs],
        "thumbnail": thumbnails,
    }  # fmt: skip
    stream = np.random.default_rng(seed)
    for index in range(plan.num_shards):
        shard = plan.shard(index)
        same = {
            "run_id": info.run_id, "shard": index, "attempt": "00000000", "layer": shard.block.layer,
            "mode": shard.block.mode, "discriminator": "vgg16", "updates": 300, "device": "fake", "host": "localhost",
            "rendered_at": RENDERED_AT,
        }  # fmt: skip
        columns = _figures(shard, stream, layers, labels or layers.labels, of_picture)
        columns |= {name: pa.repeat(pa.scalar(value, BY_NAME[name].type), len(shard)) for name, value in same.items()}
        if has_own_files:
            png_of = dict(zip(of_picture["sha256"], pngs, strict=True))
            columns["file_name"] = _own_files(run.store, index, columns, png_of)
        buffer = io.BytesIO()
        whole = {field.name: columns.get(field.name, pa.nulls(len(shard), field.type)) for field in SCHEMA}
        pq.write_table(pa.table(whole, schema=SCHEMA), buffer)
        _put(run.store, metadata_key(index), buffer.getvalue())
    return run


def _own_files(store, shard, columns, png_of):
    """Writes a file for each row that has a picture. Returns their names."""
    names = []
    for target_id, digest in zip(columns["target_id"].to_pylist(), columns["sha256"].to_pylist(), strict=True):
        names.append(digest and image_key(shard, "00000000", target_id))
        if digest:
            _put(store, names[-1], png_of[digest])
    return pa.array(names, pa.string())


def _put(store, key, data):
    """Does not wait for the disk as a store does: nobody resumes a fake run after a power cut."""
    if isinstance(store, LocalStore):
        path = Path(store.url) / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    else:
        store.create(key, data)


def _figures(shard, stream, layers, labels, of_picture):
    """The columns in which a shard's rows differ, as Arrow arrays; what a missing picture cannot have is null."""
    n, targets = len(shard), shard.targets
    status = STATUSES[stream.choice(4, n, p=[0.9, 0.07, 0.02, 0.01])]
    is_missing = status == "nonfinite"
    activation = np.where(status == "dead", 0, stream.lognormal(3, 0.5, n)).astype(np.float32)
    rank = np.where(status == "not_converged", stream.integers(2, 9, n), 1)
    is_class = shard.block.layer == layers.class_layer
    which = pa.array(stream.integers(0, len(of_picture["sha256"]), n), mask=is_missing)
    top_units = stream.integers(0, 64, (n, 5))
    curve = np.cumsum(stream.random((n, 64), dtype=np.float32), axis=1)
    units = [target.unit for target in targets]
    scored = {
        "activation": activation, "unrounded_activation": activation, "rank": rank, "others_sum": activation,
        "width": np.full(n, 224), "height": np.full(n, 224),
    }  # fmt: skip
    if is_class:
        scored["probability"] = stream.random(n)
    columns = {name: pa.array(values, mask=is_missing).cast(BY_NAME[name].type) for name, values in scored.items()}
    columns |= {
        name: pa.array(values, BY_NAME[name].type).take(which) for name, values in of_picture.items()
    }  # fmt: skip
    top5 = [
        None
        if is_none
        else [_top(unit, layers.labels[unit] if is_class else None, 9.0 - k) for k, unit in enumerate(of)]
        for is_none, of in zip(is_missing, top_units.tolist(), strict=True)
    ]
    plain = {
        "target_id": [target.target_id for target in targets],
        "unit": units,
        "units": [[{"layer": shard.block.layer, "unit": unit, "weight": 1.0}] for unit in units],
        "label": [labels[unit] if is_class else None for unit in units],
        "seed": [target.seed for target in targets],
        "status": status.tolist(),
        "reason": [REASONS.get(one) for one in status.tolist()],
        "probability": [None] * n,
        "optimised_activation": activation,
        "top5": top5,
        "activation_curve": list(curve),
        "seconds": stream.uniform(20, 30, n).astype(np.float32),
    }
    return {name: pa.array(values, BY_NAME[name].type) for name, values in plain.items()} | columns


def _top(unit, label, activation):
    return {"unit": unit, "label": label, "activation": activation}


def judge_at_random(run, shard, stream, judge, attempt="00000000", is_again=False):
    """Judgements of a shard, in another order than its rows."""
    names = pq.read_table(Path(run.store.url) / metadata_key(shard))["target_id"].to_pylist()
    stream.shuffle(names)
    rows = [
        {
            "target_id": name, "shard": shard, "attempt": attempt, "judge_rank": stream.randrange(1000),
            **{f"{one}_rank": stream.randrange(1000) for one in DISTORTION_NAMES},
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
