"""The optimisation loop: targets in, pictures out.

`render_batch` optimises N independent targets in one pass. Weights and optimiser state are stacked (N, ...), statistics
and random streams are per target, so what else is in the batch changes nothing but rounding.

Shapes: N targets, V views per target and update, K features, H = W = 224.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dgn import memory, objectives
from dgn.colours import displayable, from_axes
from dgn.discriminator import Discriminator
from dgn.errors import DgnError
from dgn.generator import PICTURE_PX, Architecture, Weights, generate_batch, initial_weights, prepared
from dgn.moves import affine_maps, move
from dgn.moves import uniforms as draw_uniforms
from dgn.recipes import RISE_UPDATES, Recipe, RenderConfig
from dgn.replay import Replayed, is_out_of_memory
from dgn.targets import Mode, Target

log = logging.getLogger(__name__)

CURVE_POINTS = 64
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class RenderResult:
    """One target's outcome before it is saved and re-scored."""

    target: Target
    picture_3HW: Tensor  # float32 on the CPU, RGB in [0, 1]
    optimised_activation: float  # at the last update, over its moved views
    activation_curve: tuple[float, ...]  # at most 64 points, evenly spread over the updates
    num_updates: int
    seconds: float  # this target's share of its batch

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.picture_3HW.numpy()).all())  # no threads: picture.encode_png


def architecture_of(config: RenderConfig, mode: Mode) -> Architecture:
    """G as a mode's recipe wants it."""
    recipe = config.recipe(mode)
    return Architecture(mode, recipe.width, recipe.has_last_relu)


class _Stream:
    """A target's own random numbers, drawn on the CPU so that every device sees the same."""

    def __init__(self, target: Target):
        self.generator = torch.Generator().manual_seed(target.stream_seed)

    def normal(self, length: int) -> Tensor:
        return torch.randn(length, generator=self.generator)


