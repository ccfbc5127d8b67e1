"""SIGINT (Ctrl-C) and SIGTERM end a command within a second and with one line, also while a library is busy."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

ADVICE = "dgn: interrupted; repeat the command to continue (dgn pretrain --recipe paper: with --resume)"
ANSWER_S = 0.6  # for Python to notice the signal; some libraries take longer before they return to it
END_S = 3.0  # from then on, for the command to save what it has and end
STDERR = 2

before_exit: list[Callable[[], None]] = []  # called when the process ends at once

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ended_by: int | None = None
_ends_at_once = False
_has_said = False


def listen() -> None:
    """From now on these signals raise KeyboardInterrupt in the main thread, so that the command ends in order.

    Python raises it only between its own instructions, and a call into a library can last for seconds. So a thread also
    waits for signals, through the wakeup descriptor, and ends the process if the main thread takes too long.
    """
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, writer), name="interrupts", daemon=True).start()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_stop_listening)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Within, a signal ends the process without an exception, for code that is not made for one."""
    global _ends_at_once
    _ends_at_once = True
    try:
        yield
    finally:
        _ends_at_once = False


def is_ending() -> bool:
    """Whether such a signal came."""
    return _ended_by is not None


def end_at_once() -> NoReturn:
    """Ends the process, which is interrupted and has nothing left to save."""
    try:
        for end in before_exit:
            with suppress(Exception):
                end()
        # Not with `print`: the main thread may be printing. Nor to a pipe that is full, which nobody may ever read.
        if not _has_said and select.select([], [STDERR], [], 0)[1]:
            os.write(STDERR, f"{ADVICE}\n".encode())
    finally:
        os._exit(_exit_code())


def say_interrupted() -> int:
    """Says so, and returns the exit code."""
    global _has_said
    _has_said = True
    print(ADVICE, file=sys.stderr, flush=True)
    return _exit_code()


def _exit_code() -> int:
    return 128 + (_ended_by or signal.SIGINT)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _ended_by
    is_second = is_ending()
    _ended_by = _ended_by or number
    if is_second or _ends_at_once or _is_importing(frame):
        end_at_once()
    raise KeyboardInterrupt


def _watch(reader: socket.socket, writer: socket.socket) -> None:
    """Waits for signals; `writer` is only kept open."""
    global _ended_by
    if hasattr(signal, "pthread_sigmask"):  # so that the main thread gets them, and its waiting ends
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    while True:
        number = reader.recv(1)[0]
        if number not in _SIGNALS:
            continue
        time.sleep(ANSWER_S)
        if is_ending():
            time.sleep(END_S)
        if signal.getsignal(number) is _interrupt:  # otherwise somebody else answers, such as the gallery's server
            _ended_by = _ended_by or number
            end_at_once()


def _stop_listening() -> None:
    """In a forked process, whose signals are not the command's."""
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported. A library that tries an optional import might swallow KeyboardInterrupt."""
    while frame:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
