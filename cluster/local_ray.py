"""Ray on this machine alone: no more of it than a run needs, so that it starts in half the time and ends in a third.

Left out are the server of Ray's web interface, the autoscaler's monitor and the one that passes workers' logs on (Ray
2.60 waits for the first at the start, and up to a second for each at the end). Ray lets nobody leave them out by name.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest.mock import patch

import ray
from ray._private import node, ray_constants

from dgn import interrupts
from dgn.cluster.environment import WORKER_ENVIRONMENT
from dgn.errors import DgnError
from dgn.text import in_one_line

DAEMONS = ("gcs_server", "raylet")
LEFT_OUT = ("start_api_server", "start_monitor", "start_log_monitor")  # methods of Ray's node


def start(arguments: dict[str, Any], preload: str, num_warm: int) -> None:
    """Starts Ray on loopback. Its worker processes have the environment of workers, without being asked for it.

    Args:
        arguments: for `ray.init`.
        preload: a module that worker processes import when they start.
        num_warm: how many worker processes start immediately, and import while this process does other work. It also
            limits how many start at the same time later.

    Raises: DgnError if Ray does not start.
    """
    # By default Ray joins whatever cluster was last started here, and listens to other machines: it replaces even
    # 127.0.0.1 by the address that they reach, unless it believes that the system has no clusters, as on macOS.
    ray_constants.ENABLE_RAY_CLUSTER = False
    # Ray says at every start that it asks for tokens, and how to stop that. Nobody who starts a run wants to know.
    logging.getLogger("ray._private.authentication.authentication_token_setup").addFilter(_is_not_the_token_notice)
    # Ray's own processes get the environment of workers too, which costs them nothing that was measured.
    environment = {**WORKER_ENVIRONMENT, "RAY_prestart_worker_first_driver": str(int(bool(num_warm)))}
    environment |= {"RAY_preload_python_modules": preload} if preload else {}
    # How many processes start at a time, also later, is how many Ray starts beforehand.
    environment |= {"RAY_worker_maximum_startup_concurrency": str(num_warm)} if num_warm else {}
    with ExitStack() as patches, _set(environment):
        for name in LEFT_OUT:
            patches.enter_context(patch.object(node.Node, name, lambda *_, **__: None))
        try:
            ray.init(address="local", include_dashboard=False, **arguments)
        except Exception as error:  # Ray raises nothing more specific if its processes do not answer in time
            raise DgnError(
                f"Ray does not start on this machine: {in_one_line(error)}; try again while less else is running"
            ) from error


def kill() -> None:
    """Ends this process's Ray and its workers at once, also while it starts."""
    import psutil  # Ray ships it; it can be imported only after Ray

    for daemon in psutil.Process().children():
        with suppress(psutil.Error):  # it has ended
            if daemon.name() in DAEMONS:
                daemon.suspend()  # or it could start another process meanwhile
                for process in [*daemon.children(recursive=True), daemon]:
                    with suppress(psutil.Error):
                        process.kill()


interrupts.before_exit.append(kill)


@contextmanager
def _set(environment: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process for a while, one by one: Ray's threads may read others at any time. What a person has
    set for Ray stays."""
    before = {name: os.environ.get(name) for name in environment if not (name[:4] == "RAY_" and name in os.environ)}
    os.environ.update({name: environment[name] for name in before})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _is_not_the_token_notice(record: logging.LogRecord) -> bool:
    return "authentication is enabled" not in record.getMessage()
