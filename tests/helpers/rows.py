"""A run's rows as other programs read and edit them, and what a command that fails prints."""

import pyarrow as pa
import pyarrow.parquet as pq

from dgn.runs.schema import SCHEMA


def every_row(folder):
    """Straight from the shards, in order."""
    return [row for path in sorted((folder / "metadata").iterdir()) for row in pq.read_table(path).to_pylist()]


def edit_rows(folder, edit):
    """Rewrites rows that were committed. `edit`: the new row, None for one that stays as it is."""
    for path in sorted((folder / "metadata").iterdir()):
        rows = pq.read_table(path).to_pylist()
        edited = [edit(row) for row in rows]
        if any(edited):
            rows = [new or row for new, row in zip(edited, rows, strict=True)]
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def contents(folder):
    """The bytes of all files below a folder by their paths."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def times(folder):
    """When everything below a folder was last written, by path."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_one_line(answer, code, *words):
    """`answer`: exit code, standard output and standard error of a command. It failed, and said so in one line."""
    ended_with, out, err = answer
    assert (ended_with, out, err.count("\n")) == (code, "", 1), answer
    assert all(word in err for word in words), (words, err)
