"""What a store takes and gives, on a local folder and on S3: `python -m benchmarks.storage --out FILE.json`.

Pictures as a worker writes them (four threads), commits of 32 rows one after the other, then everything read back as
`dgn verify` and the queries do (ten threads); the same with pictures packed into the committed files, which two
threads write, as many as a worker holds shards. Pictures and rows are drawn at random and as large as real ones; S3 is
a real server on loopback, on the same cores.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.machine import machine
from dgn.cluster.worker import NUM_SAVERS
from dgn.runs import schema
from dgn.runs.layout import image_key
from dgn.runs.run import NUM_READERS, Run
from dgn.runs.stores import open_store
from dgn.runs.stores.s3 import S3Store
from tests.conftest import running_s3
from tests.helpers.fake_runs import draw_pictures, write_fake_run
from tests.helpers.machines import surroundings

SHARD_SIZE = 32
NUM_SHARDS_HELD = 2  # by a worker: one is rendered while the other is saved


def measure(url: str, shards: list[list[dict[str, Any]]], pngs: list[bytes]) -> dict[str, Any]:
    run = Run(open_store(url))
    keys = [image_key(index, "0" * 8, row["target_id"]) for index, rows in enumerate(shards) for row in rows]

    def write(n: int) -> None:
        run.store.write(keys[n], pngs[n % len(pngs)])

    def commit() -> None:
        for index, rows in enumerate(shards):
            run.commit(index, "0" * 8, rows, {})

    def read(n: int) -> None:
        assert run.unchecked_picture(keys[n]) == pngs[n % len(pngs)]

    def read_rows() -> None:
        assert sum(table.num_rows for table in run.tables(range(len(shards)))) == len(keys)

    written_s = _seconds(lambda: _at_once(NUM_SAVERS, write, len(keys)))
    committed_s = _seconds(commit)
    return {
        "store": "S3" if url.startswith("s3://") else "folder",
        "pictures_written_per_s": len(keys) / written_s,
        "commits_per_s": len(shards) / committed_s,
        "rows_committed_per_s": len(keys) / committed_s,
        "pictures_read_per_s": len(keys) / _seconds(lambda: _at_once(NUM_READERS, read, len(keys))),
        "rows_read_per_s": len(keys) / _seconds(read_rows),
        "commits_listed_per_s": len(shards) / _seconds(lambda: run.committed(len(shards))),
        **_measure_packed(Run(open_store(f"{url}-packed")), shards, pngs),
    }


def _measure_packed(run: Run, shards: list[list[dict[str, Any]]], pngs: list[bytes]) -> dict[str, float]:
    num_pictures = sum(map(len, shards))
    numbers = itertools.count()
    filled = [[{**row, schema.PNG: pngs[next(numbers) % len(pngs)]} for row in rows] for rows in shards]

    def read_pictures() -> None:
        names = [
            name for table in run.tables(range(len(shards)), ["file_name"]) for name in table["file_name"].to_pylist()
        ]
        _at_once(NUM_READERS, lambda n: run.unchecked_picture(names[n]), num_pictures)

    def read_rows() -> None:
        assert sum(table.num_rows for table in run.tables(range(len(shards)))) == num_pictures

    written_s = _seconds(
        lambda: _at_once(NUM_SHARDS_HELD, lambda n: run.commit(n, "0" * 8, filled[n], {}), len(shards))
    )
    return {
        "packed_pictures_committed_per_s": num_pictures / written_s,
        "packed_pictures_read_per_s": num_pictures / _seconds(read_pictures),
        "packed_shards_read_whole_per_s": len(shards)
        / _seconds(lambda: _at_once(NUM_READERS, run.shard_file, len(shards))),
        "packed_rows_read_per_s": num_pictures / _seconds(read_rows),
    }


def _at_once(num_threads: int, work: Callable[[int], None], count: int) -> None:
    with ThreadPoolExecutor(num_threads) as threads:
        list(threads.map(work, range(count)))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(
    shards: Annotated[int, typer.Option(help="Of 32 pictures each, 62 at most.")] = 40,
    out: Annotated[Path | None, typer.Option(help="Also write JSON.")] = None,
) -> None:
    pngs = draw_pictures()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        drawn = write_fake_run(str(folder / "drawn"), seeds=2, targets=("classes",), shard_size=SHARD_SIZE)
        rows = [table.to_pylist() for table in drawn.tables(range(shards))]
        stack.enter_context(surroundings(stack.enter_context(running_s3(folder / "s3"))))
        S3Store("s3://storage/run").client.create_bucket(Bucket="storage")
        stores = [measure(url, rows, pngs) for url in (str(folder / "run"), "s3://storage/run")]
    figures = {
        "machine": machine(),
        "pictures": sum(map(len, rows)),
        "picture_bytes": sum(map(len, pngs)) // len(pngs),
        "rows_per_commit": SHARD_SIZE,
        "stores": stores,
    }
    for name in stores[0]:
        print(
            f"{name:<32}" + "".join(f"{one[name]:>12,.0f}" if name != "store" else f"{one[name]:>12}" for one in stores)
        )
    if out:
        out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
