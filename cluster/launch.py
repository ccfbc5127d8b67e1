"""From settings to a running job: everything that can be wrong is checked before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from dgn.cluster import connection, fleet
from dgn.cluster.context import RunContext
from dgn.cluster.driver import Driver
from dgn.cluster.precision import resolve_precision
from dgn.cluster.progress import Progress
from dgn.cost.tuned import load_tuned, tuned_path
from dgn.engine import engine_for
from dgn.method.precision import DTYPES
from dgn.networks.directions import with_absolute_path
from dgn.networks.drawable import drawable, without_weights
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.own_code import is_code
from dgn.runs.config import RunConfig
from dgn.runs.decoders import SHIPPED_DECODERS, needed_decoder
from dgn.runs.index import forget_missing
from dgn.runs.layout import RUN_FILE
from dgn.runs.networks import describe_network, labels_sha256, load_network
from dgn.runs.plan import Plan, fingerprint, make_plan
from dgn.runs.run import Run
from dgn.runs.stores import LocalStore, open_store
from dgn.text import plural

log = logging.getLogger("dgn")


@connection.until_done()
def launch(url: str, config: RunConfig, observe: Callable[[Progress], None]) -> Progress:
    """Renders every target that the run at `url` does not hold yet, and returns how far the run is then.

    Raises: DgnError for bad input, before anything is written. Incomplete if the job could not finish.
    """
    config = _with_absolute_paths(config)
    weights = load_network(config) if config.weights else None
    network = weights.network if weights else describe_network(config)
    plan = make_plan(config, network.layers)
    config.render_config("float32")  # raises for settings that contradict each other
    store = open_store(url)
    decoder = needed_decoder((block.mode for block in plan.blocks), config)
    weights = weights or load_network(config)
    load: Callable[[torch.dtype], FrozenNetwork] = partial(without_weights, weights.network)  # cheap, if it is large
    if is_code(config.discriminator):  # which nobody has tried
        load = partial(FrozenNetwork, weights, engine_for("cpu"))
    drawable(load, plan.layers, DTYPES["float32" if config.precision == "auto" else config.precision])
    for remark in weights.remarks:
        log.info("%s: %s", weights.source, remark)
    tuned = load_tuned(tuned_path())
    store.check(must_write=True)
    run = Run(store)
    begun = run.info() if store.exists(RUN_FILE) else None
    if not begun:
        config.render_config("float32", decoder)  # raises for a decoder that does not fit the preset
    log.info("%s, Ray starts", plural(plan.num_targets, "picture"))
    connection.connect(config.log_format)
    if begun and config.shard_size == "auto":  # the machines may differ from those that the run began on
        plan = Plan(plan.blocks, begun.run_config.largest_shard)
    bytes_each = fleet.worker_bytes(weights.state)
    workers = fleet.choose_workers(config.workers_range, config.gpus_per_worker, bytes_each, plan.num_shards)
    if isinstance(store, LocalStore):
        fleet.check_shared(store)
    if workers.gpus_each and not begun and config.shard_size == "auto":  # they take large batches
        plan = Plan(plan.blocks, config.largest_shard)
    config = config.model_copy(update={"shard_size": plan.shard_size})
    precision: str = config.precision
    if precision == "auto" and begun:
        precision = begun.run_config.precision
    resolved = resolve_precision(precision, workers.gpus_each > 0, tuned)
    if config.precision == "auto" and resolved == "bfloat16":
        dtype = drawable(load, plan.layers, torch.bfloat16, or_float32=not begun).dtype
        resolved = "bfloat16" if dtype == torch.bfloat16 else "float32"
    config = config.model_copy(update={"precision": resolved})
    if begun and begun.run_config.recipe_settings == config.recipe_settings:  # presets change from version to version
        render = replace(begun.render_config, precision=resolved)
    else:
        render = config.render_config(resolved, decoder)
    decoder_sha256, labels = decoder.sha256 if decoder else None, labels_sha256(weights.network, config)
    identity = fingerprint(plan, render, weights.network, weights.sha256, decoder_sha256, labels)
    info = run.start(identity, config, plan.num_targets, plan.num_shards)
    batch_size = None if config.batch_size == "auto" else config.batch_size
    context = RunContext(store.url, info.run_id, plan, render, identity, batch_size, tuned)
    forget_missing(run)
    return Driver(run, info, context, weights, decoder, workers, observe).loop()


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """`dgn resume` may be typed in another folder."""
    paths = {"weights": config.weights, "decoder": config.decoder, "labels": config.labels}
    code = {"discriminator": config.discriminator, "generator": config.generator}
    paths |= {name: place for name, place in code.items() if place and is_code(place) and ".py:" in place}
    if config.decoder in SHIPPED_DECODERS:
        del paths["decoder"]
    local = {name: path for name, path in paths.items() if path and "://" not in path}
    absolute = {name: str(Path(path).expanduser().absolute()) for name, path in local.items()}
    return config.model_copy(update={**absolute, "targets": tuple(map(with_absolute_path, config.targets))})
