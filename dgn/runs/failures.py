"""Summaries of a run's failed attempts, by cause and by host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dgn.runs.statistics import MOST_CHARS, MOST_S


@dataclass
class Fault:
    """The failed attempts with one cause, or on one host."""

    num_attempts: int = 0
    shards: set[int] = field(default_factory=set)
    others: Counter[str] = field(default_factory=Counter)  # hosts by count for a cause, causes by count for a host
    device_s: float = 0.0
    example: str = ""  # the last attempt's error


@dataclass
class Faults:
    """The notes under failures/, summed up."""

    overall: Fault = field(default_factory=Fault)
    by_cause: dict[str, Fault] = field(default_factory=dict)
    by_host: dict[str, Fault] = field(default_factory=dict)


def faults(notes: Iterable[dict[str, Any]]) -> Faults:
    found = Faults()
    for note in notes:
        cause, host = (str(note.get(name) or "unknown") for name in ("cause", "host"))
        kept = (
            (found.overall, cause),
            (found.by_cause.setdefault(cause, Fault()), host),
            (found.by_host.setdefault(host, Fault()), cause),
        )
        seconds = note.get("seconds")
        device_s = float(seconds) if isinstance(seconds, int | float) and 0 <= seconds <= MOST_S else 0.0
        for fault, other in kept:
            fault.num_attempts += 1
            fault.shards.add(note["shard"])
            fault.others[other] += 1
            fault.device_s += device_s
            fault.example = str(note["error"])[:MOST_CHARS]
    return found


def most_frequent_first(by_name: dict[str, Fault]) -> Sequence[tuple[str, Fault]]:
    return sorted(by_name.items(), key=lambda item: (-item[1].num_attempts, item[0]))
