"""`dgn index`: the run's rows in few sorted files."""

from __future__ import annotations

from cluster.index import update_index
from jobs.status import open_run


def index_command(url: str, rebuild: bool) -> None:
    index = update_index(open_run(url), rebuild)
    print(
        f"{index.num_rows:,} of {index.num_targets:,} rows in {len(index.parts)} files of "
        f"{sum(part.rows_bytes for part in index.parts) / 1e3:,.0f} kB, "
        f"thumbnails in as many of {sum(part.thumbs_bytes for part in index.parts) / 1e3:,.0f} kB"
    )
