"""Second opinions as other programs read them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from dgn.networks.weights import load_weights
from dgn.runs.judgements import JUDGED_SCHEMA

BY = ["--by", "vgg16-mini-b"]
FOLDER = f"vgg16-mini-b-{load_weights('vgg16-mini-b').sha256[:8]}"


def table_of(folder, columns=None):
    return pa.concat_tables(pq.read_table(path, columns=columns) for path in sorted(folder.glob("*.parquet")))


def judged_rows(folder):
    """What judges wrote, as another program reads it, by target."""
    rows = table_of(folder / "judgements" / FOLDER).to_pylist()
    found = {row["target_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def compacted(folder):
    """Rows of the index with the judgements beside them, by their places alone."""
    pairs = []
    for part in json.loads((folder / "index/current.json").read_text())["parts"]:
        rows = pq.read_table(folder / "index" / part["id"] / "rows.parquet").to_pylist()
        for judged in part["judged"]:
            beside = pq.read_table(folder / "index" / part["id"] / judged["name"])
            assert beside.schema.equals(JUDGED_SCHEMA)
            assert len(beside) == len(rows)
            assert judged["num_rows"] == len(rows) - beside["by"].null_count
            pairs += zip(rows, beside.to_pylist(), strict=True)
    return pairs


def check_compacted(folder, rows):
    """`rows`: the judgements that count, by target."""
    pairs = compacted(folder)
    assert len(pairs) == len(table_of(folder / "metadata", ["shard"]))
    for row, beside in pairs:
        judgement = rows.get(row["target_id"])
        expected = dict.fromkeys(JUDGED_SCHEMA.names) if judgement is None else judgement
        assert beside == {name: expected[name] for name in JUDGED_SCHEMA.names}
