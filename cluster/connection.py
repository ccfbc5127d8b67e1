"""Joining the cluster that a job runs on, or starting Ray on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from unittest.mock import patch

import ray
from ray._private import utils as ray_utils
from ray.exceptions import RayError

from dgn import interrupts
from dgn.cluster import local_ray
from dgn.cluster.environment import WORKER_ENVIRONMENT
from dgn.errors import DgnError
from dgn.text import in_one_line

KNOCK_S = 10.0

_is_own = False  # whether this process started Ray
_depth = 0  # of blocks of `until_done`


@contextmanager
def until_done() -> Iterator[None]:
    """Leaves the cluster that `connect` joined within, at the end of the outermost block. Ray prints what it has to say
    before that, not after dgn's last line."""
    global _depth, _is_own
    was_connected = is_connected()
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not (_depth or was_connected):
            if _is_own and interrupts.is_ending():
                interrupts.end_at_once()  # what there was to save is saved, and Ray takes its time
            _is_own = False
            ray.shutdown()


def is_connected() -> bool:
    """Whether this process has joined a cluster, or started Ray."""
    return bool(ray.is_initialized())


def connect(log_format: Literal["text", "json"] = "text", preload: str = "", num_warm: int = 0) -> None:
    """Joins the cluster that RAY_ADDRESS or the job names, or starts Ray on this machine, on loopback.

    With `json`, this process and all workers log one JSON object a line, with Ray's job, node and actor beside ours.

    Args:
        preload: a module that worker processes import when they start, if Ray is started here.
        num_warm: how many worker processes start immediately then, and at most at the same time later.

    Raises: DgnError if RAY_ADDRESS leads nowhere, or Ray does not start.
    """
    if is_connected():
        return
    # These come from attempts that the end of a run cuts off. Other errors are reported with their answers.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # Ray 2.60 is not made for an exception in the middle of its start, and its own handler raises one.
        with interrupts.ending_at_once(), patch.object(ray_utils, "set_sigterm_handler", lambda handler: None):
            _start(log_format, preload, num_warm)
    finally:
        # Ray's C++ part has a handler that prints its stack and aborts. While that part starts, for 0.4 s, it stays.
        signal.signal(signal.SIGTERM, on_sigterm)


def _start(log_format: Literal["text", "json"], preload: str, num_warm: int) -> None:
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
                f"no Ray cluster at RAY_ADDRESS={address}: {in_one_line(error)}; correct or unset it"
            ) from error
        return
    local_ray.start({"configure_logging": False, "log_to_driver": False, **arguments}, preload, num_warm)
    global _is_own
    _is_own = True


def workers_runtime_env() -> dict[str, Any]:
    """What Ray has to do for the process of a worker: nothing on a Ray of our own, all of whose processes have it."""
    return {} if _is_own else {"env_vars": WORKER_ENVIRONMENT}


def _knock(address: str) -> None:
    """Raises: OSError if nothing listens at HOST:PORT, where Ray itself would wait for more than a minute."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()