@dataclass
class _Batch:
    """The state of N targets while they are optimised."""

    architecture: Architecture
    recipe: Recipe
    discriminator: Discriminator
    own: dict[str, Tensor]  # stacked (N, ...), what is optimised
    shared: Weights  # frozen, the decoder's
    wanted: dict[str, Tensor]  # per layer (N, U)
    streams: list[_Stream]
    dtype: torch.dtype

    @classmethod
    def start(
        cls, targets: Sequence[Target], config: RenderConfig, discriminator: Discriminator, decoder: Weights | None
    ) -> _Batch:
        mode = targets[0].mode
        if any(target.mode != mode for target in targets):
            raise ValueError("a batch holds targets of one mode: untrained and pretrained differ in what is optimised")
        architecture, dtype, device = architecture_of(config, mode), DTYPES[config.precision], discriminator.device
        master = torch.float64 if dtype == torch.float64 else torch.float32
        streams = [_Stream(target) for target in targets]
        shared: dict[str, Tensor] = {}
        if mode == "untrained":
            starts = [initial_weights(architecture, stream.generator) for stream in streams]
            own = {name: torch.stack([start[name] for start in starts]) for name in architecture.trainable}
        else:
            if decoder is None:
                raise DgnError("pretrained mode without a decoder: give --decoder FILE")
            shared = {name: tensor.to(device, master) for name, tensor in decoder.items() if name != "alpha"}
            if config.pretrained.contrast is not None:
                gamma_3 = shared[architecture.picture_gamma]
                shared[architecture.picture_gamma] = gamma_3.sign() * gamma_3.new_tensor(config.pretrained.contrast)
            shared = prepared(architecture, shared, dtype, discriminator.is_winograd and device.type == "cpu")
            alpha = torch.ones if config.pretrained.code == "ones" else torch.zeros
            own = {"alpha": alpha(len(targets), architecture.num_features)}
        wanted_layers = tuple(dict.fromkeys(layer for target in targets for layer in target.layers))
        groups = [target.units for target in targets]
        units = discriminator.layout.units
        wanted = {
            layer: objectives.layer_weights(groups, layer, units[layer]).to(device, master) for layer in wanted_layers
        }
        own = {name: _laid_out(tensor.to(device, master)) for name, tensor in own.items()}
        return cls(
            architecture=architecture,
            recipe=config.recipe(mode),
            discriminator=discriminator,
            own={name: tensor.requires_grad_() for name, tensor in own.items()},
            shared=shared,
            wanted=wanted,
            streams=streams,
            dtype=dtype,
        )

    def without(self, is_done_N: Tensor, optimiser: torch.optim.Optimizer) -> tuple[_Batch, torch.optim.Optimizer]:
        """The batch of the other targets, which go on where they are, and its optimiser."""
        keep = ~is_done_N
        own = {name: _laid_out(tensor.detach()[keep]).requires_grad_() for name, tensor in self.own.items()}
        rest = replace(
            self,
            own=own,
            wanted={layer: wanted_NU[keep] for layer, wanted_NU in self.wanted.items()},
            streams=[stream for stream, is_kept in zip(self.streams, keep.tolist(), strict=True) if is_kept],
        )
        fewer = make_optimiser(self.recipe, own)
        if hasattr(optimiser, "steps"):
            fewer.steps = optimiser.steps  # type: ignore[attr-defined]
        for name, variable in own.items():
            state = optimiser.state[self.own[name]]
            fewer.state[variable] = {key: _laid_out(tensor[keep]) for key, tensor in state.items()}
        return rest, fewer

    def features(self, noise_NK: Tensor | None) -> Tensor:
        """f of Eq. 1, (N, K): alpha times the perturbed ones; pretrained, the notebook's ReLU follows. With the
        code of data, the mean code and the perturbed alpha's steps along the directions of each place."""
        alpha_NK = self.own["alpha"]
        if self.recipe.code == "data":
            moved_NK = alpha_NK if noise_NK is None else alpha_NK + self.recipe.noise_sigma * noise_NK
            steps_NCP = self.shared["code.directions"] @ moved_NK.unflatten(1, (self.architecture.feature_channels, -1))
            return self.shared["code.mean"] + steps_NCP.flatten(1)
        # Additive noise on f = 1 and multiplicative noise around 1 are the same formula when f is all ones.
        f_NK = alpha_NK if noise_NK is None else alpha_NK * (1 + self.recipe.noise_sigma * noise_NK)
        return f_NK if self.architecture.mode == "untrained" else f_NK.relu()

    def pictures(self, noise_NK: Tensor | None) -> Tensor:
        """(N, 3, H, W) as D sees them: RGB where [0, 1] is the displayable range."""
        features_NK = self.features(noise_NK).to(self.dtype)
        is_winograd = self.discriminator.is_winograd
        raw_N3HW = generate_batch(self.architecture, self.own, self.shared, features_NK, is_winograd)
        raw_N3HW = raw_N3HW.to(self.own["alpha"].dtype)
        if self.architecture.mode == "pretrained":  # a decoder draws as the photographs came to its autoencoder
            pictures = from_axes(raw_N3HW)
            return pictures.clamp(0, 1) if self.recipe.is_displayable else pictures
        if self.recipe.is_displayable:
            return displayable(raw_N3HW)
        return raw_N3HW * self.discriminator.std_311 + self.discriminator.mean_311

    def draw(self) -> list[Tensor]:
        """The random numbers of one update on the CPU, each target's from its own stream: noise (N, K) and, where there
        are moves, maps (N, V, 2, 3)."""
        noise, uniforms = [], []
        for stream in self.streams:
            noise.append(stream.normal(self.architecture.num_features))
            if self.recipe.num_views:
                uniforms.append(draw_uniforms(self.recipe.num_views, stream.generator))
        return [torch.stack(noise), *([affine_maps(self.recipe.moves, torch.stack(uniforms))] if uniforms else [])]

    def update(
        self, optimiser: torch.optim.Optimizer, noise_NK: Tensor, maps_NV23: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of all targets. Returns the activations and the losses before it, (N,) both."""
        like = self.own["alpha"]
        views = self.pictures(noise_NK.to(like))
        num_views = self.recipe.num_views
        if maps_NV23 is not None:
            views = move(views, maps_NV23.to(like))
        responses = self.discriminator.responses(views, list(self.wanted))
        values = {
            layer: _mean_over_views(objectives.unit_values(r), max(1, num_views)) for layer, r in responses.items()
        }
        objective_N = objectives.objectives(values, self.wanted, wakes_silent_units=self.recipe.wakes_silent_units)
        others_N = objectives.others_sum(values, self.wanted)
        if self.architecture.mode == "untrained":
            regulariser_N = objectives.gamma_regulariser(self.own[self.architecture.picture_gamma])
        else:
            regulariser_N = objectives.alpha_regulariser(self.own["alpha"], self.recipe.penalty_alpha)
        loss_N = objectives.loss(objective_N, others_N, self.recipe.penalty_others, regulariser_N)
        optimiser.zero_grad()
        loss_N.sum().backward()
        optimiser.step()
        optimiser.zero_grad()  # gradients' memory is free for the next pass
        return objectives.activations(values, self.wanted).detach(), loss_N.detach()

    @torch.no_grad()
    def snapshot(self) -> Tensor:
        """The pictures without noise, drawn with their own statistics, RGB in [0, 1], float32: (N, 3, H, W)."""
        pictures = self.pictures(None).float()
        if self.recipe.tone_mapping == "notebook":
            normalised = (pictures - self.discriminator.mean_311) / self.discriminator.std_311
            pictures = stretch_tones(normalised, gamma=0.5 if self.architecture.mode == "untrained" else 1.0)
        return pictures.clamp(0, 1)


def _laid_out(stacked: Tensor) -> Tensor:
    """Stacked variables, or their optimiser's state, with the memory order that the device's convolutions read."""
    if stacked.is_cuda:
        from dgn import stacked as layout  # Triton comes with PyTorch's builds for GPUs alone
    else:
        from dgn import winograd as layout  # type: ignore[no-redef]
    return layout.lay_out(stacked)


def stretch_tones(pictures_N3HW: Tensor, gamma: float) -> Tensor:
    """The notebooks' tone mapping: each picture from its own minimum to its own maximum, to the power of gamma."""
    shifted = pictures_N3HW - pictures_N3HW.amin((1, 2, 3), keepdim=True)
    return (shifted / shifted.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)) ** gamma


