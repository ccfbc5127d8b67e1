"""A run of three layers for questions, and the answers by Python alone, over every row."""

import math

from dgn.runs.index import update_index
from dgn.runs.layout import metadata_key
from dgn.runs.query import BEST_FIRST
from tests.helpers.fake_runs import write_fake_run


def write_queried(folder, are_flat=False):
    """416 rows of three layers in 52 shards, all but four of them indexed."""
    targets = ["filters:conv1_1", "filters:conv3_1:0-63", "classes:0-79"]
    run = write_fake_run(str(folder), targets=targets, seeds=2, shard_size=8, are_flat=are_flat)
    away = [folder / metadata_key(shard) for shard in (0, 5, 20, 51)]
    for path in away:
        path.rename(path.with_suffix(".away"))
    update_index(run)
    for path in away:
        path.with_suffix(".away").rename(path)
    return folder


def fulfils(row, column, sign, value):
    found = row[column]
    if found is None:
        return sign == "!="
    if sign == "~":
        return value.lower() in found.lower()
    return {
        "=": found == value, "!=": found != value, ">": found > value, ">=": found >= value, "<": found < value,
        "<=": found <= value,
    }[sign]  # fmt: skip


def best_first(rows, by):
    def key(row):
        value = row[by]
        by_activation = math.inf if row["activation"] is None else -row["activation"]
        sign = -1 if BEST_FIRST[by] == "descending" else 1
        return (value is None, 0 if value is None else sign * value, by_activation, row["target_id"])

    return sorted(rows, key=key)
