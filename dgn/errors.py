"""The exception tree. Whatever a person can mend is a DgnError; commands print it as one line and exit with code 2,
with 1 where the run is damaged."""

import json

NOT_JSON = (json.JSONDecodeError, UnicodeDecodeError, RecursionError)  # and not ValueError, which a DgnError is too


class DgnError(ValueError):
    """What a person can mend: the message says what came, what was expected and what to do."""


class TargetError(DgnError):
    """A target specification names something that the network does not have, or names two things."""


class WeightsMissing(DgnError):
    """No weights to be had: no file given, none shipped, none downloadable."""


class WeightsMismatch(DgnError):
    """The file is no weights file, or one of another architecture."""


class PlanMismatch(DgnError):
    """The run folder holds a run of another configuration."""


class StoreError(DgnError):
    """The run's folder or bucket cannot be used as it is."""


class RunDamaged(StoreError):
    """A file of a run is missing or not as it was written; commands exit with code 1."""


class Shortened(StoreError):
    """A file is shorter than it was when it was written."""


class ShardFailed(RuntimeError):
    """Work that could not be finished, shards in quarantine for instance; the same line, or --resume, goes on."""


def printable(text: object) -> str:
    """The text with control characters as escapes: what others wrote must not steer a terminal or add lines."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def in_one_line(error: BaseException) -> str:
    """The cause in one line, without the envelope that Ray puts around it."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"[:300]
