"""The exception tree. Whatever a person can cause is a DgnError; commands print it as one line and exit with code 2."""


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


class ShardFailed(RuntimeError):
    """Shards ended in quarantine; the run is incomplete and the same line finishes it."""
