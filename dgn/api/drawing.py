"""`dgn.render` and `dgn.layers`: pictures in this process, without Ray and without files, and what can be drawn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from dgn.api.pictures import Picture, Pictures
from dgn.cost.batches import choose_batch_size
from dgn.engine import engine_for
from dgn.errors import DgnError
from dgn.method.architecture import Weights
from dgn.method.batch import recipe_for
from dgn.method.engine import Engine
from dgn.method.loop import Observer, render_targets
from dgn.method.precision import DTYPES
from dgn.method.recipes import RenderConfig
from dgn.networks.drawable import drawable
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.layers import Layers
from dgn.networks.network import Network
from dgn.networks.registry import network_named
from dgn.networks.specs import parse_targets
from dgn.networks.weights import load_weights
from dgn.pictures.codec import encode_png
from dgn.pictures.scoring import score_results
from dgn.runs.config import RunConfig
from dgn.runs.decoders import needed_decoder
from dgn.runs.rows import Provenance, make_row
from dgn.runs.validation import validated
from dgn.targets import TargetBlock

log = logging.getLogger("dgn")

RUN_COLUMNS = ("run_id", "shard", "attempt", "file_name")  # without a value outside a run


def layers(network: str | Network | nn.Module) -> Layers:
    """The layers of a network, their units, and the labels of its classes.

    VGG's layers have their usual names (conv1_1 ... conv5_3, fc6, fc7, fc8). All others have their module's dotted
    name; a module that runs twice has `NAME@1` and `NAME@2`. Layers whose output has no axis of units, or no row per
    picture, are left out.

    Raises: DgnError for an unknown network, or one that does not run as it was described.
    """
    found = _network(network).layers
    return replace(found, units=dict(found.units), aliases=dict(found.aliases))  # the cached one stays as it is


def render(
    network: str | Network | nn.Module,
    targets: str | Sequence[str],
    *,
    modes: str | Sequence[str] | None = None,
    preset: str = "standard",
    weights: str | Path | None = None,
    decoder: str | Path | None = None,
    generator: nn.Module | Callable[[], nn.Module] | None = None,
    seed: int = 0,
    seeds: int = 1,
    updates: int | None = None,
    views: int | None = None,
    stop_early: float | None = None,
    tone_mapping: str = "none",
    width: float | None = None,
    precision: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Pictures:
    """Draws what units of a network have learned, in this process, and returns the pictures.

    The process keeps its random state, thread counts, memory settings and PyTorch defaults. For thousands of targets,
    several devices, or pictures in files, use the command `dgn render`: with the same settings, precision and device it
    gives the same pictures, up to rounding.

    Args:
        network: the name of a classifier, see `dgn.known_networks()`, or `timm:NAME`; or one of your own, as
            `dgn.Network(module, size=..., mean=..., std=...)`. It stays as it is.
        targets: what to draw, one text or several: `classes:9,30`, `classes:mosque`, `filters:conv5_1:0-31`,
            `raw:features.0.0:0-31`, `mix:classes:9+30`, `group:conv5_1:3*0.5+17`, `direction:conv5_1:FILE.npy`, `all`.
        modes: `untrained`, `pretrained`, or both; by default untrained, but both for the classes in `all`.
        preset: `paper`, `standard` or `draft`.
        weights: a file of the network's weights, as any trainer saves them; by default the one that comes with dgn, a
            download, or what a network of your own holds.
        decoder: for the pretrained mode, a file from `dgn pretrain`, "photographs" or "drawings".
        generator: instead of a decoder, a module of your own from codes to pictures, such as a GAN's, or a function
            that returns it. Its attribute `code_shape` is the shape of one code, whose numbers have mean 0 and
            deviation 1; its pictures are (N, 3, H, H), RGB in [0, 1]. It stays as it is.
        seed: the first seed.
        seeds: pictures per target, with successive seeds.
        updates: updates per picture; by default the preset's.
        views: randomly moved views of the picture per update, or 0; by default the preset's.
        stop_early: stops a picture when 20 updates raise its activation by less than this share.
        tone_mapping: `none`, or `notebook`: each picture stretched to its own range, for preset paper.
        width: factor on the generator's numbers of channels; by default the preset's.
        precision: `float32`, `bfloat16`, or `auto`: bfloat16 if the device's hardware has it.
        batch_size: targets that the device optimises at a time; "auto" takes a few on a CPU, and on a GPU as many as
            fit into its memory.
        device: such as "cpu" or "cuda:1"; by default the first GPU, or the CPU if there is none.
        progress: whether to show a progress bar.

    Returns: one picture per target, 8 bits, RGB or grey, of the size that the network sees, in order of mode, depth of
        the layer, and as they were named. Failed targets are included, with their status.

    Raises: DgnError for wrong settings, TargetError for targets that the network does not have, WeightsMissing and
        WeightsMismatch for the network's weights and the decoder.
    """
    given = {
        "targets": targets, "modes": modes, "preset": preset, "seed": seed, "seeds": seeds,
        "weights": weights and str(weights), "decoder": decoder and str(decoder), "updates": updates, "views": views,
        "stop_early": stop_early, "tone_mapping": tone_mapping, "width": width, "precision": precision,
        "batch_size": batch_size,
    }  # fmt: skip
    config = validated(RunConfig, given)
    engine = engine_for(device)
    with _own_defaults(engine):
        return _render(_network(network), config, generator, engine, progress)


def _network(network: str | Network | nn.Module) -> Network:
    """The network as dgn knows it. Raises: DgnError for an unknown name, or a module without a description."""
    if isinstance(network, Network):
        return network
    if isinstance(network, str):
        return network_named(network)
    if isinstance(network, nn.Module):
        raise DgnError(
            f"{type(network).__name__} does not say what pictures it wants: give dgn.Network(module, size=224, "
            "mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), labels=[...]) with its own numbers"
        )
    raise DgnError(
        f"network is a {type(network).__name__}: expected a name, see dgn.known_networks(), or a dgn.Network"
    )


def _render(
    network: Network,
    config: RunConfig,
    generator: nn.Module | Callable[[], nn.Module] | None,
    engine: Engine,
    progress: bool,
) -> Pictures:
    with_file = load_weights(network, Path(config.weights)) if config.weights else None
    network = with_file.network if with_file else network
    blocks = parse_targets(config.targets, network.layers, config.modes, config.seed, config.seeds)
    decoder = needed_decoder((block.mode for block in blocks), config, generator)
    if decoder is None and config.decoder is not None:
        raise DgnError("a decoder is given, but no target is in the pretrained mode: give modes='pretrained' too")
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if engine.has_bfloat16 else "float32"
    network_weights = with_file or load_weights(network)
    load, layers = partial(FrozenNetwork, network_weights, engine), tuple({block.layer: None for block in blocks})
    classifier = drawable(load, layers, DTYPES[precision], or_float32=config.precision == "auto")
    precision = "float32" if classifier.dtype == torch.float32 else "bfloat16"
    render_config = config.render_config(precision, decoder)
    scorer = classifier if precision == "float32" else load()
    for remark in network_weights.remarks:
        log.info("%s: %s", network_weights.source, remark)
    if classifier.remark:
        log.warning("%s", classifier.remark)
    num_updates = sum(
        len(block) * recipe_for(block.target(0), render_config, classifier).num_updates for block in blocks
    )
    drawing = decoder.on(engine.device) if decoder else None
    with _updates_shown(num_updates, progress) as on_update:
        return Pictures(
            picture
            for block in blocks
            for picture in _draw(block, render_config, classifier, scorer, drawing, config.batch_size, on_update)
        )


def _draw(
    block: TargetBlock,
    config: RenderConfig,
    classifier: FrozenNetwork,
    scorer: FrozenNetwork,
    decoder: Weights | nn.Module | None,
    batch_size: int | Literal["auto"],
    on_update: Observer,
) -> Iterator[Picture]:
    """The pictures of one layer and mode."""
    size = batch_size
    if size == "auto":
        size = choose_batch_size(config, block.mode, classifier, block.layer, decoder=decoder)
    origin = Provenance(run_id="", shard=0, attempt="", device=classifier.engine.name)
    for results in render_targets(list(block), config, classifier, decoder, size, on_update=on_update):
        for scored in score_results(results, scorer):
            png = None if scored.picture_HW3 is None else encode_png(scored.picture_HW3)
            row = make_row(scored, classifier.layers, origin, png) | dict.fromkeys(RUN_COLUMNS)
            yield Picture(row, None if png is None else partial(bytes, png))


@contextmanager
def _own_defaults(engine: Engine) -> Iterator[None]:
    """PyTorch as a new process has it, whatever the caller has changed, and the engine's device as the current one."""
    dtype = torch.get_default_dtype()
    with (
        torch.inference_mode(False), torch.enable_grad(), torch.autocast(engine.device.type, enabled=False),
        torch.device("cpu"), engine.selected(),
    ):  # fmt: skip
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            engine.release_memory()


@contextmanager
def _updates_shown(num_updates: int, is_shown: bool) -> Iterator[Observer]:
    """Yields an observer of updates: a progress bar in a notebook or on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if console.is_jupyter and is_shown:  # where rich would need ipywidgets
        from IPython.display import ProgressBar

        shown = ProgressBar(num_updates)
        shown.display()

        def advance_in_notebook(_: int, losses_N: torch.Tensor) -> None:
            shown.progress += len(losses_N)

        yield advance_in_notebook
        return
    with Progress(console=console, transient=True, disable=not (is_shown and console.is_terminal)) as bar:
        task = bar.add_task("updates", total=num_updates)

        def advance(_: int, losses_N: torch.Tensor) -> None:
            bar.advance(task, len(losses_N))

        yield advance
