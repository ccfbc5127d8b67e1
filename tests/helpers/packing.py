"""A run with its pictures packed, from one that has them in files."""

import shutil

import pyarrow.parquet as pq

from dgn.runs import packed, schema


def pack(folder, to):
    """Copies a run of files without its pictures, which go into the files of their shards. Returns `to`."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("images", "index", "gallery"))
    for path in (to / "metadata").iterdir():
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            row[schema.PNG] = row["file_name"] and (folder / row["file_name"]).read_bytes()
        path.write_bytes(packed.serialise(int(path.stem), rows, {}))
    return to
