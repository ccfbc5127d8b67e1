"""From settings to a running job: everything that can be wrong is checked before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dgn.cluster import connection, fleet
from dgn.cluster.context import RunContext
from dgn.cluster.driver import Driver
from dgn.cluster.precision import resolve_precision
from dgn.cluster.progress import Progress
from dgn.cluster.rules import Workers
from dgn.cluster.start import start_ray
from dgn.cost.tuned import Tuned, load_tuned, tuned_path
from dgn.engine import engine_for
from dgn.errors import DgnError
from dgn.method.precision import DTYPES
from dgn.method.recipes import RenderConfig
from dgn.networks.directions import with_absolute_path
from dgn.networks.drawable import drawable, without_weights
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.own_code import is_code
from dgn.networks.weights import NetworkWeights
from dgn.runs.config import RunConfig
from dgn.runs.decoders import SHIPPED_DECODERS, Decoder, needed_decoder
from dgn.runs.extensions import FailedAgain, MoreTargets, extended, with_extensions
from dgn.runs.index import forget_missing
from dgn.runs.info import Extension, RunInfo
from dgn.runs.networks import describe_network, labels_sha256, load_network
from dgn.runs.origin import as_begun, kept_render_config
from dgn.runs.plan import Plan, fingerprint, make_plan
from dgn.runs.run import Run
from dgn.runs.stores import LocalStore, open_store
from dgn.text import plural

log = logging.getLogger("dgn")


@connection.until_done()
def launch(
    url: str, config: RunConfig, observe: Callable[[Progress], None], addition: MoreTargets | FailedAgain | None = None
) -> Progress:
    """Renders every target that the run at `url` does not hold yet, and returns how far the run is then.

    Args:
        addition: targets to add to the run before.

    Raises: DgnError for bad input, before anything is written. Incomplete if the job could not finish.
    """
    job = _Job.checked(url, config, addition)
    tuned = load_tuned(tuned_path())
    job.run.store.check(must_write=True)
    if job.begun:  # with other settings it is refused before Ray starts, and a whole one needs no Ray
        started = job.start()
        if not job.extension and job.run.committed(job.plan.num_shards).count == job.plan.num_shards:
            forget_missing(job.run)
            return Progress.of_whole(started.info)
    else:
        job.config.render_config("float32", job.decoder)  # raises for a decoder that does not fit the preset
    log.info("%s in %s", plural(job.plan.num_targets, "picture"), plural(job.plan.num_shards, "shard"))
    start_ray(config, job.plan.num_shards)
    bytes_each = fleet.worker_bytes(job.weights.state)
    workers = fleet.choose_workers(config.workers_range, config.gpus_per_worker, bytes_each, job.plan.num_shards)
    if isinstance(job.run.store, LocalStore):
        fleet.check_shared(job.run.store)
    if not job.begun:
        job.settle(workers.gpus_each > 0, tuned)
        started = job.start()
    info = job.run.extend(started.info, job.extension) if job.extension else started.info
    batch_size = None if config.batch_size == "auto" else config.batch_size
    context = RunContext(
        job.run.store.url, info.run_id, job.plan, started.render, started.fingerprint, batch_size, tuned,
        is_packed=bool(job.config.pack),
    )  # fmt: skip
    forget_missing(job.run)
    weights = job.weights if workers.gpus_each else job.weights.for_workers(DTYPES[started.render.precision])
    return Driver(job.run, info, context, weights, job.decoder, workers, observe).loop()


@connection.until_done()
def planned_workers(config: RunConfig, num_shards: int) -> Workers:
    """The workers that settings give on the cluster as it is now, if memory suffices.

    Raises: DgnError if the cluster cannot give them, or there is none.
    """
    connection.connect(config.log_format)
    return fleet.choose_workers(config.workers_range, config.gpus_per_worker, num_shards=num_shards)


@dataclass(frozen=True)
class _Started:
    """A run that is there."""

    info: RunInfo
    render: RenderConfig
    fingerprint: dict[str, Any]


@dataclass
class _Job:
    """What is to be rendered.

    Args:
        begun: the run as it is there; None for a new one.
        own_plan: of the settings.
        plan: with what was added to the run, and is now.
        load: makes a network for trials.
    """

    config: RunConfig
    run: Run
    begun: RunInfo | None
    weights: NetworkWeights
    decoder: Decoder | None
    own_plan: Plan
    plan: Plan
    extension: Extension | None
    load: Callable[[torch.dtype], FrozenNetwork]

    @classmethod
    def checked(cls, url: str, config: RunConfig, addition: MoreTargets | FailedAgain | None) -> _Job:
        """Finds all that can be wrong without a cluster, and writes nothing. Raises: DgnError."""
        config = _with_absolute_paths(config)
        weights = load_network(config) if config.weights else None
        network = weights.network if weights else describe_network(config)
        config.render_config("float32")  # raises for settings that contradict each other
        plan = own_plan = make_plan(config, network.layers)
        store = open_store(url)
        begun = Run(store.impatient()).begun()
        extension = None
        if begun:
            config = as_begun(config, begun)
            plan = own_plan = make_plan(config, network.layers)
            if plan.targets_sha256() == begun.fingerprint["targets_sha256"]:  # otherwise `start` says what differs
                plan = with_extensions(plan, begun.extensions, network.layers)
                extension = addition.after(plan, Run(store), network.layers) if addition else None
        if begun and extension:
            plan = extended(plan, extension, network.layers)
            is_pretrained = any(block.mode == "pretrained" for block in plan.blocks)
            if is_pretrained and begun.fingerprint.get("decoder_sha256") is None:
                raise DgnError(
                    f"{store.url} began without pretrained targets, so without a decoder, and no such target can be "
                    "added: give --modes untrained, or another folder"
                )
        decoder = needed_decoder((block.mode for block in plan.blocks), config)
        weights = weights or load_network(config)
        load: Callable[[torch.dtype], FrozenNetwork] = partial(
            without_weights, weights.network
        )  # cheap, if it is large
        if is_code(config.discriminator):  # which nobody has tried
            load = partial(FrozenNetwork, weights, engine_for("cpu"))
        drawable(load, plan.layers, DTYPES["float32" if config.precision == "auto" else config.precision])
        for remark in weights.remarks:
            log.info("%s: %s", weights.source, remark)
        return cls(config, Run(store), begun, weights, decoder, own_plan, plan, extension, load)

    def settle(self, has_gpus: bool, tuned: Mapping[str, Tuned]) -> None:
        """What `auto` means for a new run on these machines."""
        size = self.own_plan.shard_size
        if has_gpus and self.config.shard_size == "auto":  # they take large batches
            size = self.config.largest_shard
        self.own_plan = self.plan = Plan(self.plan.blocks, size)
        resolved = resolve_precision(self.config.precision, has_gpus, tuned)
        if self.config.precision == "auto" and resolved == "bfloat16":
            dtype = drawable(self.load, self.plan.layers, torch.bfloat16, or_float32=True).dtype
            resolved = "bfloat16" if dtype == torch.bfloat16 else "float32"
        self.config = self.config.model_copy(update={"shard_size": size, "precision": resolved})

    def start(self) -> _Started:
        """Creates the run, or finds it as these settings want it. Raises: PlanMismatch, DgnError."""
        render = kept_render_config(self.config, self.begun, self.decoder)
        network, labels = self.weights.network, labels_sha256(self.weights.network, self.config)
        decoder_sha256 = self.decoder.sha256 if self.decoder else None
        identity = fingerprint(self.own_plan, render, network, self.weights.sha256, decoder_sha256, labels)
        numbers = self.own_plan.num_targets, self.own_plan.num_shards
        info = self.run.start(identity, self.config, *numbers, network.layers)
        if info.extensions != (self.begun.extensions if self.begun else ()):
            raise DgnError(f"{self.run.store.url} got other targets at the same time: repeat the command")
        return _Started(info, render, identity)


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
