"""Joining the cluster that a job runs on, or starting Ray on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import ray
from ray._private import ray_constants
from ray.exceptions import RayError

from dgn.errors import DgnError
from dgn.text import in_one_line

KNOCK_S = 10.0


@contextmanager
def until_done() -> Iterator[None]:
    """Leaves the cluster that `connect` joined within. Ray prints what it has to say before that, not after dgn's last
    line."""
    was_connected = ray.is_initialized()
    try:
        yield
    finally:
        if not was_connected:
            ray.shutdown()


def connect(log_format: Literal["text", "json"] = "text") -> None:
    """Joins the cluster that RAY_ADDRESS or the job names, or starts Ray on this machine, on loopback.

    With `json`, this process and all workers log one JSON object a line, with Ray's job, node and actor beside ours.

    Raises: DgnError if RAY_ADDRESS leads nowhere, or Ray does not start.
    """
    if ray.is_initialized():
        return
    # These come from attempts that the end of a run cuts off. Other errors are reported with their answers.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _start(log_format)
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's handler prints its stack and aborts


def _start(log_format: Literal["text", "json"]) -> None:
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
    else:
        arguments = {"configure_logging": False, "log_to_driver": False, **arguments}
        # By default Ray joins whatever cluster was last started here, and listens to other machines: it replaces even
        # 127.0.0.1 by the address that they reach, unless it believes that the system has no clusters, as on macOS.
        ray_constants.ENABLE_RAY_CLUSTER = False
        # By default Ray begins with a process for each core. No worker of ours can use one: theirs have an environment.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        # Ray says at every start that it asks for tokens, and how to stop that. Nobody who starts a run wants to know.
        logging.getLogger("ray._private.authentication.authentication_token_setup").addFilter(_is_not_the_token_notice)
        try:
            ray.init(address="local", include_dashboard=False, **arguments)
        except Exception as error:  # Ray raises nothing more specific if its processes do not answer in time
            raise DgnError(
                f"Ray does not start on this machine: {in_one_line(error)}; try again while less else is running"
            ) from error


def _is_not_the_token_notice(record: logging.LogRecord) -> bool:
    return "authentication is enabled" not in record.getMessage()


def _knock(address: str) -> None:
    """Raises: OSError if nothing listens at HOST:PORT, where Ray itself would wait for more than a minute."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()
