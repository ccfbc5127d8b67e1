"""The part of a network that targets need: everything up to their layers, as the engine runs it.

A network that can be traced becomes a graph, in which norms are folded and steps are joined. Any other runs as it is
and is stopped behind the last layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, fx, nn

from dgn.networks.layers import OUTPUT, Layers
from dgn.networks.outputs import class_values

Responses = dict[str, Tensor]


class Watched(nn.Module):
    """A network as it is, with hooks at layers.

    Args:
        layers: those asked for.
        is_stopped: whether it ends behind the last of them.
    """

    def __init__(self, model: nn.Module, known: Layers, layers: Sequence[str], is_stopped: bool = True):
        super().__init__()
        self.model, self.known, self.layers, self.is_stopped = model, known, tuple(layers), is_stopped
        self.output: Any = None  # of the latest run, unless it is stopped: it would hold memory

    def forward(self, images: Tensor) -> Responses:
        kept: Responses = {}

        def keep(layer: str, output: Tensor) -> None:
            kept[layer] = output.clone()  # which an in-place function may overwrite
            if self.is_stopped and len(kept) == len(self.layers):
                raise _Stop

        output = None
        with hooked(self.model, self.known, self.layers, keep), suppress(_Stop):
            output = self.model(images)
        if OUTPUT in self.layers:
            kept[OUTPUT] = class_values(output, self.known.class_output)
        if not self.is_stopped:
            self.output = output
        return {layer: kept[layer] for layer in self.layers}


@contextmanager
def hooked(
    model: nn.Module, known: Layers, layers: Iterable[str], see: Callable[[str, Tensor], Tensor | None]
) -> Iterator[None]:
    """A context for one run of a network: `see(layer, output)` sees the layers' outputs, and may return others for
    them."""
    wanted: dict[str, dict[int, str]] = {}
    for layer in layers:
        if layer != OUTPUT:
            module, call = known.module_of(layer)
            wanted.setdefault(module, {})[call] = layer
    counts = dict.fromkeys(wanted, -1)

    def hook(module: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def on_output(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            counts[module] += 1
            layer = wanted[module].get(counts[module])
            return None if layer is None else see(layer, output)

        return on_output

    handles = [model.get_submodule(module).register_forward_hook(hook(module)) for module in wanted]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Stop(Exception):
    """Ends a network's run behind the last layer that is asked for."""


class _Tracer(fx.Tracer):
    """Notes the node behind every call of every module."""

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math,))
        self.nodes: dict[str, list[fx.Node | None]] = {}

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        self.nodes.setdefault(self.path_of_module(m), []).append(getattr(output, "node", None))
        return output


def graph_up_to(model: nn.Module, known: Layers, layers: Sequence[str]) -> fx.GraphModule | None:
    """The network's graph from pictures to the responses of layers; None if it cannot be traced."""
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
        [end] = (node for node in graph.nodes if node.op == "output")
        nodes = {}
        for layer in layers:
            if layer == OUTPUT:  # traced if it is all that the network returns
                nodes[layer] = end.args[0] if not known.class_output and isinstance(end.args[0], fx.Node) else None
                continue
            module, call = known.module_of(layer)
            nodes[layer] = tracer.nodes[module][call]
    except Exception:  # whatever a network's code raises for symbols in place of tensors
        return None
    if None in nodes.values():
        return None
    graph.erase_node(end)
    graph.output(nodes)
    for node in reversed(graph.nodes):  # fx's own pruning keeps what could draw random numbers
        if not node.users and node.op not in ("output", "placeholder"):
            graph.erase_node(node)
    return fx.GraphModule(model, graph)
