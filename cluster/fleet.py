"""The machines, as Ray tells of them: joining the cluster, how many workers it holds, who is leaving or gone."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import uuid
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import ray
from ray._private import ray_constants
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.storage import HIDDEN, LocalStore, open_store
from dgn.errors import DgnError, StoreError, in_one_line

log = logging.getLogger("dgn")

OLD_GPUS = ("K80", "P4", "P100", "V100", "T4")
KNOCK_S = 10.0
LOOK_S = 120.0  # for a machine to look into the run's folder, the start of its first worker process included


@dataclass(frozen=True)
class Workers:
    """How many actors a run may hold, and what each holds of its machine.

    With less work than workers, all but `at_least` and one spare are given back. `is_asked`: a person said how many,
    else they follow the machines.
    """

    at_most: int
    gpus_each: float
    cpus_each: float
    at_least: int = 1
    is_asked: bool = True


def connect(log_format: Literal["text", "json"] = "text") -> None:
    """Joins the cluster that RAY_ADDRESS or the job names, or starts Ray on this machine, on loopback.

    With `json`, this process and all workers log one JSON object a line, with Ray's job, node and actor beside ours.

    Raises: DgnError where RAY_ADDRESS leads nowhere, or Ray does not start.
    """
    if ray.is_initialized():
        return
    # Of attempts that a run's end cuts off; whoever waits for an answer tells its error.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _init(log_format)
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own prints its stack and leaves by an abort


def _init(log_format: Literal["text", "json"]) -> None:
    arguments: dict[str, Any] = {"logging_level": logging.WARNING}
    if log_format == "json":
        arguments = {"logging_config": ray.LoggingConfig(encoding="JSON"), "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        try:
            _knock(os.environ["RAY_ADDRESS"])
            ray.init(address="auto", **arguments)
        except (OSError, RayError, RuntimeError, ValueError) as error:
            address = os.environ["RAY_ADDRESS"]
            raise DgnError(
                f"no Ray cluster at RAY_ADDRESS={address}: {in_one_line(error)}; mend or unset it"
            ) from error
    else:
        arguments = {"configure_logging": False, "log_to_driver": False, **arguments}
        # Ray's default joins whatever cluster was last started here, and is reached from other machines: even 127.0.0.1
        # it takes for the address that they reach, unless it believes, as on macOS, that the system has no clusters.
        ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            ray.init(address="local", include_dashboard=False, **arguments)
        except Exception as error:  # which is what Ray raises where its processes do not answer in time
            raise DgnError(
                f"Ray does not start on this machine: {in_one_line(error)}; try again, with less beside it"
            ) from error


def _knock(address: str) -> None:
    """Raises: OSError where nobody listens at HOST:PORT, for which Ray itself would wait a minute and more."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()


def machines() -> list[dict[str, Any]]:
    """The cluster's living machines, as `ray.nodes()` describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def choose_workers(asked: tuple[int, int] | None, gpus_each: float | None) -> Workers:
    """Workers for the machines at hand: one per GPU, or, without any GPU, one per machine. `asked`: the fewest and the
    most. Ray does not tell what an autoscaler may start, so for machines that are not there yet both have to be given.

    Raises: DgnError where more is asked of GPUs than there are and none can come, or where no machine is there and too
        little was asked.
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
    at_hand = num_places(Workers(0, gpus_each, 1.0))
    if not at_hand and is_unsaid:
        raise DgnError(f"no machine of the cluster takes work now: {to_come}")
    at_least, at_most = asked or (at_hand, at_hand)
    cpus_each = 1.0
    if not gpus_each and at_hand:
        smallest = min(machine["CPU"] for machine in resources if machine.get("CPU", 0.0))
        cpus_each = max(1.0, smallest // math.ceil(at_most / at_hand))
    return Workers(at_most, gpus_each, cpus_each, at_least, is_asked=asked is not None)


def num_places(workers: Workers) -> int:
    """How many workers the living machines have room for: one per share of a GPU, or one per machine."""
    resources = [node["Resources"] for node in machines()]
    if workers.gpus_each:
        return sum(int(machine.get("GPU", 0.0) / workers.gpus_each) for machine in resources)
    return sum(machine.get("CPU", 0.0) >= workers.cpus_each for machine in resources)


def has_old_gpus() -> bool:
    """Whether a machine's GPU does not multiply bfloat16 in hardware (before Ampere), as Ray names its model."""
    models = [name for name in ray.cluster_resources() if name.startswith("accelerator_type:")]
    return any(name.removeprefix("accelerator_type:") in OLD_GPUS for name in models)


def leaving() -> set[str]:
    """Ids of nodes that are being drained: after a spot notice, or by a person."""
    try:
        from ray._private.state import state

        return set(state.get_draining_nodes())
    except (ImportError, AttributeError, RayError) as error:  # no public interface tells this
        _warn_once(f"cannot ask which machines are leaving ({error}): their shards are taken for lost when they go")
        return set()


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def is_gone(node_id: str) -> bool:
    """Whether Ray holds a node for dead, or does not know it."""
    return node_id not in {node["NodeID"] for node in machines()}


def check_shared(store: LocalStore) -> None:
    """Every machine that may hold a worker reads what this one has written beside the run, and nothing is left there.

    Raises: StoreError where one does not.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [n for n in machines() if n["NodeID"] != here and n["Resources"].keys() & {"CPU", "GPU"}]
    if not others:
        return
    existing = next(parent for parent in (store.root, *store.root.parents) if parent.exists())
    beside = LocalStore(str(existing))
    key = f"{HIDDEN}shared-{uuid.uuid4().hex}"
    beside.write(key, key.encode())
    try:
        looks = {}
        for node in others:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            reference = _read.options(scheduling_strategy=there).remote(beside.url, key)
            looks[reference] = (node["NodeManagerAddress"], node["NodeID"])
        ray.wait(list(looks), num_returns=len(looks), timeout=LOOK_S)
        for reference, (address, node_id) in looks.items():
            try:
                seen = ray.get(reference, timeout=0)
            except GetTimeoutError as error:
                raise StoreError(f"{address} did not answer for {LOOK_S:.0f} s whether it sees {store.url}") from error
            except RayError as error:
                if is_gone(node_id):  # while it was asked; a worker of what comes in its place looks for itself
                    continue
                raise StoreError(f"{address} cannot say whether it sees {store.url}: {in_one_line(error)}") from error
            if seen != key.encode():
                raise StoreError(
                    f"{store.url} is not shared: the machine {address} does not see what this one writes there; "
                    "give s3://bucket/prefix, or a folder of a network file system that all machines mount"
                )
    finally:
        beside.delete(key)


@ray.remote(num_cpus=0, max_retries=0)
def _read(url: str, key: str) -> bytes | None:
    try:
        return open_store(url).read(key)
    except (StoreError, OSError):
        return None
