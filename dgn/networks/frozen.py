"""The frozen network: its responses to pictures, fast for the optimisation and plain for the scores.

Pictures enter as RGB in [0, 1]. The network's own preprocessing happens here and nowhere else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from dgn.engine import engine_for
from dgn.engine.fusion import called_as_modules, fold_norms
from dgn.errors import DgnError
from dgn.method.colours import grey
from dgn.method.engine import Engine
from dgn.method.memory import is_out_of_memory
from dgn.method.moves import resized
from dgn.method.objectives import unit_values
from dgn.method.precision import exact_float32
from dgn.networks.cuts import Watched, graph_up_to, hooked
from dgn.networks.layers import OUTPUT
from dgn.networks.outputs import class_values, named_outputs
from dgn.networks.weights import NetworkWeights, filled
from dgn.text import in_one_line, plural

log = logging.getLogger("dgn")

Change = Callable[[Tensor], Tensor]

MIN_HALF_PX = 96  # below, a class's things are too small to be told apart
NUM_PROBES = 3  # pictures that are shown to the network alone and together
# Shares of the largest value by which answers may differ: after other operations that should come to the same, and
# after the same operations, for which a GPU may choose other algorithms.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.25}
REPEATED = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.01}


class FrozenNetwork:
    """A classifier on one device, in one precision, without gradients of its own.

    Args:
        engine: the device; by default this machine's CPU.
        dtype: of weights and responses.

    Raises: DgnError if the network does not run.
    """

    def __init__(self, weights: NetworkWeights, engine: Engine | None = None, dtype: torch.dtype = torch.float32):
        self.engine, self.dtype = engine or engine_for("cpu"), dtype
        self.network, self.layers = weights.network, weights.network.layers
        self.size_px, self.is_grey = self.network.size, self.layers.num_channels == 1
        model = filled(self.network, weights.state)
        for module in model.modules():
            if getattr(module, "inplace", False):  # an in-place ReLU would overwrite the response before it
                module.inplace = False  # type: ignore[assignment]
        self.model = model.eval().requires_grad_(False).to(self.engine.device)
        self.memory_format = torch.channels_last
        self.mean_c11, self.std_c11 = self._normalisation(self.network.means), self._normalisation(self.network.stds)
        self._cut: dict[tuple[str, ...], nn.Module] = {}
        self.is_coupled = self.is_random = False
        if self.engine.is_symbolic:
            self._lay_out(dtype)
        else:
            self._probe({} if self.engine.is_gpu else weights.rounded)

    def _normalisation(self, numbers: Sequence[float]) -> Tensor:
        """A mean or standard deviation for RGB (or grey) in [0, 1]: (C, 1, 1), C the network's channels or 1."""
        in_range = torch.tensor(numbers, dtype=torch.float64) / self.network.value_range
        if self.network.channel_order == "BGR":
            in_range = in_range.flip(0)
        return in_range.float().to(self.engine.device).reshape(-1, 1, 1)

    def _lay_out(self, dtype: torch.dtype, rounded: Mapping[str, Tensor] | None = None) -> None:
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            if rounded and name in rounded and rounded[name].dtype == dtype:
                tensor.data = rounded[name]
        self.model = self.model.to(dtype)
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=self.memory_format)

    @property
    def units(self) -> Mapping[str, int]:
        """Number of units by layer, in order of depth."""
        return self.layers.units

    def responses(self, images_N3HW: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The layers' outputs in the network's dtype, before any activation function that follows them: (N, U) or, for
        maps and tokens, (N, U, ...).

        Runs only as deep as the deepest of `layers`. Differentiable with respect to the pictures.

        Args:
            images_N3HW: RGB, values in [0, 1] can be displayed; others are allowed. Of the network's own size, or of
                another that it reads: they are not resized.
        """
        cut = self.cut_behind(tuple(layers))
        parts = [self._units_first(cut(part)) for part in self._seen(images_N3HW)]
        return parts[0] if len(parts) == 1 else {layer: torch.cat([part[layer] for part in parts]) for layer in layers}

    def _seen(self, images_N3HW: Tensor) -> Sequence[Tensor]:
        """What the network reads at a time. Its code may write into each: autograd forbids that in views of a split."""
        normalised = self._normalised(images_N3HW)
        return [part.clone() for part in normalised.split(1)] if self.is_coupled else [normalised]

    def _normalised(self, images_N3HW: Tensor) -> Tensor:
        """What the network reads: its own channels and range of values; (N, C, H, W) in its dtype."""
        images = grey(images_N3HW) if self.is_grey else images_N3HW
        images = (images - self.mean_c11) / self.std_c11
        if self.network.channel_order == "BGR":
            images = images.flip(1)
        return images.to(self.dtype).contiguous(memory_format=self.memory_format)

    def _units_first(self, responses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(N, U) also for maps of one position."""
        axes = self.layers.axes
        ordered = {
            layer: class_values(response, "") if layer == OUTPUT else response.movedim(axes.get(layer, 1), 1)
            for layer, response in responses.items()
        }
        return {
            layer: response.flatten(1) if response[0, 0].numel() == 1 else response
            for layer, response in ordered.items()
        }

    def cut_behind(self, layers: tuple[str, ...]) -> nn.Module:
        """The network up to the last of `layers`, as the engine runs it. Only the latest is kept, because each has its
        own folded weights."""
        if layers not in self._cut:
            plain = Watched(self.model, self.layers, layers)
            joined = self._joined(plain)
            if joined is None:
                listed = ", ".join(layers[:3]) + (", ..." if layers[3:] else "")
                log.info("%s cannot be traced to %s: it runs unfused", self.layers.network, listed)
            self._cut = {layers: joined or plain}
        return self._cut[layers]

    @torch.no_grad()
    @exact_float32()
    def _joined(self, plain: Watched) -> nn.Module | None:
        """The network's graph up to layers, with what follows each other joined; None if it cannot be traced, or does
        not answer as the network does: tracing takes the first way through its code for every way."""
        graph = graph_up_to(self.model, self.layers, plain.layers)
        if graph is None:
            return None
        if self.engine.is_symbolic:
            return self._fused(graph)
        picture = self._normalised(self._probes(1))
        expected = plain(picture.clone())
        if not self._answers(graph, picture, expected, REPEATED[self.dtype]):
            return None
        joined = self._fused(graph)
        return joined if self._answers(joined, picture, expected, TOLERANCE[self.dtype]) else None

    def _fused(self, graph: fx.GraphModule) -> nn.Module:
        joined = self.engine.fuse(fold_norms(called_as_modules(graph.eval())))
        joined.delete_all_unused_submodules()  # which hold the weights of what was joined
        return joined

    @torch.no_grad()
    @exact_float32()
    def scores(self, images_N3HW: Tensor, layer: str) -> tuple[Tensor, Tensor | None]:
        """The same numbers computed another way, to score pictures with: the whole plain network, hooked at `layer`.

        Returns: the layer's response as `responses` gives it and the values of the classes in the network's output,
            (N, classes), None if it has no classes; both float32.
        """
        responses, values = self.all_scores(images_N3HW, [layer])
        return responses[layer], values

    @torch.no_grad()
    @exact_float32()
    def all_scores(self, images_N3HW: Tensor, layers: Sequence[str]) -> tuple[dict[str, Tensor], Tensor | None]:
        """`scores` of several layers in one run of the network."""
        plain = Watched(self.model, self.layers, layers, is_stopped=False)
        images_N3HW = images_N3HW.to(self.engine.device)
        own_size = images_N3HW if images_N3HW.shape[-1] == self.size_px else resized(images_N3HW, self.size_px)
        parts, values = list[dict[str, Tensor]](), list[Tensor]()
        for images in self._seen(own_size):
            parts.append(self._units_first(plain(images)))
            if self.layers.class_layer is not None:
                values.append(class_values(plain.output, self.layers.class_output).float())
        responses = {layer: torch.cat([part[layer] for part in parts]).float() for layer in layers}
        return responses, torch.cat(values) if values else None

    @exact_float32()
    def changed_class_values(self, images_N3HW: Tensor, changes: Mapping[str, Change]) -> Tensor:
        """The classes' values before any softmax or sigmoid, (N, classes), of the plain network with layers changed on
        the way. Differentiable with respect to what the changes add.

        Args:
            images_N3HW: RGB in [0, 1], of the network's own size; one, if the network lets them change each other.
            changes: by layer, from its response, (N, U) or (N, U, ...), to another of the same shape.
        """
        axes, class_layer = self.layers.axes, self.layers.classes()

        def change(layer: str, output: Tensor) -> Tensor:
            return changes[layer](output.movedim(axes.get(layer, 1), 1)).movedim(1, axes.get(layer, 1))

        plain = Watched(self.model, self.layers, [class_layer], is_stopped=False)
        with hooked(self.model, self.layers, changes, change):
            response = self._units_first(plain(self._normalised(images_N3HW.to(self.engine.device))))[class_layer]
        if self.layers.is_probability:
            return unit_values(response).before_relu
        return class_values(plain.output, self.layers.class_output)

    def _answers(self, cut: nn.Module, picture: Tensor, expected: Mapping[str, Tensor], tolerance: float) -> bool:
        """Whether a part of the network gives these responses. Networks may write into the picture they get."""
        try:
            found, expected = self._units_first(cut(picture.clone())), self._units_first(expected)
            return all(_are_close(found[layer], response, tolerance) for layer, response in expected.items())
        except Exception:  # whatever a network's own code raises for what was traced as a constant
            return False

    def half_px(self, layers: Sequence[str]) -> int | None:
        """Half of `size_px`, if targets in these layers can be sought in such pictures: a class is a thing as a whole,
        but a filter's pattern would be drawn at twice its scale. None also if the network does not read them."""
        return self._half_of_size if set(layers) == {self.layers.class_layer} else None

    @cached_property
    @torch.no_grad()
    @exact_float32()
    def _half_of_size(self) -> int | None:
        px = self.size_px // 2
        if px < MIN_HALF_PX:
            return None
        layers = (self.layers.classes(),)
        picture = self._normalised(resized(self._probes(1), px))
        try:
            expected = Watched(self.model, self.layers, layers)(picture.clone())
            is_read = self._units_first(expected)[layers[0]].shape[:2] == (1, self.layers.num_classes)
        except Exception as error:  # whatever a network's own code raises for a size that it does not read
            if is_out_of_memory(error):
                raise
            is_read = False
        if is_read and not self.engine.is_symbolic:
            is_read = self._answers(self.cut_behind(layers), picture, expected, TOLERANCE[self.dtype])
        if not is_read:
            log.info("%s does not read pictures of %d px: classes are drawn at %d px throughout",
                     self.layers.network, px, self.size_px)  # fmt: skip
        return px if is_read else None

    def _probes(self, count: int) -> Tensor:
        """Blotches of random colours, each picture darker than the one before: statistics of a batch have to differ
        from a picture's own, or a norm that takes them would not show."""
        stream = torch.Generator().manual_seed(0)
        brightness = torch.linspace(1, 0.2, count, device="cpu")[:, None, None, None]
        blotches = torch.rand(count, 3, 8, 8, generator=stream, device="cpu") * brightness
        return resized(blotches, self.size_px).to(self.engine.device)

    @torch.no_grad()
    @exact_float32()
    def _probe(self, rounded: Mapping[str, Tensor]) -> None:
        """Finds the memory format that the network's code takes, and whether pictures of a batch change each other. In
        float32 or wider, because rounding would hide that; then the network gets its own precision.

        Args:
            rounded: weights in a precision that is perhaps this one.

        Raises: DgnError if the network cannot run.
        """
        dtype = self.dtype
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        tolerance = TOLERANCE[self.dtype]
        pictures = self._probes(NUM_PROBES)
        try:
            self._lay_out(self.dtype)
            self.model(self._normalised(pictures[:1]))
        except Exception:  # `.view` of a map, for instance, does not take channels last; other errors come again
            self.memory_format = torch.contiguous_format
            self._lay_out(self.dtype)
        alone, again, together = (self._outputs(some) for some in (pictures[:1], pictures[:1], pictures))
        rows = [name for name, values in alone.items() if len(values) == 1 and len(together[name]) == NUM_PROBES]
        self.is_random = not all(_are_close(again[name], alone[name], tolerance) for name in rows)
        self.is_coupled = not self.is_random and not all(
            _are_close(together[name][:1], alone[name], tolerance) for name in rows
        )
        self.dtype = dtype
        self._lay_out(dtype, rounded)
        if dtype == torch.bfloat16:
            self._outputs(pictures[:1])

    def _outputs(self, images_N3HW: Tensor) -> dict[str, Tensor]:
        """What the network returns, by name. Raises: DgnError."""
        with self.running(len(images_N3HW)):
            return dict(named_outputs(self.model(self._normalised(images_N3HW))))

    def check_gradients(self, layers: Sequence[str]) -> None:
        """Raises: DgnError if targets in these layers cannot be sought, because no gradient leads to the pictures."""
        with self.running(1), torch.device("meta" if self.engine.is_symbolic else "cpu"):
            picture = self._probes(1).requires_grad_()
            responses = self.responses(picture, layers)
            self.expect_gradients(responses)
            torch.autograd.grad(torch.stack([response.float().sum() for response in responses.values()]).sum(), picture)

    def expect_gradients(self, responses: Mapping[str, Tensor]) -> None:
        """Raises: DgnError if a response to pictures that require gradients has none."""
        if without := [layer for layer, response in responses.items() if not response.requires_grad]:
            raise DgnError(
                f"{self.layers.network} passes no gradient from {', '.join(without[:3])} to its pictures: expected a "
                "forward without no_grad, detach, argmax or whole numbers on the way"
            )

    @contextmanager
    def running(self, num_pictures: int) -> Iterator[None]:
        """A context in which the network runs. Raises: DgnError for whatever its code raises."""
        try:
            yield
        except DgnError:
            raise
        except Exception as error:
            advice = "; try --precision float32 (in Python precision=)" if self.dtype == torch.bfloat16 else ""
            raise DgnError(
                f"{self.layers.network} does not run on {plural(num_pictures, 'picture')} of {self.size_px} x "
                f"{self.size_px} px in {str(self.dtype).removeprefix('torch.')} ({in_one_line(error)}){advice}"
            ) from error

    @property
    def remark(self) -> str:
        """What people should know about how the network is run; empty if there is nothing."""
        if self.is_random:
            return (
                f"{self.layers.network} answers the same picture differently each time: its scores cannot be repeated"
            )
        if self.is_coupled:
            return (
                f"{self.layers.network} lets the pictures of a batch change each other (batch norm without running "
                "statistics does): it sees them one by one"
            )
        return ""


def _are_close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    if one.shape != other.shape or not one.numel():
        return one.shape == other.shape
    one, other = (values.float().nan_to_num(0, 0, 0) for values in (one, other))  # infinite: classes left out
    return bool((one - other).abs().max() <= tolerance * other.abs().max().clamp_min(1e-6))
