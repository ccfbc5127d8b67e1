"""Whether workers are alive and their work advances: what the driver asks them beside rendering."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from dgn.cluster.events import Attempt, StepsCounted


class VitalSigns:
    """Of all workers that became ready."""

    def __init__(self) -> None:
        self._pulses: dict[Any, Attempt] = {}  # by their answer's reference
        self._lives: dict[Any, int] = {}

    def watch(self, worker: int, handle: Any) -> None:
        """Calls a worker in a way that only its death ends: one without a shard has no other call that could fail."""
        self._lives[handle.__ray_call__.options(concurrency_group="life").remote(_live)] = worker

    def ask_steps(self, attempt: Attempt, handle: Any) -> None:
        self._pulses[handle.pulse.remote()] = attempt

    def steps(self) -> Iterator[StepsCounted]:
        """The answers since the last call."""
        for reference in _ended(self._pulses):
            steps = None
            with contextlib.suppress(RayError):  # the worker died, as its shard's own answer will say
                steps = ray.get(reference)
            yield StepsCounted(self._pulses.pop(reference), steps)

    def deaths(self) -> Iterator[tuple[int, RayError]]:
        """The workers that died since the last call, also those that the driver ended."""
        for reference in _ended(self._lives):
            try:
                ray.get(reference)
            except RayError as error:
                yield self._lives[reference], error
            del self._lives[reference]


def _live(worker: object) -> None:
    threading.Event().wait()


def _ended(calls: dict[Any, Any]) -> list[Any]:
    return ray.wait(list(calls), num_returns=len(calls), timeout=0)[0] if calls else []