def _mean_over_views(values: objectives.UnitValues, num_views: int) -> objectives.UnitValues:
    """(N * V, U) -> (N, U), the mean of a target's views."""
    return objectives.UnitValues(
        values.before_relu.unflatten(0, (-1, num_views)).mean(1),
        values.activation.unflatten(0, (-1, num_views)).mean(1),
    )


@contextmanager
def exact_float32() -> Iterator[None]:
    """float32 means float32: without it cuDNN rounds to TF32, 10 bits of mantissa; bfloat16 is there for speed."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=torch.backends.cudnn.benchmark, allow_tf32=False):
        yield


def make_optimiser(recipe: Recipe, own: dict[str, Tensor]) -> torch.optim.Optimizer:
    """Table 1's optimisers over the stacked variables; both work element by element, so targets stay apart."""
    if recipe.optimiser == "adamax":
        if own["alpha"].is_cuda:
            from dgn.adamax_gpu import Adamax  # Triton comes with PyTorch's builds for GPUs alone
        else:
            from dgn.adamax import Adamax  # type: ignore[assignment]
        return Adamax(own.values(), lr=recipe.learning_rate, betas=(0.9, 0.999), eps=1e-8)
    return torch.optim.SGD(own.values(), lr=recipe.learning_rate, momentum=0.1, nesterov=True)


