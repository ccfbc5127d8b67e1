"""`dgn export`: a run for other programs. A failed export leaves no files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Annotated

import typer

from dgn.errors import DgnError, RunDamaged, StoreError
from dgn.jobs.common.arguments import RunArgument
from dgn.jobs.common.progress import pictures_done
from dgn.jobs.exports.chosen import Chosen, cut
from dgn.jobs.exports.hf import write_hf
from dgn.jobs.exports.tar import write_tar
from dgn.runs.conditions import parse_condition
from dgn.runs.query import Rows
from dgn.runs.run import VERIFY, Run
from dgn.runs.stores import open_store
from dgn.runs.stores.base import Store
from dgn.runs.stores.local import LocalStore
from dgn.text import A_BUCKET, plural


class Form(StrEnum):
    hf = "hf"
    tar = "tar"


def command(
    run: RunArgument,
    out: Annotated[str, typer.Argument(metavar="OUT", help=f"A new folder, or {A_BUCKET}.")],
    form: Annotated[
        Form,
        typer.Option("--format", help="hf: Parquet for datasets.load_dataset. tar: tar files and index.parquet."),
    ],
    where: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN>=VALUE", help="Only these rows, as in dgn query; repeatable.")
    ] = None,
) -> None:
    conditions = [parse_condition(text) for text in where or []]
    opened = Run.at(run)
    store = open_store(out)
    if os.path.isfile(store.url):
        raise DgnError(f"{store.url} is a file: expected a new or an empty folder for the export, or {A_BUCKET}")
    store.check(must_write=True)
    for is_hidden in (False, True):
        if (found := next(store.list("", is_hidden), None)) is not None:
            raise DgnError(
                f"{store.url} is not empty, it holds {found}: give a folder or prefix that is, or delete what an "
                "interrupted export left"
            )
    rows = Rows(opened)
    chosen = Chosen(rows, where or [], conditions, rows.select(conditions, ["layer", "mode", "status", "bytes"]))
    if chosen.table.num_rows == 0:
        raise DgnError(f"{opened.store.url} has no rows{' that satisfy --where' if where else ''} yet")
    if chosen.table["layer"].null_count:
        raise RunDamaged(f"{opened.store.url} has rows without a layer", VERIFY)
    with _taken_away_on_failure(store) as write, pictures_done(chosen.table.num_rows) as advance:
        (write_hf if form is Form.hf else write_tar)(chosen, cut(chosen, advance), write)
    packs = plural(chosen.num_packs, "Parquet file" if form == "hf" else "pack")
    print(f"{chosen.description} in {packs}: {store.url}")


@contextmanager
def _taken_away_on_failure(store: Store) -> Iterator[Callable[[str, bytes], None]]:
    """Yields a function that writes files; if the block fails, deletes them all."""
    keys: list[str] = []
    is_new = isinstance(store, LocalStore) and not store.root.exists()

    def write(key: str, data: bytes) -> None:
        keys.append(key)
        store.write(key, data)

    try:
        yield write
    except BaseException:
        with suppress(StoreError):  # would hide the first error
            for key in keys:
                store.delete(key)
        if is_new and isinstance(store, LocalStore):
            with suppress(OSError):
                store.root.rmdir()
        raise
