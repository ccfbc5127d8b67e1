"""What `dgn alike` writes, for a fake run: known positions, figures and neighbours, without a network.

python -m tests.helpers.fake_alike FOLDER     # of a run that has an index
"""

import argparse

import numpy as np
import pyarrow as pa

from dgn.runs.alike import EMBEDDING_SCHEMA, NUM_SIMILAR, SCHEMA, as_halves, write_alike
from dgn.runs.query import Rows
from dgn.runs.run import Run


def write_fake_alike(folder, has_map=True):
    """Rows that share a picture lie close together, and neighbours there are similar. Returns the table."""
    run = Run.at(str(folder))
    rows = pa.concat_tables(Rows(run).tables(["target_id", "attempt", "file_name"]))
    table = alike_table(rows.filter(pa.compute.is_valid(rows["file_name"])), has_map)
    embeddings = [*table.select(["target_id", "attempt"]).columns, as_halves(np.ones((len(table), 1)))]
    write_alike(run, table, pa.table(embeddings, schema=EMBEDDING_SCHEMA), "fake", "0" * 64)
    return table


def alike_table(rows, has_map):
    """One row for each row given; every 50th has no redundancy, every 70th no spread."""
    n, stream = len(rows), np.random.default_rng(0)
    pictures, which = np.unique(rows["file_name"].to_pylist(), return_inverse=True)
    centres = stream.uniform(0.1, 0.9, (len(pictures), 2))
    xy = np.clip(centres[which] + stream.normal(0, 0.025, (n, 2)), 0, 1).astype(np.float32)
    order = np.lexsort((xy[:, 0], which))  # neighbours in this order share a picture
    place = np.argsort(order)
    steps = np.arange(1, min(NUM_SIMILAR, n - 1) + 1)
    similar = order[(place[:, None] + steps) % n]
    similarity = np.broadcast_to(0.99 - 0.01 * steps, similar.shape)
    redundancy, spread = stream.beta(8, 2, n), stream.beta(2, 5, n)
    nowhere = np.full(n, not has_map)
    columns = [
        rows["target_id"], rows["attempt"],
        pa.array(xy[:, 0], pa.float32(), mask=nowhere), pa.array(xy[:, 1], pa.float32(), mask=nowhere),
        pa.array(redundancy, pa.float32(), mask=np.arange(n) % 50 == 0),
        pa.array(spread, pa.float32(), mask=np.arange(n) % 70 == 0),
        pa.array(list(similar), pa.list_(pa.int32())), pa.array(list(similarity), pa.list_(pa.float32())),
    ]  # fmt: skip
    return pa.table(columns, schema=SCHEMA)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    write_fake_alike(parser.parse_args().folder)
