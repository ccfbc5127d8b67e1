"""What a run was made from: its target list and its network's weights, checked against its fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast

from dgn.errors import DgnError, WeightsMissing
from dgn.method.recipes import RenderConfig
from dgn.networks.network import Network
from dgn.networks.own_code import is_code
from dgn.networks.weights import NetworkWeights
from dgn.runs.config import RunConfig, shown_name
from dgn.runs.info import RunInfo, differences
from dgn.runs.networks import labels_sha256, load_network
from dgn.runs.plan import fingerprint, make_plan
from dgn.runs.run import Run
from dgn.runs.validation import validated

if TYPE_CHECKING:
    from dgn.runs.decoders import Decoder


def own_config(info: RunInfo, given: Mapping[str, str | None], *, draws: bool = False) -> RunConfig:
    """The settings that a run was started with, and where its network's files are now.

    Args:
        given: settings by name; None for those that did not move.
        draws: whether more pictures are drawn with them.

    Raises: DgnError if the run's network, or what draws, is code and was not named again: a run from elsewhere runs
        nothing unasked.
    """
    config = info.run_config
    moved = {name: value for name, value in given.items() if value is not None}
    if is_code(config.discriminator) and "discriminator" not in moved:
        name = info.fingerprint["discriminator"]
        raise DgnError(f"this run's network is code, {name}: to run it, name it again with --discriminator {name}")
    if draws and config.generator and "generator" not in moved:
        name = shown_name(config.generator)
        raise DgnError(f"this run's generator is code, {name}: to run it, name it again with --generator {name}")
    return validated(RunConfig, {**config.model_dump(), **moved})


def as_begun(config: RunConfig, begun: RunInfo) -> RunConfig:
    """Settings with what the run itself chose when it began; the machines may be others now."""
    was: dict[str, Any] = {"shard_size": begun.run_config.largest_shard, "precision": begun.run_config.precision}
    update = {name: was[name] for name in was if getattr(config, name) == "auto"}
    if config.pack is None:
        update["pack"] = begun.run_config.pack
    return config.model_copy(update=update)


def kept_render_config(config: RunConfig, begun: RunInfo | None, decoder: Decoder | None) -> RenderConfig:
    """The numbers of the method, for settings without `auto`. A run keeps those that it began with, whatever its preset
    has become since."""
    precision = cast("Literal['float32', 'bfloat16']", config.precision)
    if begun and begun.run_config.recipe_settings == config.recipe_settings:
        return replace(begun.render_config, precision=precision)
    return config.render_config(precision, decoder)


def compare_settings(run: Run, begun: RunInfo, config: RunConfig, network: Network, decoder: Decoder | None) -> None:
    """Whether a run can be continued with settings, as far as they say without files. Raises: PlanMismatch."""
    config = as_begun(config, begun)
    render, plan = kept_render_config(config, begun, decoder), make_plan(config, network.layers)
    files = {name: begun.fingerprint.get(name) for name in ("weights_sha256", "decoder_sha256", "labels_sha256")}
    run.compare(begun, {**fingerprint(plan, render, network, "", None), **files})


def own_weights(info: RunInfo, config: RunConfig, flags: str = "--{}") -> NetworkWeights:
    """The network that made the run's pictures.

    Args:
        flags: how the flags are written that give files that moved, for messages.

    Raises: WeightsMissing; DgnError for another file, or other labels.
    """
    try:
        weights = load_network(config)
    except WeightsMissing as error:
        raise WeightsMissing(
            f"cannot load the network that made these pictures: {error}; give its file with "
            f"{flags.format('weights')} FILE"
        ) from error
    if weights.sha256 != info.fingerprint["weights_sha256"]:
        raise DgnError(
            f"{weights.source} is not the weights file of this run: give it with {flags.format('weights')} FILE"
        )
    if differing := sorted(differences(info.network, weights.network.description())):
        name, there, here = differing[0]
        raise DgnError(
            f"{weights.network.name} is not the network of this run any more: its {name} is {there} there, {here} here"
        )
    ours = labels_sha256(weights.network, config)
    if info.fingerprint.get("labels_sha256", ours) != ours:  # which earlier versions did not write
        advice = f"give theirs with {flags.format('labels')} FILE" if info.fingerprint["labels_sha256"] else "give none"
        raise DgnError(f"the labels of {weights.network.name} are not those of this run's rows: {advice}")
    return weights
