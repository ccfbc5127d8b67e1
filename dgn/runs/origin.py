"""What a run was made from: its target list and its network's weights, checked against its fingerprint."""

from __future__ import annotations

from pathlib import Path

from dgn.errors import DgnError, WeightsMissing
from dgn.networks.tracing import layers_of
from dgn.networks.weights import NetworkWeights, load_weights
from dgn.runs.info import RunInfo
from dgn.runs.plan import Plan, make_plan
from dgn.runs.run import Run


def own_plan(run: Run, info: RunInfo) -> Plan:
    """The run's targets. Raises: DgnError if its settings give other targets than it was started with."""
    config = info.run_config
    plan = make_plan(config, layers_of(config.discriminator))
    is_same_size = (plan.num_targets, plan.num_shards) == (info.num_targets, info.num_shards)
    if not is_same_size or plan.targets_sha256() != info.fingerprint["targets_sha256"]:
        raise DgnError(f"{run.store.url}: the settings in run.json do not give its own target list; it was edited")
    return plan


def own_weights(info: RunInfo, given: str | None, flag: str = "--weights") -> NetworkWeights:
    """The weights that made the run's pictures: those of its settings, or `given` if they moved.

    Args:
        flag: the one that `given` came from, for messages.

    Raises: WeightsMissing; DgnError for another file.
    """
    config = info.run_config
    path = given or config.weights
    try:
        weights = load_weights(config.discriminator, Path(path) if path else None)
    except WeightsMissing as error:
        raise WeightsMissing(
            f"cannot load the network that made these pictures: {error}; give its file with {flag} FILE"
        ) from error
    if weights.sha256 != info.fingerprint["weights_sha256"]:
        raise DgnError(f"{weights.source} is not the weights file of this run: give it with {flag} FILE")
    return weights