@memory.kept()
@exact_float32()
def render_batch(
    targets: Sequence[Target],
    config: RenderConfig,
    discriminator: Discriminator,
    decoder: Weights | None = None,
    on_update: Callable[[int, Tensor], None] | None = None,
) -> list[RenderResult]:
    """Optimises N independent targets of one mode in one pass and draws each once at the end.

    Args:
        decoder: the frozen weights of the pretrained G, needed in that mode only.
        on_update: called after every update with its number and the losses before it, (N,) of the targets that are
            still optimised.
    """
    start = time.perf_counter()
    batch = _Batch.start(targets, config, discriminator, decoder)
    recipe, num_targets = batch.recipe, len(targets)
    optimiser = make_optimiser(recipe, batch.own)
    update_batch = _updates(batch, optimiser)
    alive = torch.arange(num_targets, device=discriminator.device)  # those of `targets` that are still optimised
    activations_TN = torch.zeros(recipe.num_updates, num_targets, device=discriminator.device)
    num_updates = [recipe.num_updates] * num_targets
    pictures = torch.empty(num_targets, 3, PICTURE_PX, PICTURE_PX)
    snapshots: list[Tensor] = []
    for update in range(recipe.num_updates):
        activation_N, loss_N = update_batch(*batch.draw())
        activations_TN[update, alive] = activation_N.to(activations_TN)
        if on_update:
            on_update(update, loss_N)
        remaining = recipe.num_updates - 1 - update
        snapshots_left, is_between = divmod(remaining, recipe.updates_per_snapshot)
        if 1 < recipe.num_snapshots > snapshots_left and not is_between:
            snapshots.append(batch.snapshot())
        if recipe.min_rise and remaining and (update + 1) % RISE_UPDATES == 0:
            has_stopped = ~_is_rising(activations_TN[: update + 1, alive], recipe.min_rise)
            if has_stopped.any():
                done = alive[has_stopped].tolist()
                pictures[done] = batch.snapshot()[has_stopped].cpu()
                for n in done:
                    num_updates[n] = update + 1
                alive = alive[~has_stopped]
                if not len(alive):
                    break
                batch, optimiser = batch.without(has_stopped, optimiser)
                update_batch = _updates(batch, optimiser)
    if len(alive):
        last = torch.stack(snapshots).median(0).values if snapshots else batch.snapshot()
        pictures[alive.tolist()] = last.cpu()
    activations_NT = activations_TN.T.cpu()
    seconds = (time.perf_counter() - start) / num_targets
    results = []
    for n, target in enumerate(targets):
        curve = activations_NT[n, _evenly(num_updates[n], CURVE_POINTS)].tolist()
        results.append(RenderResult(target, pictures[n], curve[-1], tuple(curve), num_updates[n], seconds))
    return results


def _updates(batch: _Batch, optimiser: torch.optim.Optimizer) -> Callable[..., tuple[Tensor, ...]]:
    update = partial(batch.update, optimiser)
    device = batch.discriminator.device
    return Replayed(update, device) if device.type == "cuda" else update


def _is_rising(activations_TN: Tensor, min_rise: float) -> Tensor:
    """Whether each target's mean activation over the last updates is above that over as many before by that share."""
    if len(activations_TN) < 2 * RISE_UPDATES:
        return torch.ones_like(activations_TN[0], dtype=torch.bool)
    before_N, now_N = activations_TN[-2 * RISE_UPDATES :].unflatten(0, (2, RISE_UPDATES)).mean(1)
    return (now_N - before_N > min_rise * before_N.abs()) | (before_N <= 0)  # a silent unit may still wake


def render_targets(
    targets: Sequence[Target],
    config: RenderConfig,
    discriminator: Discriminator,
    decoder: Weights | None = None,
    batch_size: int = 8,
    on_halved: Callable[[int], None] = lambda batch_size: None,
    on_update: Callable[[int, Tensor], None] | None = None,
) -> Iterator[list[RenderResult]]:
    """Renders any number of targets of one mode, batch by batch. Out of memory halves the batch and goes on.

    Args:
        on_halved: called with the batch size that is left, so that a caller can begin with it next time.
        on_update: as `render_batch` calls it, batch by batch.
    """
    pending = list(targets)
    while pending:
        batch = pending[:batch_size]
        try:
            results = render_batch(batch, config, discriminator, decoder, on_update)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or len(batch) == 1:
                raise
            batch_size = len(batch) // 2
            on_halved(batch_size)
        else:
            yield results
            del pending[: len(batch)]
            continue
        # Outside the handler, so that the traceback no longer holds the tensors of the failed batch.
        gc.collect()
        if discriminator.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("out of memory with %d targets at once: going on with %d", len(batch), batch_size)


def _evenly(count: int, at_most: int) -> list[int]:
    """At most so many of range(count), evenly spread, the last one included."""
    points = min(count, at_most)
    return [round((i + 1) * count / points) - 1 for i in range(points)]
