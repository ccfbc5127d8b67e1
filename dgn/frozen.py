"""A frozen network for its pictures' gradient: norms folded into convolutions, a convolution and its ReLU in one step.

A network that learns nothing needs of a layer less than a stock one keeps and computes: no gradient of weights, a batch
norm that is a constant scale, of a ReLU nothing but its result.

Shapes: B pictures, C channels, O output channels, H, W the map.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dgn import winograd

# (convolution, the ReLU that alone reads it, the pool that alone reads that) -> what does it all, or the first of them
Make = Callable[[nn.Conv2d, nn.Module | None, nn.Module | None], nn.Module | None]


def fold_norms(network: fx.GraphModule) -> fx.GraphModule:
    """Puts a convolution's batch norm, where that is its only reader, into the weights of a new one."""
    for node in list(network.graph.nodes):
        conv, reader = _module(network, node), _only_reader(node)
        norm = _module(network, reader)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and reader is not None:
            exact = fuse_conv_bn_eval(deepcopy(conv).double(), deepcopy(norm).double())
            _replace(network, [node, reader], exact.to(conv.weight.dtype))
    network.recompile()
    return network


def fuse(network: fx.GraphModule, make: Make) -> fx.GraphModule:
    """Puts what `make` gives in place of each convolution, with the ReLU and the 2x2 pool behind it if it does them."""
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
    """One module in place of a chain of them."""
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


def convolution(is_winograd: bool, conv: nn.Conv2d, relu: nn.Module | None, pool: nn.Module | None) -> nn.Module | None:
    """What a CPU does fastest in place of a convolution and its ReLU: a `Make`, once it is told the form."""
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    most = {nn.ReLU: torch.inf, nn.ReLU6: 6.0}[type(relu)] if relu is not None else None
    return Convolution(conv, most, is_winograd)


class Convolution(nn.Module):
    """min(relu(conv(x)), most), or the convolution alone where `most` is None; its only gradient is x's."""

    def __init__(self, conv: nn.Conv2d, most: float | None, is_winograd: bool = True):
        super().__init__()
        self.conv, self.most = conv, most
        _, c, *kernel = conv.weight.shape
        geometry = (conv.stride, conv.padding, conv.dilation)
        self.is_dense = kernel == [3, 3] and geometry == ((1, 1), (1, 1), (1, 1))
        self.is_dense &= conv.groups == 1 and is_winograd
        self.is_depthwise = c == 1 and conv.groups == conv.out_channels and conv.dilation == (1, 1)
        self.kernels: list[Tensor] = []  # made for the first map that is large enough

    def forward(self, x: Tensor) -> Tensor:
        return _Convolution.apply(x, self)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Convolution) -> Tensor:
        conv, most = layer.conv, layer.most
        ctx.is_winograd = layer.is_dense and winograd.pays(conv.in_channels, conv.out_channels, min(x.shape[2:]))
        if ctx.is_winograd:
            layer.kernels = layer.kernels or winograd.SAME_3.kernels(conv.weight.double(), conv.weight.dtype)
            y = winograd.forward(winograd.SAME_3, x, conv.bias, layer.kernels)[0]
        else:
            y = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        if most is not None:
            y.clamp_(0, None if most == torch.inf else most)
            ctx.save_for_backward(y)
        ctx.layer, ctx.shape = layer, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, layer, shape = grads[0], ctx.layer, ctx.shape
        conv = layer.conv
        if layer.most == torch.inf:
            grad = torch.ops.aten.threshold_backward(grad, ctx.saved_tensors[0], 0)
        elif layer.most is not None:
            grad = torch.ops.aten.hardtanh_backward(grad, ctx.saved_tensors[0], 0, layer.most)
        if ctx.is_winograd:
            return winograd.backward(winograd.SAME_3, grad, shape, layer.kernels)[0], None
        if layer.is_depthwise:
            return _depthwise_backward(grad, conv, shape), None
        # Of the picture only the shape is read.
        like = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
        geometry = (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups, (True, False, False))
        return torch.ops.aten.convolution_backward(grad, like, conv.weight, None, *geometry)[0], None


def _depthwise_backward(grad: Tensor, conv: nn.Conv2d, shape: torch.Size) -> Tensor:
    """As a depthwise convolution with the kernel turned round, which oneDNN does up to 15 times faster (measured)."""
    assert not isinstance(conv.padding, str)
    (step_h, step_w), (pad_h, pad_w), (k_h, k_w) = conv.stride, conv.padding, conv.kernel_size
    n, c, h, w = shape
    size = (n, c, h + 2 * pad_h - k_h + 1, w + 2 * pad_w - k_w + 1)
    if grad.shape != size:  # strided: zeros between and behind
        wide = torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last).zero_()
        wide[:, :, ::step_h, ::step_w] = grad
        grad = wide
    turned = conv.weight.flip(2, 3)
    x_grad = F.conv2d(grad, turned, None, 1, (k_h - 1, k_w - 1), 1, conv.groups)
    return x_grad[:, :, pad_h : pad_h + h, pad_w : pad_w + w]
