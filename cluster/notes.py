"""Writes failure notes in the background, so that a store that is away holds up neither the scheduling nor the end."""

from __future__ import annotations

import logging
import traceback
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from dgn.errors import DgnError
from dgn.runs.run import Run
from dgn.text import in_one_line

log = logging.getLogger("dgn")

LAST_NOTES_S = 20.0  # for the last notes to be written


class FailureNotes:
    """The notes under failures/ of one run."""

    def __init__(self, run: Run):
        self.run = run
        self._writer = ThreadPoolExecutor(1, "notes")
        self._unwritten: list[Future[None]] = []

    def add(self, shard: int, attempt: str, error: BaseException, **details: Any) -> None:
        """Notes a failed attempt at a shard, with the error's traceback and `details`."""
        details["traceback"] = "".join(traceback.format_exception(error))
        self._unwritten = [note for note in self._unwritten if not note.done()]
        self._unwritten.append(self._writer.submit(self._write, shard, attempt, in_one_line(error), details))

    def _write(self, shard: int, attempt: str, error: str, details: dict[str, Any]) -> None:
        try:
            self.run.note_failure(shard, attempt, error, details)
        except DgnError as unwritten:  # notes are only read by people; the shard is tried again in any case
            log.warning("the failure of shard %06d could not be noted: %s", shard, in_one_line(unwritten))

    def close(self) -> None:
        """Gives the last notes a little time, and drops the rest."""
        wait(self._unwritten, LAST_NOTES_S)
        self._unwritten.clear()  # a second `close` would wait for cancelled notes in vain
        self._writer.shutdown(wait=False, cancel_futures=True)
