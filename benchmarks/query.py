"""Queries over a million rows: `python -m benchmarks.query [--s3] [--seeds 161] [--out FILE.json]`.

Makes a run of 6,224 rows per seed without pictures (plan, rows and index are real), in a temporary folder or on a real
S3 server of its own on loopback, indexes it, and asks for the 50 best of every layer and mode. Prints what an answer
takes, how many requests it sends, and the same question put to all shards without an index.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from dgn.runs.conditions import condition
from dgn.runs.index import update_index
from dgn.runs.layout import INDEX_FILE
from dgn.runs.query import Rows
from dgn.runs.run import Run
from dgn.runs.stores import open_store
from dgn.runs.stores.base import Store
from dgn.runs.stores.s3 import S3Store
from tests.conftest import running_s3
from tests.helpers.fake_runs import write_fake_run

TOP = 50
SHOWN = ["target_id", "layer", "unit", "label", "mode", "status", "activation", "rank", "probability", "file_name"]


def main(
    s3: Annotated[bool, typer.Option("--s3", help="On a real S3 server on loopback.")] = False,
    seeds: Annotated[int, typer.Option(help="6,224 rows each.")] = 161,
    shard_size: int = 1024,
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    with tempfile.TemporaryDirectory() as folder, _store(s3, Path(folder)) as store:
        start = time.perf_counter()
        run = write_fake_run(store.url, seeds=seeds, shard_size=shard_size, has_pictures=False)
        print(f"rows written in {time.perf_counter() - start:.0f} s")
        start = time.perf_counter()
        index = update_index(run)
        figures: dict[str, Any] = {
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "store": "S3 server on loopback" if s3 else "local folder",
            "rows": index.num_rows,
            "parts": len(index.parts),
            "index_bytes": sum(part.rows_bytes for part in index.parts),
            "index_s": time.perf_counter() - start,
        }
        figures |= _ask(store)
        store.delete(INDEX_FILE)
        start = time.perf_counter()
        Rows(Run(store)).select([condition("layer", "=", "fc8"), condition("mode", "=", "pretrained")], SHOWN, top=TOP)
        figures["without_index_s"] = time.perf_counter() - start
    for name, value in figures.items():
        print(f"{name:<28} {value:,.4g}" if isinstance(value, float) else f"{name:<28} {value}")
    if out:
        out.write_text(json.dumps(figures, indent=2) + "\n")


def _ask(store: Store) -> dict[str, Any]:
    """The 50 best of every layer and mode: with nothing open yet, then again with the files' footers read."""
    index = Rows(Run(store)).index
    assert index
    groups = sorted({(group.layer, group.mode) for part in index.parts for group in part.groups})
    first_s, again_s, first_requests, again_requests = [], [], [], []
    for layer, mode in groups:
        asked = [condition("layer", "=", layer), condition("mode", "=", mode)]
        with _counted(store) as requests:
            start = time.perf_counter()
            rows = Rows(Run(store))
            found = rows.select(asked, SHOWN, top=TOP)
            first_s.append(time.perf_counter() - start)
            first_requests.append(len(requests))
        with _counted(store) as requests:
            start = time.perf_counter()
            assert rows.select(asked, SHOWN, top=TOP).equals(found)
            again_s.append(time.perf_counter() - start)
            again_requests.append(len(requests))
        activations = found["activation"].to_pylist()
        assert len(found) == TOP
        assert activations == sorted(activations, reverse=True)
    return {
        "questions": len(groups),
        "first_answer_median_s": statistics.median(first_s),
        "first_answer_worst_s": max(first_s),
        "opened_answer_median_s": statistics.median(again_s),
        "opened_answer_worst_s": max(again_s),
        "first_answer_most_requests": max(first_requests),
        "opened_answer_most_requests": max(again_requests),
    }


@contextlib.contextmanager
def _counted(store: Store) -> Iterator[list[str]]:
    """Every request that goes out to S3 meanwhile; of a local folder, none."""
    requests: list[str] = []
    if not isinstance(store, S3Store):
        yield requests
        return
    store.client.meta.events.register(
        "before-send.s3", note := lambda request, **_: requests.append(request.url), unique_id="count"
    )
    yield requests
    store.client.meta.events.unregister("before-send.s3", note, unique_id="count")


@contextlib.contextmanager
def _store(s3: bool, folder: Path) -> Iterator[Store]:
    if not s3:
        yield open_store(str(folder / "run"))
        return
    with running_s3(folder) as environment:
        os.environ.update(environment)
        store = S3Store("s3://benchmark/run")
        store.client.create_bucket(Bucket="benchmark")
        yield store


if __name__ == "__main__":
    typer.run(main)
