"""The state of N targets while they are optimised together, and their current pictures.

Weights and optimiser state are stacked (N, ...); statistics and random streams belong to one target each. So the other
targets of a batch change nothing about a picture except its rounding.

Shapes: N targets, V views per target and update, K features, U units of a layer, H = W the classifier's size, or half
of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from dgn.errors import DgnError
from dgn.method import moves, objectives
from dgn.method.architecture import Architecture, Weights
from dgn.method.colours import displayable, from_axes, grey
from dgn.method.engine import Engine
from dgn.method.generator import initial_weights
from dgn.method.precision import DTYPES
from dgn.method.recipes import Recipe, RenderConfig
from dgn.method.starts import STARTS, begin_at_photographs
from dgn.targets import Measure, Mode, Target


class Classifier(Protocol):
    """What the method needs from the frozen network; `dgn.networks.frozen.FrozenNetwork` is one."""

    engine: Engine
    size_px: int  # side of the pictures that the network reads
    is_grey: bool
    mean_c11: Tensor  # what the network subtracts from RGB in [0, 1], and divides it by; one number or three
    std_c11: Tensor

    @property
    def units(self) -> Mapping[str, int]:
        """Number of units by layer."""

    def half_px(self, layers: Sequence[str]) -> int | None:
        """Half of `size_px`, if targets in these layers can be sought in such pictures."""

    def responses(self, images_N3HW: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The layers' outputs for RGB in [0, 1], before any activation function that follows them: (N, U, ...)."""


def architecture_of(config: RenderConfig, mode: Mode) -> Architecture:
    """The generator as a mode's recipe asks for it."""
    recipe = config.recipe(mode)
    return Architecture(mode, recipe.width, recipe.has_last_relu, recipe.generator, recipe.code_shape)


