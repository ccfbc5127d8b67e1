"""Reading the shards of a run on all machines of a cluster, as Ray tasks."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from dgn.cluster import connection
from dgn.errors import DgnError, Incomplete
from dgn.runs import verifying
from dgn.runs.verifying import Reading, ShardRead
from dgn.text import in_one_line

TASKS_PER_CPU = 2  # under way, so that no core waits for its next task


def read_on_cluster(reading: Reading) -> Iterator[list[ShardRead]]:
    """Begins to read, and gives the answers in order. Ray repeats the tasks of machines that die.

    Raises: StoreError if a machine cannot use the store, or does not share the folder; Incomplete if the cluster loses
        a task for good.
    """
    connection.connect()
    left = reading.tasks()
    most = max(1, round(TASKS_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    return _answers(deque(map(_read.remote, itertools.islice(left, most))), left)


def _answers(under_way: deque[Any], left: Iterator[Reading]) -> Iterator[list[ShardRead]]:
    while under_way:
        answer = _answer(under_way.popleft())
        under_way.extend(map(_read.remote, itertools.islice(left, 1)))
        yield answer


@ray.remote(num_cpus=1)
def _read(reading: Reading) -> list[ShardRead]:
    return verifying.read_shards(reading)


def _answer(reference: Any) -> list[ShardRead]:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, DgnError):
            raise error.cause from None
        raise
    except RayError as error:
        problem = f"the cluster lost a part of the check: {in_one_line(error)}"
        raise Incomplete(f"{problem}; the same command continues") from error
