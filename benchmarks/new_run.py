"""A run for benchmarks that drive it themselves."""

from __future__ import annotations

from dgn.cluster.context import RunContext
from dgn.networks.weights import NetworkWeights, load_weights
from dgn.runs.config import RunConfig
from dgn.runs.info import RunInfo
from dgn.runs.plan import fingerprint, make_plan
from dgn.runs.run import Run
from dgn.runs.stores import open_store


def new_run(url: str, config: RunConfig) -> tuple[Run, RunInfo, RunContext, NetworkWeights]:
    """A run of `config` and what its driver needs: of the embedded classifier, in float32, in batches of a shard."""
    weights = load_weights(config.discriminator)
    plan, render = make_plan(config, weights.network.layers), config.render_config("float32")
    identity = fingerprint(plan, render, weights.network, weights.sha256, None)
    run = Run(open_store(url))
    run.store.check(must_write=True)
    info = run.start(identity, config, plan.num_targets, plan.num_shards)
    return run, info, RunContext(url, info.run_id, plan, render, identity, plan.shard_size), weights
