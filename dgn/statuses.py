"""The outcomes of targets. A module without imports, because every room uses it."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """How a target ended. A failure is recorded in its row, and never takes its batch down."""

    OK = "ok"
    SUPPRESSED = "suppressed"
    NOT_CONVERGED = "not_converged"
    DEAD = "dead"
    NONFINITE = "nonfinite"

    @property
    def is_failure(self) -> bool:
        """Whether the picture is not what was asked for."""
        return self not in (Status.OK, Status.SUPPRESSED)

    @property
    def meaning(self) -> str:
        """When a picture has this status; `pictures.scoring.outcome` decides."""
        return _MEANINGS[self]


_MEANINGS = {
    Status.OK: "none of the others",
    Status.SUPPRESSED: "a target of negative weights alone, whose units are in sum below zero before the ReLU",
    Status.NOT_CONVERGED: "a class that the network does not rank first (sigmoid: of a probability below one half), an "
    "activation below its start, or negative weights whose units are in sum not below zero",
    Status.DEAD: "the unit is silent on the saved picture; a class: its value is not above 0, and it does not rank "
    "first (sigmoid: its value is 0)",
    Status.NONFINITE: "the picture has NaN or infinite values and was not saved",
}
