"""`dgn index`: compacts a run's rows into a few sorted files."""

from __future__ import annotations

from typing import Annotated

import typer

from dgn.jobs.common.arguments import RunArgument
from dgn.runs.index import update_index
from dgn.runs.run import Run
from dgn.text import plural


def command(
    run: RunArgument,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Start from the shards alone, not from the existing index.")
    ] = False,
) -> None:
    index = update_index(Run.at(run), rebuild)
    print(
        f"{index.num_rows:,} of {plural(index.num_targets, 'row')} in {plural(len(index.parts), 'part')}: "
        f"{sum(part.rows_bytes for part in index.parts) / 1e3:,.0f} kB of rows, "
        f"{sum(part.thumbs_bytes for part in index.parts) / 1e3:,.0f} kB of thumbnails"
    )
