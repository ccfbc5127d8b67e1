"""The optimisation loop: targets in, pictures out.

`update` is the whole method: draw, move, respond, penalise, step. `render_batch` repeats it for N targets and draws
each picture at the end; `render_targets` does that for any number of targets.

Shapes: N targets, V views per target and update, K features, T updates, H = W the classifier's size, or half of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn

from dgn.method import objectives
from dgn.method.architecture import Weights
from dgn.method.batch import Batch, Classifier, first_seen_px, start_batch
from dgn.method.memory import in_batches
from dgn.method.moves import move, recolour
from dgn.method.precision import exact_float32
from dgn.method.recipes import RISE_UPDATES, RenderConfig
from dgn.targets import Target

CURVE_POINTS = 64

Observer = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class RenderResult:
    """One target's outcome, before it is saved and scored."""

    target: Target
    picture_3HW: Tensor  # RGB in [0, 1], float32, on the CPU
    optimised_activation: float  # at the last update, averaged over its moved views
    activation_curve: tuple[float, ...]  # at most 64 points, evenly spread over the updates
    num_updates: int
    seconds: float  # this target's share of its batch's time

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.picture_3HW.numpy()).all())  # NumPy: see `pictures.codec.quantised`


def update(batch: Batch, optimiser: torch.optim.Optimizer, *random: Tensor) -> tuple[Tensor, Tensor]:
    """One step of all targets. Returns the activations and the losses before it, (N,) both.

    Args:
        random: what `Batch.random` drew.
    """
    optimiser.zero_grad()  # of an update whose recording as a CUDA graph failed
    if batch.classifier.engine.sees_targets_apart:  # so only one target's maps are in memory at a time
        each = [_gradients(batch.only(n), *(drawn[n : n + 1] for drawn in random)) for n in range(len(batch.streams))]
        activation_N, loss_N = (torch.cat(values) for values in zip(*each, strict=True))
    else:
        activation_N, loss_N = _gradients(batch, *random)
    optimiser.step()
    optimiser.zero_grad()  # frees the gradients' memory for the next update
    return activation_N, loss_N


