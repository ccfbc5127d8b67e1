"""What looks alike, at size: `python -m benchmarks.alike [--rows 1000000] [--map-rows 105808] [--out FILE.json]`.

The first part writes embeddings for as many rows, opens them and asks for the 20 most similar to a hundred targets. The
second part measures neighbours and map. Embeddings are random mixtures of a few of 2,000 random directions, with values
that fall off from one to the next as those of real pictures do; 500 rows are near-duplicates of others.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
import typer
from numpy.typing import NDArray

from benchmarks.machine import machine
from dgn.pictures import likeness
from dgn.runs.alike import EMBEDDING_SCHEMA, SCHEMA, Alike, as_halves, write_alike
from dgn.runs.likening import NUM_VALUES
from dgn.runs.run import Run
from dgn.runs.stores import open_store
from tests.helpers.fake_runs import write_fake_run

NUM_QUESTIONS, TOP, NUM_KINDS, NUM_DUPLICATES = 100, 20, 2_000, 500
NEAR = 5  # a near-duplicate should be among so many nearest on the map


def main(
    rows: int = 1_000_000,
    map_rows: int = 105_808,
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    figures: dict[str, Any] = machine()
    figures |= _asked(rows)
    figures |= _mapped(map_rows)
    for name, value in figures.items():
        print(f"{name:<28} {value:,.4g}" if isinstance(value, float) else f"{name:<28} {value}")
    if out:
        out.write_text(json.dumps(figures, indent=2) + "\n")


def _embeddings(num: int) -> NDArray[np.float32]:
    """(num, NUM_VALUES), of unit length. The last NUM_DUPLICATES are like the first ones."""
    stream = np.random.default_rng(0)
    kinds = stream.standard_normal((NUM_KINDS, NUM_VALUES), np.float32) * np.geomspace(1, 0.05, NUM_VALUES)
    values = kinds[stream.integers(0, NUM_KINDS, num)]
    values += 0.5 * kinds[stream.integers(0, NUM_KINDS, num)] + 0.3 * kinds[stream.integers(0, NUM_KINDS, num)]
    values += 0.2 * stream.standard_normal(values.shape, np.float32) * np.geomspace(1, 0.05, NUM_VALUES)
    values[-NUM_DUPLICATES:] = values[:NUM_DUPLICATES] * (
        1 + 0.1 * stream.standard_normal((NUM_DUPLICATES, NUM_VALUES))
    )
    return likeness.normalised(values)


def _asked(num: int) -> dict[str, Any]:
    names = pa.array([f"classifier.1-{n:07d}-untrained-s0" for n in range(num)])
    keys = [names, pa.repeat("00000000", num)]
    embeddings = pa.table([*keys, as_halves(_embeddings(num))], schema=EMBEDDING_SCHEMA)
    nothing = [pa.nulls(num, field.type) for field in SCHEMA][len(keys) :]
    with tempfile.TemporaryDirectory() as folder:
        run: Run = write_fake_run(folder, targets=["classes:0"], has_pictures=False)
        current = write_alike(run, pa.table([*keys, *nothing], schema=SCHEMA), embeddings, "none", "0" * 64)
        start = time.perf_counter()
        alike = Alike.of(Run(open_store(folder)))
        alike.like(0, TOP)
        opened = time.perf_counter() - start
        seconds = []
        for number in np.random.default_rng(1).integers(0, num, NUM_QUESTIONS):
            start = time.perf_counter()
            found = alike.like(alike.number_of(names[int(number)].as_py()), TOP)
            seconds.append(time.perf_counter() - start)
            assert found["target_id"][0].as_py() == names[int(number)].as_py()
    return {
        "rows": num,
        "bytes_a_row": current.embeddings_bytes / num,
        "opened_s": opened,
        "like_ms_median": 1000 * statistics.median(seconds),
        "like_ms_worst": 1000 * max(seconds),
        "threads": torch.get_num_threads(),
    }


def _mapped(num: int) -> dict[str, Any]:
    unit = _embeddings(num)
    likeness.on_map(unit[:1000], *likeness.nearest(unit[:1000], likeness.NUM_NEIGHBOURS))  # compiles
    start = time.perf_counter()
    neighbours = likeness.nearest(unit, likeness.NUM_NEIGHBOURS)
    found = time.perf_counter()
    places = likeness.on_map(unit, *neighbours)
    mapped = time.perf_counter()
    is_near = []
    for n in range(NUM_DUPLICATES):
        distances = np.square(places - places[num - NUM_DUPLICATES + n]).sum(1)
        is_near.append(n in np.argsort(distances)[: NEAR + 1])
    return {
        "map_rows": num,
        "neighbours_s": found - start,
        "map_s": mapped - found,
        "duplicates_first": float((neighbours[0][-NUM_DUPLICATES:, 0] == np.arange(NUM_DUPLICATES)).mean()),
        "duplicates_near_on_map": float(np.mean(is_near)),
    }


if __name__ == "__main__":
    typer.run(main)
