"""SIGINT (Ctrl-C) and SIGTERM end a command within a second, whatever it does, with one line."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType

ADVICE = "dgn: interrupted; repeat the command to continue (dgn pretrain --recipe paper: with --resume)"
IN_ORDER_S = 0.6  # that an orderly end may take

ending_too: list[Callable[[], None]] = []  # called before the process ends at once

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ended_by: int | None = None
_ends_at_once = False
_said = count()


def listen() -> None:
    """From now on these signals raise KeyboardInterrupt in the main thread, so that the command ends in order.

    Python does that only between steps of its own, and some libraries stay in one for seconds. So a thread, which the
    system itself tells of the signal, ends the process if it is still there after `IN_ORDER_S`.
    """
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    heard, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard, told), name="interrupts", daemon=True).start()


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Within, a signal ends the process without an exception, for code that is not made for one."""
    global _ends_at_once
    _ends_at_once = True
    try:
        yield
    finally:
        _ends_at_once = False


def say_interrupted() -> int:
    """Says so, unless that was done, and returns the exit code."""
    if next(_said) == 0:
        print(ADVICE, file=sys.stderr, flush=True)
    return 128 + (_ended_by or signal.SIGINT)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _ended_by
    is_second = _ended_by is not None
    _ended_by = _ended_by or number
    if is_second or _ends_at_once or _is_importing(frame):
        _end_at_once()
    raise KeyboardInterrupt


def _watch(heard: socket.socket, told: socket.socket) -> None:
    """Waits for signals; `told` is only kept open."""
    global _ended_by
    if hasattr(signal, "pthread_sigmask"):  # so that the main thread gets them, and its waiting ends
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    while True:
        number = heard.recv(1)[0]
        if number not in _SIGNALS:
            continue
        time.sleep(IN_ORDER_S)
        if signal.getsignal(number) is _interrupt:  # otherwise somebody else answers, such as the gallery's server
            _ended_by = _ended_by or number
            _end_at_once()


def _end_at_once() -> None:
    code = say_interrupted()
    for end in ending_too:
        end()
    os._exit(code)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a signal came during an import, where a library may take the exception for a failed import and go on."""
    while frame:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