def _gradients(
    batch: Batch, noise_NK: Tensor, maps_NV23: Tensor | None = None, colours_NV23: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Adds to the variables' gradients. Returns the activations and the losses, (N,) both."""
    like, recipe = batch.own["alpha"], batch.recipe
    views = batch.pictures(noise_NK.to(like), batch.seen_px)
    if maps_NV23 is not None:
        views = move(views, maps_NV23.to(like))
    if colours_NV23 is not None:
        views = recolour(views, colours_NV23.to(like))
    responses = batch.classifier.responses(views, list(batch.wanted))
    values = {
        layer: objectives.mean_over_views(objectives.unit_values(response), max(1, recipe.num_views))
        for layer, response in responses.items()
    }
    if batch.measure == "sum":
        activation_N = objectives.activations(values, batch.wanted)
        objective_N = objectives.objectives(values, batch.wanted, wakes_silent_units=recipe.wakes_silent_units)
        others_N = objectives.others_sum(values, batch.wanted)
    else:  # a direction combines all units of its layer, so no others are left to penalise
        [(layer, direction_NU)] = batch.wanted.items()
        activation_N = objective_N = objectives.along(values[layer].before_relu, direction_NU, batch.measure)
        others_N = torch.zeros_like(objective_N)
    if batch.architecture.mode == "untrained":
        regulariser_N = objectives.gamma_regulariser(batch.own[batch.architecture.picture_gamma])
    else:
        regulariser_N = objectives.alpha_regulariser(batch.own["alpha"], recipe.penalty_alpha)
    loss_N = objectives.loss(objective_N, others_N, recipe.penalty_others, regulariser_N)
    loss_N.sum().backward()
    return activation_N.detach(), loss_N.detach()


class Optimisation:
    """Targets that are being optimised: the batch, its optimiser, and how many updates were made."""

    def __init__(self, batch: Batch):
        self.batch, self.optimiser = batch, batch.optimiser()
        self.num_half = batch.recipe.num_half
        self.num_done = 0
        self._record()

    def _record(self) -> None:
        self._update = self.batch.classifier.engine.repeated(partial(update, self.batch, self.optimiser))

    def step(self) -> tuple[Tensor, Tensor]:
        """The next update of all targets, see `update`."""
        recipe, classifier = self.batch.recipe, self.batch.classifier
        if self.num_done == self.num_half > 0:
            self.batch.seen_px = classifier.size_px
            self._record()
        if recipe.last_rate_share != 1:
            classifier.engine.set_learning_rate(self.optimiser, recipe.rate(self.num_done))
        self.num_done += 1
        activation_N, loss_N = self._update(*self.batch.random())
        return activation_N, loss_N

    def drop(self, is_done_N: Tensor) -> None:
        """Leaves the finished targets out."""
        self.batch, self.optimiser = self.batch.without(is_done_N, self.optimiser)
        self._record()


@exact_float32()
def render_batch(
    targets: Sequence[Target],
    config: RenderConfig,
    classifier: Classifier,
    decoder: Weights | nn.Module | None = None,
    on_update: Observer | None = None,
) -> list[RenderResult]:
    """Optimises N independent targets of one mode together and draws each once at the end.

    Args:
        decoder: see `start_batch`.
        on_update: called after every update with its number and the losses before it, (N,) of the targets that are
            still being optimised.

    Raises: DgnError for the pretrained mode without a decoder.
    """
    start = time.perf_counter()
    optimisation = Optimisation(start_batch(targets, config, classifier, decoder))
    recipe, num_targets, device = optimisation.batch.recipe, len(targets), classifier.engine.device
    alive = torch.arange(num_targets, device=device)  # targets that are still being optimised
    activations_TN = torch.zeros(recipe.num_updates, num_targets, device=device)
    num_updates = [recipe.num_updates] * num_targets
    pictures = torch.empty(num_targets, 3, classifier.size_px, classifier.size_px)
    snapshots: list[Tensor] = []
    for i in range(recipe.num_updates):
        activation_N, loss_N = optimisation.step()
        activations_TN[i, alive] = activation_N.to(activations_TN)
        if on_update:
            on_update(i, loss_N)
        remaining = recipe.num_updates - 1 - i
        snapshots_left, is_between = divmod(remaining, recipe.updates_per_snapshot)
        if 1 < recipe.num_snapshots > snapshots_left and not is_between:
            snapshots.append(optimisation.batch.snapshot())
        num_whole = i + 1 - optimisation.num_half  # updates that looked at pictures of the whole size
        if recipe.min_rise and remaining and num_whole > 0 and num_whole % RISE_UPDATES == 0:
            has_stopped = ~_is_rising(activations_TN[optimisation.num_half : i + 1, alive], recipe.min_rise)
            if has_stopped.any():
                done = alive[has_stopped].tolist()
                pictures[done] = optimisation.batch.snapshot()[has_stopped].cpu()
                for n in done:
                    num_updates[n] = i + 1
                alive = alive[~has_stopped]
                if not len(alive):
                    break
                optimisation.drop(has_stopped)
    if len(alive):
        last = torch.stack(snapshots).median(0).values if snapshots else optimisation.batch.snapshot()
        pictures[alive.tolist()] = last.cpu()
    activations_NT = activations_TN.T.cpu()
    seconds = (time.perf_counter() - start) / num_targets
    results = []
    for n, target in enumerate(targets):
        curve = activations_NT[n, _evenly(num_updates[n], CURVE_POINTS)].tolist()
        results.append(RenderResult(target, pictures[n], curve[-1], tuple(curve), num_updates[n], seconds))
    return results


def render_targets(
    targets: Sequence[Target],
    config: RenderConfig,
    classifier: Classifier,
    decoder: Weights | nn.Module | None = None,
    batch_size: int = 8,
    on_halved: Callable[[int], None] = lambda batch_size: None,
    on_update: Observer | None = None,
) -> Iterator[list[RenderResult]]:
    """Renders any number of targets of one mode, batch by batch. A batch has consecutive targets that are sought at
    the same size; one that runs out of memory is halved.

    Args:
        on_halved: called with the batch size that is left, so that the caller can start with it next time.
        on_update: as for `render_batch`.
    """

    def render(batch: Sequence[Target]) -> list[RenderResult]:
        return render_batch(batch, config, classifier, decoder, on_update)

    def halve(size: int) -> None:
        nonlocal batch_size
        batch_size = size
        on_halved(size)

    for _, alike in groupby(targets, lambda target: first_seen_px(target, config, classifier)):
        yield from in_batches(list(alike), batch_size, render, classifier.engine, halve)


def _is_rising(activations_TN: Tensor, min_rise: float) -> Tensor:
    """Whether each target's mean activation over the last updates exceeds that over as many before by that share."""
    if len(activations_TN) < 2 * RISE_UPDATES:
        return torch.ones_like(activations_TN[0], dtype=torch.bool)
    before_N, now_N = activations_TN[-2 * RISE_UPDATES :].unflatten(0, (2, RISE_UPDATES)).mean(1)
    return (now_N - before_N > min_rise * before_N.abs()) | (before_N <= 0)  # a silent unit may still wake


def _evenly(count: int, at_most: int) -> list[int]:
    """At most so many of range(count), evenly spread, the last one included."""
    points = min(count, at_most)
    return [round((i + 1) * count / points) - 1 for i in range(points)]
