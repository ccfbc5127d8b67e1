"""Processes that read a run for this one, forked from a server that has imported what they need.

This module imports next to nothing, so that the server can be started before its caller has imported all it needs.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from typing import TypeVar

from dgn.errors import Incomplete

Piece = TypeVar("Piece")
Answer = TypeVar("Answer")

MOST_PROCESSES = 16  # of about 100 MB each


def start_server() -> None:
    """Starts the server if it is not running. It imports in the background, and ends when this process does."""
    multiprocessing.set_forkserver_preload(["dgn.runs.verifying"])
    resource_tracker.ensure_running()  # before signals are held, because it ends by letting SIGINT through
    # A terminal sends Ctrl-C to all processes. The server and what it forks inherit that they do not hear it.
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)


@contextmanager
def reading(read: Callable[[Piece], Answer], pieces: Iterable[Piece]) -> Iterator[Iterable[Answer]]:
    """Begins to read pieces, in a process for each core, and gives the answers in order.

    Raises: Incomplete if a process is killed.
    """
    start_server()
    num_processes = min(os.cpu_count() or 1, MOST_PROCESSES)
    pool = ProcessPoolExecutor(num_processes, multiprocessing.get_context("forkserver"), _begin)
    try:
        with _signals_held():  # or processes that just start would not find their semaphores
            answers = pool.map(read, pieces)
        yield answers
    except BrokenProcessPool as error:
        raise Incomplete("a process that read the run was killed; the same command continues") from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Signals that come meanwhile are heard afterwards. A mask would not do: libraries' threads take them instead."""
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def _begin() -> None:
    gc.freeze()  # what was imported stays: collections that look at it again and again take a twentieth of the time
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Otherwise a killed parent would leave this process waiting for work."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
