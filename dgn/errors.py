"""Errors that a person can act on. Each message says what came, what was expected, and what to do.

    DgnError                 bad input; exit code 2
    ├── TargetError          a target that the network does not have
    ├── WeightsMissing       no weights: none given, none shipped, none that could be downloaded
    ├── WeightsMismatch      not a weights file, or one of another architecture
    ├── PlanMismatch         the folder holds a run with other settings
    ├── StoreError           the run's folder or bucket cannot be used
    │   ├── RunDamaged       a file of the run is missing or has changed; exit code 1
    │   └── Truncated        a file is shorter than it was when it was written
    └── Incomplete           the command left work undone, or found the run incomplete; exit code 1

Commands print the message as one line and exit with the error's code.
"""

from __future__ import annotations


class DgnError(Exception):
    """The base of all errors that dgn raises for a person to act on."""

    exit_code = 2


class TargetError(DgnError):
    """A target specification names something that the network does not have, or is ambiguous."""


class WeightsMissing(DgnError):
    """There are no weights: no file was given, dgn ships none, and the download failed."""


class WeightsMismatch(DgnError):
    """The file does not hold weights, or holds those of another architecture."""


class PlanMismatch(DgnError):
    """The folder holds a run that was started with other settings."""


class StoreError(DgnError):
    """The run's folder or bucket cannot be used as it is."""


class RunDamaged(StoreError):
    """A file of the run is missing or is not what was written.

    Args:
        advice: what to do, for commands that end with this error. Those that continue print `problem` alone.
    """

    exit_code = 1

    def __init__(self, problem: str, advice: str = ""):
        super().__init__(f"{problem}; {advice}" if advice else problem)
        self.problem = problem


class Truncated(StoreError):
    """A file is shorter than it was when it was written."""


class Incomplete(DgnError):
    """The command left work undone, or found the run incomplete; the message says what to do."""

    exit_code = 1