@dataclass
class Batch:
    """N targets of one mode."""

    architecture: Architecture
    recipe: Recipe
    classifier: Classifier
    own: dict[str, Tensor]  # stacked (N, ...): what is optimised
    shared: Weights  # frozen: the decoder's weights
    wanted: dict[str, Tensor]  # per layer (N, U)
    streams: list[torch.Generator]  # each target's own, on the CPU so that every device sees the same numbers
    dtype: torch.dtype  # of the generator; own weights are float32 or wider
    seen_px: int  # side at which the classifier sees the pictures
    measure: Measure = "sum"
    generator: nn.Module | None = None  # of the user's: codes (N, *code_shape) -> RGB (N, 3, h, h)

    def features(self, noise_NK: Tensor | None) -> Tensor:
        """The feature vectors f, (N, K). Paper: Eq. 1.

        Recipe code `ones`: alpha times the noise; the notebook's ReLU follows in the pretrained mode. Code `data`: the
        decoder's mean code plus alpha's steps at each of its places, noise added, in deviations of photographs' codes.
        With a limit, steps bend towards it, so that codes stay among photographs'. The codes of a generator of the
        user's have mean 0 and deviation 1.
        """
        alpha_NK = self.own["alpha"]
        if self.recipe.code == "data":
            if (limit := self.recipe.code_limit) is not None:
                alpha_NK = limit * (alpha_NK / limit).tanh()
            moved_NK = alpha_NK if noise_NK is None else alpha_NK + self.recipe.noise_sigma * noise_NK
            if self.generator is not None:
                return moved_NK
            if self.recipe.generator == "windows":
                steps_NK = self.shared["code.deviations"] * moved_NK
            else:
                moved_NCP = moved_NK.unflatten(1, (self.architecture.feature_channels, -1))
                steps_NK = (self.shared["code.directions"] @ moved_NCP).flatten(1)
            return self.shared["code.mean"] + steps_NK
        # With f all ones, the paper's additive noise and its multiplicative noise around 1 are the same formula.
        f_NK = alpha_NK if noise_NK is None else alpha_NK * (1 + self.recipe.noise_sigma * noise_NK)
        return f_NK if self.architecture.mode == "untrained" else f_NK.relu()

    def pictures(self, noise_NK: Tensor | None, px: int) -> Tensor:
        """The pictures with side `px`, (N, 3, px, px): RGB, values in [0, 1] can be displayed. Their channels are equal
        if the classifier sees grey."""
        pictures = self._drawn(noise_NK)
        if px != pictures.shape[-1]:
            pictures = moves.resized(pictures, px)
        return grey(pictures).expand(-1, 3, -1, -1) if self.classifier.is_grey else pictures

    def _drawn(self, noise_NK: Tensor | None) -> Tensor:
        """The generator's pictures in colours, (N, 3, 224, 224), or with the side that the user's draws."""
        features_NK = self.features(noise_NK)
        if self.generator is not None:
            pictures = self.generator(features_NK.unflatten(1, self.architecture.code_shape))
            return pictures.to(features_NK.dtype).clamp(0, 1)
        if self.architecture.convs:  # windows are drawn in full precision
            features_NK = features_NK.to(self.dtype)
        raw_N3HW = self.classifier.engine.draw(self.architecture, self.own, self.shared, features_NK)
        raw_N3HW = raw_N3HW.to(self.own["alpha"].dtype)
        if self.architecture.mode == "pretrained":  # decoders draw along photographs' colour axes
            pictures = from_axes(raw_N3HW)
            return pictures.clamp(0, 1) if self.recipe.is_displayable else pictures
        if self.recipe.is_displayable:
            return displayable(raw_N3HW)
        return raw_N3HW * self.classifier.std_c11 + self.classifier.mean_c11

    @torch.no_grad()
    def snapshot(self) -> Tensor:
        """The pictures without noise, drawn with their own statistics: RGB in [0, 1], float32, (N, 3, H, W)."""
        pictures = self.pictures(None, self.classifier.size_px).float()
        if self.recipe.tone_mapping == "notebook":
            normalised = (pictures - self.classifier.mean_c11) / self.classifier.std_c11
            pictures = stretch_tones(normalised, gamma=0.5 if self.architecture.mode == "untrained" else 1.0)
        return pictures.clamp(0, 1)

    def random(self) -> list[Tensor]:
        """The random numbers of one update, on the CPU, each target's from its own stream: noise (N, K); if there are
        moved views, their maps (N, V, 2, 3); and if these differ in colour, the colours' maps (N, V, 2, 3)."""
        noise, uniforms = [], []
        for stream in self.streams:
            noise.append(torch.randn(self.architecture.num_features, generator=stream))
            if self.recipe.num_views:
                uniforms.append(moves.draw_uniforms(self.recipe.moves, self.recipe.num_views, stream))
        drawn = [torch.stack(noise)]
        if uniforms:
            uniforms_NVR = torch.stack(uniforms)
            drawn.append(moves.affine_maps(self.recipe.moves, uniforms_NVR))
            if self.recipe.moves.has_colours:
                drawn.append(moves.colour_maps(self.recipe.moves, uniforms_NVR))
        return drawn

    def only(self, n: int) -> Batch:
        """The n-th target by itself. Its gradients are added to the batch's, which are zeros if there were none."""
        own = {}
        for name, stacked in self.own.items():
            if stacked.grad is None:
                stacked.grad = torch.zeros_like(stacked)
            own[name] = stacked.detach()[n : n + 1].requires_grad_()
            own[name].grad = stacked.grad[n : n + 1]
        wanted = {layer: wanted_NU[n : n + 1] for layer, wanted_NU in self.wanted.items()}
        return replace(self, own=own, wanted=wanted, streams=self.streams[n : n + 1])

    def optimiser(self) -> torch.optim.Optimizer:
        """A fresh optimiser of the stacked variables. Paper: Table 1."""
        if self.recipe.optimiser == "adamax":
            return self.classifier.engine.adamax(self.own.values(), self.recipe.learning_rate)
        return torch.optim.SGD(self.own.values(), lr=self.recipe.learning_rate, momentum=0.1, nesterov=True)

    def without(self, is_done_N: Tensor, optimiser: torch.optim.Optimizer) -> tuple[Batch, torch.optim.Optimizer]:
        """The batch without the finished targets, and its optimiser; both keep their state."""
        keep, lay_out = ~is_done_N, self.classifier.engine.lay_out
        rest = replace(
            self,
            own={name: lay_out(tensor.detach()[keep]).requires_grad_() for name, tensor in self.own.items()},
            wanted={layer: wanted_NU[keep] for layer, wanted_NU in self.wanted.items()},
            streams=[stream for stream, is_kept in zip(self.streams, keep.tolist(), strict=True) if is_kept],
        )
        continued = rest.optimiser()
        for group, old in zip(continued.param_groups, optimiser.param_groups, strict=True):
            group.update({name: value for name, value in old.items() if name != "params"})
        for name, variable in rest.own.items():
            state = optimiser.state[self.own[name]]
            continued.state[variable] = {
                key: lay_out(value[keep]) if value.ndim else value for key, value in state.items()
            }
        return rest, continued


