"""Writes the gallery's page next to a run's data.

gallery/index.html, *.js, *.css        the page, which reads index/current.json, the index's parts, and images/
gallery/columns.js                     the rows' columns, from dgn/runs/schema.py, and whether there are examples and
                                       figures of `dgn alike`
gallery/data/index.js, alike.js        index/current.json and alike/current.json as scripts, written last
gallery/data/<key>/<n>.js              their files in blocks, as scripts: for file://, where a page may load nothing
                                       else, and for web servers without byte ranges
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from importlib import resources
from pathlib import PurePosixPath

from dgn.errors import StoreError
from dgn.runs.alike import read_current
from dgn.runs.examples import DONE
from dgn.runs.examples import FOLDER as EXAMPLES
from dgn.runs.index import update_index
from dgn.runs.index_file import REBUILD, Index
from dgn.runs.index_parts import THUMBS
from dgn.runs.judgements import judged_key
from dgn.runs.run import Run
from dgn.runs.schema import COLUMNS
from dgn.runs.stores import LocalStore, Store
from dgn.statuses import Status
from dgn.text import plural

FOLDER, DATA = "gallery", "gallery/data"
BLOCK_BYTES = 1 << 16  # per script, as in web/source.js; a new size needs a new folder DATA
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


def build_page(run: Run, for_files: bool | None) -> None:
    """Writes the page, and prints where it is.

    Args:
        for_files: whether to write the data as scripts too; None for: if the run is a folder.
    """
    index = update_index(run)
    for name, data in page_files(run.store).items():
        run.store.write(f"{FOLDER}/{name}", data)
    is_local = isinstance(run.store, LocalStore)
    if for_files or (for_files is None and is_local):
        _write_scripts(run, index)
    elif for_files is False:  # or the page would show an earlier build's
        for key in list(run.store.list(DATA)):
            run.store.delete(key)
    print(f"{describe(index)}: {run.store.url}/{FOLDER}/index.html")
    if not is_local:
        print(f"if the bucket is private: dgn gallery serve {run.store.url}")


def describe(index: Index) -> str:
    missing = index.num_targets - index.num_rows
    return plural(index.num_rows, "picture") + (f" ({missing:,} not rendered yet)" if missing else "")


def page_files(store: Store) -> dict[str, bytes]:
    """The page's files by name, for the run in a store."""
    folder = resources.files("dgn.jobs.galleries") / "web"
    files = {file.name: file.read_bytes() for file in folder.iterdir() if PurePosixPath(file.name).suffix in KINDS}
    return files | {"columns.js": _columns_script(store).encode()}


def _columns_script(store: Store) -> str:
    """The columns that the page holds for every row, and those that it shows for one picture."""
    numbers = [column.name for column in COLUMNS if column.grid == "number"]
    alike = read_current(Run(store))
    content = {
        "coded": [column.name for column in COLUMNS if column.grid == "coded"],
        "numbers": [*numbers, *(name for name, _ in THUMBS)],
        "plain": [column.name for column in COLUMNS if column.grid == "plain"],
        "scores": [[column.name, column.title] for column in COLUMNS if column.section == "scores"],
        "origin": [[column.name, column.title] for column in COLUMNS if column.section == "origin"],
        "statuses": list(Status),
        "hasExamples": store.exists(f"{EXAMPLES}/{DONE}"),
        "hasAlike": alike is not None,
        "hasMap": alike is not None and alike.has_map,
    }
    return f"// Written by dgn gallery, from dgn/runs/schema.py.\nconst COLUMNS = {json.dumps(content)}\n"


def _write_scripts(run: Run, index: Index) -> None:
    keys = {part.rows_key: part.rows_bytes for part in index.parts}
    keys |= {part.thumbs_key: part.thumbs_bytes for part in index.parts}
    keys |= {judged_key(part.id, judged.name): judged.bytes for part in index.parts for judged in part.judged}
    alike = read_current(run)
    keys |= {alike.table: alike.table_bytes} if alike else {}
    for key, num_bytes in keys.items():
        _write_blocks(run.store, key, num_bytes)
    last = {f"{DATA}/index.js": f"dgnIndex({json.dumps(asdict(index))})\n"}
    last |= {f"{DATA}/alike.js": f"dgnAlike({json.dumps(asdict(alike))})\n"} if alike else {}
    for key, script in last.items():
        run.store.write(key, script.encode())
    for key in list(run.store.list(DATA)):
        of = str(PurePosixPath(key).parent).removeprefix(f"{DATA}/")
        if key not in last and of not in keys and of.split("/")[1] not in index.former:
            run.store.delete(key)  # of former parts, which no open page can be reading


def _write_blocks(store: Store, key: str, num_bytes: int) -> None:
    for n, start in enumerate(range(0, num_bytes, BLOCK_BYTES)):
        script = f"{DATA}/{key}/{n}.js"
        if store.exists(script):  # by an earlier build; a key's content never changes
            continue
        try:
            block = store.read_range(key, start, min(start + BLOCK_BYTES, num_bytes))
        except FileNotFoundError as error:
            raise StoreError(f"{store.url}/{key} is gone: {REBUILD}") from error
        content = f'dgnBlock({json.dumps(key)}, {n}, "{base64.b64encode(block).decode()}")\n'
        store.write(script, content.encode())
