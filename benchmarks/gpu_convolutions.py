"""The generator's convolutions in every form that was compared on a GPU, for N targets with weights of their own.

A section of `python -m benchmarks.gpu`. In all forms: x (N, C, H, W), w (N, O, C, k, k), b (N, O).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import DEVICE, HAS_GPU, median_s
from dgn.method.architecture import Architecture, Conv
from dgn.method.generator import conv_after_upsample, conv_same

Form = Callable[[Tensor, Tensor, Tensor, Conv], Tensor]


def grouped(x: Tensor, w: Tensor, b: Tensor, conv: Conv) -> Tensor:
    one = conv_after_upsample if conv.is_after_upsample else conv_same
    return torch.vmap(lambda x, w, b: one(x[None], w, b)[0])(x, w, b)


def looped(x: Tensor, w: Tensor, b: Tensor, conv: Conv) -> Tensor:
    one = conv_after_upsample if conv.is_after_upsample else conv_same
    return torch.cat([one(x[n : n + 1], w[n], b[n]) for n in range(len(x))])


def by_products(
    valid: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, w: Tensor, b: Tensor, conv: Conv
) -> Tensor:
    """Through `valid`, a 'valid' convolution of (N, H, W, C) by (N, k, k, C, O)."""
    from dgn.engine.cuda import stacked

    x, w, k = x.permute(0, 2, 3, 1), w.permute(0, 3, 4, 2, 1), conv.kernel_px
    if not conv.is_after_upsample:
        before, after = (k - 1) // 2, k // 2
        return valid(F.pad(x, (0, 0, before, after, before, after)), w, b).permute(0, 3, 1, 2)
    wide, px = stacked._widened(w), 2 * x.shape[1] - k + 1
    y = x.new_empty(len(x), px, px, conv.out_channels)
    for p, q in itertools.product(range(2), repeat=2):
        taps, phase = wide[:, 1 - p :: 2, 1 - q :: 2], y[:, p::2, q::2]
        reach = [phase.shape[1] + taps.shape[1] - 1, phase.shape[2] + taps.shape[2] - 1]
        beyond = [max(0, need - x.shape[1]) for need in reach]
        source = F.pad(x, (0, 0, 0, beyond[1], 0, beyond[0]))[:, : reach[0], : reach[1]]
        y[:, p::2, q::2] = valid(source, taps, b)
    return y.permute(0, 3, 1, 2)


def unfolded(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """im2col, then one batched product."""
    (n, h, _, c), (_, k, k_w, _, o) = x.shape, w.shape
    windows = x.unfold(1, k, 1).unfold(2, k_w, 1).permute(0, 1, 2, 4, 5, 3)  # (N, H', W', k, k, C)
    y = torch.baddbmm(b.to(x.dtype)[:, None], windows.reshape(n, -1, k * k_w * c), w.reshape(n, k * k_w * c, o))
    return y.reshape(n, h - k + 1, -1, o)


def summed(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A batched product per tap. Rows keep the source's width, so that no window has to be copied."""
    (n, h, width, c), (_, k, k_w, _, o) = x.shape, w.shape
    out_h = h - k + 1
    rows = F.pad(x, (0, 0, 0, 0, 0, 1)).reshape(n, -1, c)
    y = b.to(x.dtype)[:, None].expand(n, out_h * width, o)
    for i, j in itertools.product(range(k), range(k_w)):
        y = torch.baddbmm(y, rows[:, i * width + j :][:, : out_h * width], w[:, i, j])
    return y.reshape(n, out_h, width, o)[:, :, : width - k_w + 1]


def by_triton(x: Tensor, w: Tensor, b: Tensor, conv: Conv) -> Tensor:
    from dgn.engine.cuda import stacked

    w = w.permute(0, 3, 4, 2, 1)
    w = (stacked._widened(w) if conv.is_after_upsample else w).contiguous()
    y = stacked.Convolution.apply(x.permute(2, 3, 0, 1).contiguous(), w, b, conv.is_after_upsample, False)
    return y.permute(2, 3, 0, 1)


FORMS: dict[str, tuple[Form, str]] = {  # and the memory order of the maps that it is given
    "grouped, channels last": (grouped, "hwnc"),
    "grouped, contiguous": (grouped, "nchw"),
    "loop": (looped, "nhwc"),
    "im2col + product": (partial(by_products, unfolded), "nhwc"),
    "sum over taps": (partial(by_products, summed), "nhwc"),
    "Triton": (by_triton, "hwnc"),
}


def laid_out(x: Tensor, order: str) -> Tensor:
    axes = ["nchw".index(axis) for axis in order]
    back = [order.index(axis) for axis in "nchw"]
    return x.permute(axes).contiguous().permute(back).detach().requires_grad_()


def measure_convs(network: str, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every convolution of the generator, forward and backward, for N targets."""
    rows = []
    cases = [(1.0, torch.bfloat16), (0.5, torch.bfloat16), (0.5, torch.float32)] if HAS_GPU else [(0.02, torch.float32)]
    for width, dtype in cases:
        n = 32 if HAS_GPU else 2
        print(f"the convolutions, width {width}, N = {n}, {dtype}, forward + backward, ms: {', '.join(FORMS)}")
        for i, (conv, px) in enumerate(Architecture("untrained", width).convs_with_px()):
            stream = torch.Generator(DEVICE).manual_seed(i)
            draw = partial(torch.randn, generator=stream, device=DEVICE, dtype=dtype)
            c, o, k = conv.in_channels, conv.out_channels, conv.kernel_px
            x, w, b = draw(n, c, px, px), draw(n, o, c, k, k) / math.sqrt(c * k * k), draw(n, o)
            row: dict[str, Any] = {"width": width, "dtype": str(dtype), "conv": i, "in": [c, px, px], "out": o, "k": k}
            exact = None
            for name, (form, order) in FORMS.items():
                if name == "Triton" and not HAS_GPU:
                    continue
                row[name] = conv_s(form, laid_out(x, order), w, b, conv)
                with torch.no_grad():
                    y = form(laid_out(x, order), w, b, conv).float()
                exact = y if exact is None else exact
                difference = ((y - exact).norm() / exact.norm()).item()
                if not difference < 0.02:
                    print(f"  {name} differs by {difference:.1e}")
            rows.append(row)
            print(
                f"  {i:2} {c:3}->{o:3} k{k} {conv.out_px(px):3}px",
                *(f"{row.get(name, 0) * 1e3:8.3f}" for name in FORMS),
            )
        mine = [row for row in rows if (row["width"], row["dtype"]) == (width, str(dtype))]
        print("  all            ", *(f"{sum(row.get(name, 0) for row in mine) * 1e3:8.3f}" for name in FORMS))
    return rows


def conv_s(form: Form, x: Tensor, w: Tensor, b: Tensor, conv: Conv) -> float:
    w = w.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2).requires_grad_()
    b = b.float().requires_grad_() if form is by_triton else b.requires_grad_()
    with torch.no_grad():
        grad = torch.randn_like(form(x, w, b, conv))
    return median_s(lambda: torch.autograd.grad(form(x, w, b, conv), (x, w, b), grad), repeats=5, warm_ups=1)