def recipe_for(target: Target, config: RenderConfig, classifier: Classifier) -> Recipe:
    """A target's recipe: without updates at half size if the classifier cannot read such pictures for it."""
    recipe = config.recipe(target.mode)
    return recipe if recipe.num_half and classifier.half_px(target.layers) else recipe.at_whole_size()


def first_seen_px(target: Target, config: RenderConfig, classifier: Classifier) -> int:
    """Side at which the classifier sees a target's pictures in the first update."""
    half_px = classifier.half_px(target.layers)
    return half_px if half_px and recipe_for(target, config, classifier).num_half else classifier.size_px


def start_batch(
    targets: Sequence[Target], config: RenderConfig, classifier: Classifier, decoder: Weights | nn.Module | None
) -> Batch:
    """N targets at their start.

    Args:
        decoder: the frozen weights of the pretrained generator, or a frozen module of the user's on the engine's
            device; needed in the pretrained mode only.

    Raises: DgnError for the pretrained mode without a decoder.
    """
    mode, measure = targets[0].mode, targets[0].measure
    recipe, seen_px = recipe_for(targets[0], config, classifier), first_seen_px(targets[0], config, classifier)
    assert all(
        (target.mode, target.measure, first_seen_px(target, config, classifier)) == (mode, measure, seen_px)
        for target in targets
    ), "a batch is of one kind"
    engine, architecture = classifier.engine, architecture_of(config, mode)
    dtype, device = DTYPES[config.precision], engine.device
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    streams = [torch.Generator().manual_seed(target.stream_seed) for target in targets]
    shared: dict[str, Tensor] = {}
    generator = None
    if mode == "untrained":
        starts = [initial_weights(architecture, stream) for stream in streams]
        own = {name: torch.stack([start[name] for start in starts]) for name in architecture.trainable}
    else:
        if isinstance(decoder, nn.Module):
            generator = decoder.to(wide)
        else:
            shared = engine.prepare(architecture, _contrasted(architecture, config, decoder, device, wide), dtype)
        alpha = torch.ones if config.pretrained.code == "ones" else torch.zeros
        own = {"alpha": alpha(len(targets), architecture.num_features)}
    groups = [target.units for target in targets]
    layers = dict.fromkeys(layer for target in targets for layer in target.layers)
    wanted = {
        layer: objectives.layer_weights(groups, layer, classifier.units[layer]).to(device, wide) for layer in layers
    }
    own = {name: engine.lay_out(tensor.to(device, wide)).requires_grad_() for name, tensor in own.items()}
    batch = Batch(architecture, recipe, classifier, own, shared, wanted, streams, dtype, seen_px, measure, generator)
    if len(shared.get(STARTS, ())) and not engine.is_symbolic:
        begin_at_photographs(batch)
    return batch


def _contrasted(
    architecture: Architecture, config: RenderConfig, decoder: Weights | None, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The decoder's weights on the device, its pictures with the recipe's contrast. Raises: DgnError without one."""
    if decoder is None:
        raise DgnError("the pretrained mode needs a decoder: give --decoder FILE (in Python: decoder=...)")
    frozen = {name: tensor.to(device, dtype) for name, tensor in decoder.items() if name != "alpha"}
    if config.pretrained.contrast is not None:
        gamma_3 = frozen[architecture.picture_gamma]
        frozen[architecture.picture_gamma] = gamma_3.sign() * gamma_3.new_tensor(config.pretrained.contrast)
    return frozen


def stretch_tones(pictures_N3HW: Tensor, gamma: float) -> Tensor:
    """The notebooks' tone mapping: each picture from its own minimum to its own maximum, to the power of gamma."""
    shifted = pictures_N3HW - pictures_N3HW.amin((1, 2, 3), keepdim=True)
    return (shifted / shifted.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)) ** gamma
