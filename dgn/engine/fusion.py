"""Rewrites a traced frozen network: folds batch norms into convolutions, and joins steps that follow each other."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

# (convolution, a ReLU that is its only reader, a pool that is the ReLU's only reader) -> one module for the first two,
# or for all three if it has `is_pooled`; None to leave them.
Make = Callable[[nn.Conv2d, nn.Module | None, nn.Module | None], nn.Module | None]


def called_as_modules(network: fx.GraphModule) -> fx.GraphModule:
    """Puts a module in place of each convolution and batch norm that is called as a function with stored weights, as in
    EfficientNet-Lite and timm. The functions below know modules alone."""
    for node in list(network.graph.nodes):
        if node.op != "call_function" or node.target not in _AS_MODULE or not node.args:
            continue
        if node.target is F.batch_norm and not isinstance(_module(network, _node(node.args[0])), nn.Conv2d):
            continue  # nothing to fold it into
        names, make = _AS_MODULE[node.target]
        given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
        rest = {name: value for name, value in given.items() if not isinstance(value, fx.Node)}
        if _has_nodes(rest):
            continue  # calculated from the picture's shape, for instance
        tensors = {name: _stored(network, value) for name, value in given.items() if isinstance(value, fx.Node)}
        if None in tensors.values():  # calculated, like the weights of weight-standardised convolutions
            continue
        made = make(**(given | tensors))
        if made is not None:
            _replace(network, [node], made.eval().requires_grad_(False))
    network.recompile()
    return network


def _convolution(
    weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> nn.Module:
    out, each, *kernel = weight.shape
    settings: dict[str, Any] = {"bias": bias is not None, "device": "meta"}
    conv = nn.Conv2d(each * groups, out, tuple(kernel), stride, padding, dilation, groups, **settings)  # type: ignore[arg-type]
    conv.weight = nn.Parameter(weight)
    if bias is not None:
        conv.bias = nn.Parameter(bias)
    return conv


def _batch_norm(
    running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> nn.Module | None:  # fmt: skip
    if training or running_mean is None or running_var is None or weight is None or bias is None:
        return None
    norm = nn.BatchNorm2d(len(running_mean), eps, device="meta")
    norm.weight, norm.bias = nn.Parameter(weight), nn.Parameter(bias)
    norm.running_mean, norm.running_var, norm.num_batches_tracked = running_mean, running_var, torch.tensor(0)
    return norm


_AS_MODULE: dict[Any, tuple[tuple[str, ...], Callable[..., nn.Module | None]]] = {
    torch.conv2d: (("weight", "bias", "stride", "padding", "dilation", "groups"), _convolution),
    F.batch_norm: (("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"), _batch_norm),
}


def _has_nodes(arguments: Any) -> bool:
    found: list[fx.Node] = []
    fx.node.map_arg(arguments, found.append)
    return bool(found)


def _node(argument: Any) -> fx.Node | None:
    return argument if isinstance(argument, fx.Node) else None


def _stored(network: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """A parameter's or buffer's tensor; None for what is calculated."""
    if node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    tensor = getattr(network.get_submodule(owner), name)
    return tensor.detach() if isinstance(tensor, Tensor) else None


def fold_norms(network: fx.GraphModule) -> fx.GraphModule:
    """Folds each batch norm that is the only reader of a convolution into the weights of a new convolution."""
    for node in list(network.graph.nodes):
        conv, reader = _module(network, node), _only_reader(node)
        norm = _module(network, reader)
        if not isinstance(conv, nn.Conv2d) or is_parametrized(conv):  # whose weights are calculated
            continue
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and reader is not None:
            exact = fuse_conv_bn_eval(deepcopy(conv).double(), deepcopy(norm).double())
            _replace(network, [node, reader], exact.to(conv.weight.dtype))
    network.recompile()
    return network


def fuse(network: fx.GraphModule, make: Make) -> fx.GraphModule:
    """Replaces each convolution by what `make` returns, with the ReLU and 2x2 pool that follow if it covers them."""
    for node in list(network.graph.nodes):
        conv = _module(network, node)
        if not isinstance(conv, nn.Conv2d):
            continue
        relu = _only_reader(node)
        if not isinstance(_module(network, relu), nn.ReLU | nn.ReLU6):
            relu = None
        pool = _only_reader(relu) if relu else None
        if not _is_halving(_module(network, pool)):
            pool = None
        made = make(conv, _module(network, relu), _module(network, pool))
        if made is not None:
            done = [relu, pool] if getattr(made, "is_pooled", False) else [relu]
            _replace(network, [node, *(reader for reader in done if reader)], made)
    network.recompile()
    return network


def _module(network: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _replace(network: fx.GraphModule, nodes: list[fx.Node], made: nn.Module) -> None:
    """Puts one module in place of a chain of them."""
    name = f"{nodes[0].name}_{type(made).__name__.lower()}"
    network.add_submodule(name, made)
    with network.graph.inserting_after(nodes[-1]):
        replacement = network.graph.call_module(name, (nodes[0].args[0],))
    nodes[-1].replace_all_uses_with(replacement)
    for gone in reversed(nodes):
        network.graph.erase_node(gone)


def _is_halving(pool: nn.Module | None) -> bool:
    if not isinstance(pool, nn.MaxPool2d) or pool.ceil_mode or pool.return_indices:
        return False
    settings = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    return settings == (2, 2, 0, 1)
