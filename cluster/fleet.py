"""The cluster's machines: how many workers fit, which are leaving or gone, whether they share the run's folder."""

from __future__ import annotations

import logging
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from dgn.cluster.rules import WORKER_BYTES, Workers
from dgn.engine import engine_for
from dgn.errors import DgnError, StoreError
from dgn.runs.layout import sha256
from dgn.runs.stores import open_store
from dgn.runs.stores.base import HIDDEN
from dgn.runs.stores.local import LocalStore
from dgn.text import A_BUCKET, in_one_line

log = logging.getLogger("dgn")
BYTES_A_WEIGHT = 6.0  # in float32 and bfloat16, for code that gets copies; other workers share the weights
LOOK_S = 120.0  # for a machine to answer a question, including the start of its first worker process
GPU_SHARE = 0.001  # of a GPU, for a process that asks what it is; without any Ray hides the GPU


def machines() -> list[dict[str, Any]]:
    """The cluster's machines that are alive, as `ray.nodes()` describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def choose_workers(
    asked: tuple[int, int] | None,
    gpus_each: float | None,
    bytes_each: float = 1.0,
    num_shards: float = math.inf,
) -> Workers:
    """Workers for the present machines: one per GPU or, without GPUs, as many as have a core and memory of their own.

    Several workers of one thread finish more pictures than one worker of several threads (docs/performance.md).

    Args:
        asked: the smallest and the largest number of workers. Ray does not say what an autoscaler may start, so to
            count on future machines give both `asked` and `gpus_each`.
        bytes_each: memory of a worker on a CPU, see `worker_bytes`; by default there is always enough.
        num_shards: workers that would have none leave their cores to the others.

    Raises: DgnError if `gpus_each` exceeds every machine's GPUs and no machine can come, or if no machine is present
        and the flags leave something open.
    """
    resources = [node["Resources"] for node in machines()]
    largest = max((machine.get("GPU", 0.0) for machine in resources), default=0.0)
    to_come = "with an autoscaler say what it may start, for instance --workers 0-8 --gpus-per-worker 1"
    may_grow = asked is not None and bool(os.environ.get("RAY_ADDRESS"))  # a Ray of our own is this machine alone
    if gpus_each is not None and gpus_each > largest and not may_grow:
        has = f"no machine of the cluster has more than {largest:g} GPUs" if largest else "the cluster has no GPU"
        raise DgnError(f"--gpus-per-worker {gpus_each:g}: {has}; leave it out, or {to_come}")
    is_unsaid = gpus_each is None or not may_grow
    if gpus_each is None:
        gpus_each = 1.0 if largest else 0.0
    if not num_places(Workers(0, gpus_each, 1.0)) and is_unsaid:
        raise DgnError(f"no machine of the cluster takes work now: {to_come}")
    cpus_each = 1.0 if gpus_each else _cpus_each(resources, asked, bytes_each, num_shards)
    room = num_places(Workers(0, gpus_each, cpus_each))
    at_least, at_most = asked or (room, room)
    return Workers(at_most, gpus_each, cpus_each, at_least, is_asked=asked is not None)


def choose_trainers(asked: int | None) -> Workers:
    """Workers for a training: as many as are asked for, or one per GPU, or without GPUs one per machine.

    Raises: DgnError for more workers than GPUs, or if no machine takes work now.
    """
    num_gpus = num_places(Workers(0, 1.0, 1.0))
    if num_gpus and asked and asked > num_gpus:
        raise DgnError(f"--workers {asked}: the cluster has {num_gpus} GPUs, one for each worker")
    num_devices = num_gpus or sum(node["Resources"].get("CPU", 0.0) >= 1 for node in machines())
    if not num_devices:
        raise DgnError("no machine of the cluster takes work now: repeat the command once one has joined (ray status)")
    return Workers(asked or num_devices, 1.0 if num_gpus else 0.0, 1.0)


def _cpus_each(
    resources: list[dict[str, float]], asked: tuple[int, int] | None, bytes_each: float, num_shards: float
) -> float:
    """The same for all workers, because Ray chooses their machines. Who asks for a number answers for the memory."""
    computing = [machine for machine in resources if machine.get("CPU", 0.0) >= 1]
    if not computing:
        return 1.0
    smallest = min(machine["CPU"] for machine in computing)
    num_workers = asked[1] if asked else num_shards
    each = max(1.0, smallest // math.ceil(min(num_workers / len(computing), smallest)))
    if not asked:
        rooms = [max(1.0, machine.get("memory", 0.0) // bytes_each) for machine in computing]
        for_memory = max(machine["CPU"] / room for machine, room in zip(computing, rooms, strict=True))
        each = max(each, math.ceil(for_memory))  # a machine with fewer cores gets no worker then
    return each


def worker_bytes(state: Mapping[str, Tensor]) -> float:
    """About the memory that a worker takes on a CPU at its peak, for a network with these weights."""
    return WORKER_BYTES + BYTES_A_WEIGHT * sum(tensor.numel() for tensor in state.values())


def num_places(workers: Workers) -> int:
    """How many workers fit on the present machines: as many as there are shares of GPUs or, without GPUs, of cores."""
    resources = [node["Resources"] for node in machines()]
    if workers.gpus_each:
        return sum(int(machine.get("GPU", 0.0) / workers.gpus_each) for machine in resources)
    return sum(int(machine.get("CPU", 0.0) / workers.cpus_each) for machine in resources)


def gpus_have_bfloat16() -> bool:
    """Whether the GPUs of all present machines multiply bfloat16 in hardware (Ampere and later), as a process on each
    machine finds out. A machine that does not answer counts as one that has not, and a warning says so."""
    asked = {}
    for node in machines():
        if node["Resources"].get("GPU"):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            reference = _has_bfloat16.options(scheduling_strategy=there, num_gpus=GPU_SHARE).remote()
            asked[reference] = node["NodeManagerAddress"]
    if asked:
        ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_S)
    answers = []
    for reference, address in asked.items():
        try:
            answers.append(ray.get(reference, timeout=0))
        except RayError as error:
            log.warning(
                "%s does not say whether its GPU has bfloat16 in hardware (%s): float32 is taken", address,
                in_one_line(error) or f"no answer in {LOOK_S:.0f} s",
            )  # fmt: skip
            answers.append(False)
    return all(answers)


@ray.remote(num_cpus=0, max_retries=0)
def _has_bfloat16() -> bool:
    return engine_for().has_bfloat16


def leaving() -> set[str]:
    """Ids of nodes being drained, after a spot notice or by a person."""
    try:
        from ray._private.state import state

        return set(state.get_draining_nodes())
    except (ImportError, AttributeError, RayError) as error:  # Ray has no public interface for this
        _warn_once(f"cannot find out which machines are leaving ({error}): their shards will count as lost")
        return set()


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def is_gone(node_id: str) -> bool:
    """Whether Ray considers a node dead, or does not know it."""
    return node_id not in {node["NodeID"] for node in machines()}


def check_shared(store: LocalStore) -> None:
    """Checks that every machine that may hold a worker can read a file written here, next to the run; deletes it.

    Raises: StoreError if a machine cannot.
    """
    existing = next(parent for parent in (store.root, *store.root.parents) if parent.exists())
    beside = LocalStore(str(existing))
    key = f"{HIDDEN}shared-{uuid.uuid4().hex}"
    if not _others():
        return
    beside.write(key, key.encode())
    try:
        for address, seen in _on_other_machines(beside.url, key):
            if seen != key.encode():
                raise StoreError(
                    f"{store.url} is not shared: the machine {address} does not see what this machine writes there; "
                    f"give {A_BUCKET}, or a folder of a network file system that all machines mount"
                )
    finally:
        beside.delete(key)


def check_seen(store: LocalStore, key: str) -> None:
    """Checks that every machine that may hold a worker reads a file as this one does. Raises: StoreError."""
    expected = sha256(store.read(key))
    for address, seen in _on_other_machines(store.url, key):
        if seen is None or sha256(seen) != expected:
            raise StoreError(
                f"{store.url} is not shared: the machine {address} does not see its {key}; give {A_BUCKET}, or "
                "a folder of a network file system that all machines mount"
            )


def _others() -> list[dict[str, Any]]:
    """The machines that may hold a worker, without this one."""
    here = ray.get_runtime_context().get_node_id()
    return [node for node in machines() if node["NodeID"] != here and node["Resources"].keys() & {"CPU", "GPU"}]


def _on_other_machines(url: str, key: str) -> Iterator[tuple[str, bytes | None]]:
    """What each machine that may hold a worker, other than this one, reads under a key; None for nothing.

    Raises: StoreError for a machine that does not answer.
    """
    looks = {}
    for node in _others():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        reference = _read.options(scheduling_strategy=there).remote(url, key)
        looks[reference] = (node["NodeManagerAddress"], node["NodeID"])
    if looks:
        ray.wait(list(looks), num_returns=len(looks), timeout=LOOK_S)
    for reference, (address, node_id) in looks.items():
        try:
            yield address, ray.get(reference, timeout=0)
        except GetTimeoutError as error:
            raise StoreError(f"{address} did not answer for {LOOK_S:.0f} s whether it sees {url}") from error
        except RayError as error:
            if is_gone(node_id):  # a worker on its successor will check
                continue
            raise StoreError(f"{address} cannot say whether it sees {url}: {in_one_line(error)}") from error


@ray.remote(num_cpus=0, max_retries=0)
def _read(url: str, key: str) -> bytes | None:
    try:
        return open_store(url).read(key)
    except (StoreError, OSError):
        return None
