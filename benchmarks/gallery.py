"""The gallery's times and bytes in a real browser: `python -m benchmarks.gallery [--repeats 3] [--out FILE.json]`.

Fake runs of 6,224 and 105,808 pictures (the plan, rows, index and page are real), from file://, from a web server that
knows no byte ranges, from one that does, from `dgn gallery serve` and from a real S3 server, all on loopback. Medians
over the repeats, each in a fresh browser context, as two Markdown tables: the grid's, and the map's (positions and
figures are made up).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from dgn.jobs.galleries.build import build_page
from dgn.runs.index import update_index
from dgn.runs.run import Run
from dgn.runs.stores import open_store
from dgn.runs.stores.s3 import S3Store
from tests.conftest import running_s3
from tests.helpers.fake_alike import write_fake_alike
from tests.helpers.fake_runs import write_fake_run
from tests.helpers.gallery_tour import (
    a_browser,
    all_rows,
    gallery_server,
    map_tour,
    plain_server,
    range_server,
    tour,
    upload,
)

PLACES = {
    "file": "`file://`", "plain": "web server, no ranges", "ranges": "web server, ranges", "serve": "`gallery serve`",
    "s3": "S3",
}  # fmt: skip
COLUMNS = {
    "first_screen_ms": "first screen, ms", "first_screen_bytes": "kB", "first_screen_requests": "requests",
    "all_rows_ms": "all rows, ms", "filter_ms": "filter", "sort_ms": "sort", "to_the_end_ms": "to the end",
    "detail_ms": "a picture", "back_ms": "back",
}  # fmt: skip
MAP_COLUMNS = {
    "map_ms": "map, ms", "map_requests": "requests", "map_by_address_ms": "by its address", "lasso_ms": "lasso",
    "lasso_pictures": "pictures in it",
}  # fmt: skip
NUM_SELECTED = 5_000


def main(
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    seeds: Annotated[list[int] | None, typer.Option(help="6,224 pictures each (1 and 17).")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, running_s3(Path(folder) / "s3") as s3, a_browser() as browser:
        os.environ.update(s3)
        for number in seeds or [1, 17]:
            run = Path(folder) / f"run-{number}"
            write_fake_run(str(run), seeds=number)
            update_index(Run.at(str(run)))
            write_fake_alike(run)
            build_page(Run.at(str(run)), None)
            rows = all_rows(run)
            for where in PLACES:
                with _place(where, run) as url:
                    tours = [tour(browser, url, rows) | map_tour(browser, url, NUM_SELECTED) for _ in range(repeats)]
                medians = {name: statistics.median(one[name] for one in tours) for name in tours[0]}
                found.append({"pictures": len(rows), "where": where, **medians})
                print(f"{len(rows):,} {where}: {json.dumps(medians)}", flush=True)
    _print_table(found, COLUMNS)
    _print_table(found, MAP_COLUMNS)
    if out:
        machine = f"{platform.machine()}, {os.cpu_count()} cores"
        out.write_text(json.dumps({"machine": machine, "repeats": repeats, "tours": found}, indent=2) + "\n")


def _print_table(found: list[dict[str, Any]], columns: dict[str, str]) -> None:
    print(f"| pictures | from | {' | '.join(columns.values())} |")
    print(f"| ---: | --- | {' | '.join('---:' for _ in columns)} |")
    for one in found:
        figures = (one[name] / 1000 if name.endswith("_bytes") else one[name] for name in columns)
        print(
            f"| {one['pictures']:,} | {PLACES[one['where']]} | {' | '.join(f'{figure:,.0f}' for figure in figures)} |"
        )


@contextlib.contextmanager
def _place(where: str, run: Path) -> Iterator[str]:
    """The page's address."""
    if where == "file":
        yield (run / "gallery" / "index.html").as_uri()
    elif where == "s3":
        store = S3Store(f"s3://{run.name}/run")
        store.client.create_bucket(Bucket=run.name)
        upload(run, store)
        yield f"{store.client.meta.endpoint_url}/{run.name}/run/gallery/index.html"
    else:
        server = {"plain": plain_server, "ranges": range_server}.get(where)
        with server(run) if server else gallery_server(open_store(str(run))) as url:
            yield f"{url}/gallery/index.html"


if __name__ == "__main__":
    typer.run(main)
