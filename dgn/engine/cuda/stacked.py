"""The generator for N targets at once on a GPU: Triton convolutions in which every target has its own weights.

Libraries' grouped convolutions are slow at this (docs/gpu.md). Here a convolution is one matrix product per target and
tap of the kernel, summed in float32 in registers, so nothing is unfolded in memory; the gradients are the same two
kernels again. A convolution after nearest x2 upsampling is a transposed one of stride 2 whose (k+1) x (k+1) weights are
sums of up to four of the k x k ones: the same values for as few operations as `generator.conv_after_upsample`.

Shapes: N targets, C channels, O output channels, H, W the map, k kernel. Maps are (H, W, N, C), so that every target's
channels lie together and stock normalisation sees N * C channels of one picture; weights are (N, k, k, C, O).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dgn.method.architecture import FEATURE_PX, Architecture, Weights
from dgn.method.generator import NORM_EPS

# Pixels are summed to a weight gradient in parts of a fixed size, so that a target's result is the same to the bit in
# every batch.
PIXELS_PER_PART = 4096


def generate(architecture: Architecture, own: Weights, features_NK: Tensor) -> Tensor:
    """`generator.generate` for N targets with weights of their own (N, ...): (N, 3, 224, 224) in the features' dtype.

    Fastest if the stacked kernels have the memory order of `lay_out`.
    """
    x = features_NK.unflatten(1, (-1, FEATURE_PX, FEATURE_PX)).permute(2, 3, 0, 1).contiguous()
    for i, conv in enumerate(architecture.convs):
        weight_NkkCO = own[f"conv{i}.weight"].permute(0, 3, 4, 2, 1)
        if conv.is_after_upsample:
            weight_NkkCO = _widened(weight_NkkCO)
        weight_NkkCO = weight_NkkCO.to(x.dtype).contiguous()
        x = Convolution.apply(x, weight_NkkCO, own[f"conv{i}.bias"], conv.is_after_upsample, conv.has_relu)
        x = _own_statistics(x, own[f"norm{i}.gamma"], own[f"norm{i}.beta"])
    return x.permute(2, 3, 0, 1)


def lay_out(stacked: Tensor) -> Tensor:
    """Stacked kernels (N, O, C, k, k) with the memory order (N, k, k, C, O) of `generate`; others unchanged."""
    if stacked.ndim != 5:
        return stacked
    return stacked.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)


def _own_statistics(x_HWNC: Tensor, gamma_NC: Tensor, beta_NC: Tensor) -> Tensor:
    """Each target's channels normalised over its own picture: batch norm of one picture with N * C channels.

    By PyTorch's own kernels: cuDNN's return another memory order.
    """
    h, w, n, c = x_HWNC.shape
    picture = x_HWNC.reshape(1, h, w, n * c).permute(0, 3, 1, 2)
    gamma, beta = gamma_NC.reshape(-1), beta_NC.reshape(-1)
    y = torch.native_batch_norm(picture, gamma, beta, None, None, True, 0.0, NORM_EPS)[0]
    return y.permute(0, 2, 3, 1).reshape(h, w, n, c).contiguous()


def shared_statistics(x_NCHW: Tensor, weights: Weights, i: int) -> Tensor:
    """The same for N targets that share frozen scales. A `generator.Normalise`."""
    gamma_NC, beta_NC = (weights[f"norm{i}.{name}"].expand(len(x_NCHW), -1) for name in ("gamma", "beta"))
    y = _own_statistics(x_NCHW.permute(2, 3, 0, 1).contiguous(), gamma_NC, beta_NC).permute(2, 3, 0, 1)
    return y.contiguous(memory_format=torch.channels_last)


def _widened(weight_NkkCO: Tensor) -> Tensor:
    """(N, k+1, k+1, C, O): entry e is w[e-1] + w[e] along both axes, sums of taps that read the same source pixel."""
    n, k, _, c, o = weight_NkkCO.shape
    pairs = _pairs(k, weight_NkkCO.device, weight_NkkCO.dtype)
    return (pairs @ weight_NkkCO.reshape(n, k * k, c * o)).unflatten(2, (c, o)).unflatten(1, (k + 1, k + 1))


@lru_cache
def _pairs(k: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    axis = torch.zeros(k + 1, k, dtype=dtype, device="cpu")
    for e in range(k + 1):
        axis[e, max(0, e - 1) : e + 1] = 1
    return torch.kron(axis, axis).to(device)


class Convolution(torch.autograd.Function):
    """relu(conv(x) + b) per target, (H, W, N, C) -> (H', W', N, O).

    Weights (N, k, k, C, O): 'same', padded as TensorFlow does. After upsampling (N, k+1, k+1, C, O), see `_widened`:
    y[h] = sum over s of x[s] w[2s + 1 - h].
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias_NO: Tensor, is_after_upsample: bool, has_relu: bool
    ) -> Tensor:
        h, w, n, _ = x.shape
        k, o = weight.shape[1], weight.shape[-1]
        if is_after_upsample:
            y = x.new_empty(2 * h - k + 2, 2 * w - k + 2, n, o)
            for p in range(2):  # even and odd rows and columns are each a convolution of the source with half the taps
                for q in range(2):
                    taps = weight[:, 1 - p :: 2, 1 - q :: 2]
                    gather(x, taps, y[p::2, q::2], bias_NO=bias_NO, has_relu=has_relu)
        else:
            y = x.new_empty(h, w, n, o)
            gather(x, weight, y, (k - 1) // 2, bias_NO=bias_NO, has_relu=has_relu)
        ctx.save_for_backward(x, weight, y if has_relu else None)
        ctx.is_after_upsample = is_after_upsample
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        grad = grads[0] if y is None else torch.where(y > 0, grads[0], 0)
        grad = grad.contiguous()
        k, x_grad, weight_grad = weight.shape[1], None, None
        pad = k - 2 if ctx.is_after_upsample else k // 2  # after upsampling, k is one more than the kernel's
        stride = 2 if ctx.is_after_upsample else 1
        if ctx.needs_input_grad[0]:
            x_grad = torch.empty_like(x)
            gather(grad, weight.transpose(3, 4), x_grad, pad, stride=stride, is_turned=True)
        if ctx.needs_input_grad[1]:
            if ctx.is_after_upsample:
                weight_grad = outer(x, grad, k, pad, stride=2, is_turned=True)
            else:
                weight_grad = outer(grad, x, k, (k - 1) // 2).transpose(3, 4)
            weight_grad = weight_grad.to(weight.dtype)
        return x_grad, weight_grad, grad.sum((0, 1), dtype=torch.float32), None, None


def gather(
    x_HWNC: Tensor,
    weight_NkkCO: Tensor,
    y_HWNO: Tensor,
    pad: int = 0,
    *,
    bias_NO: Tensor | None = None,
    stride: int = 1,
    is_turned: bool = False,
    has_relu: bool = False,
) -> None:
    """Fills y[h, w] with the sum over taps of x[stride * h + i - pad, stride * w + j - pad] @ weight[i, j]; nothing
    outside of x. The last axis of x and y is contiguous, all else may be strided. `is_turned` turns the kernel by 180
    degrees."""
    (in_h, in_w, n, c), (out_h, out_w, _, o) = x_HWNC.shape, y_HWNO.shape
    assert x_HWNC.stride(-1) == y_HWNO.stride(-1) == 1
    block_p, block_o, block_c, warps, stages = _blocks(x_HWNC.dtype, o, c)
    grid = (triton.cdiv(out_h * out_w, block_p) * triton.cdiv(o, block_o), n)
    _gather[grid](
        x_HWNC, weight_NkkCO, x_HWNC if bias_NO is None else bias_NO, y_HWNO,
        in_h, in_w, out_h, out_w, c, o, weight_NkkCO.shape[1], weight_NkkCO.shape[2], pad,
        *x_HWNC.stride()[:3], *weight_NkkCO.stride(), *y_HWNO.stride()[:3],
        stride, is_turned, bias_NO is not None, has_relu, block_p, block_o, block_c,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


def outer(a_HWNU: Tensor, b_HWNV: Tensor, k: int, pad: int, *, stride: int = 1, is_turned: bool = False) -> Tensor:
    """(N, k, k, U, V), float32: the sum over pixels of a[h, w] outer b[stride * h + i - pad, stride * w + j - pad];
    `is_turned` turns the k x k sums by 180 degrees. The last axes are contiguous."""
    assert a_HWNU.stride(-1) == b_HWNV.stride(-1) == 1
    (a_h, a_w, n, u), (b_h, b_w, _, v) = a_HWNU.shape, b_HWNV.shape
    block_u, block_v, block_p, warps, stages = _outer_blocks(a_HWNU.dtype, u, v)
    parts = triton.cdiv(a_h * a_w, PIXELS_PER_PART)
    sums = a_HWNU.new_empty(parts, n, k, k, u, v, dtype=torch.float32)
    grid = (k * k * triton.cdiv(u, block_u) * triton.cdiv(v, block_v), n, parts)
    _outer[grid](
        a_HWNU, b_HWNV, sums, a_h, a_w, b_h, b_w, u, v, k, pad,
        *a_HWNU.stride()[:3], *b_HWNV.stride()[:3], n * k * k * u * v,
        stride, is_turned, PIXELS_PER_PART, block_u, block_v, block_p, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return sums[0] if parts == 1 else sums.sum(0)


def _blocks(dtype: torch.dtype, o: int, c: int) -> tuple[int, int, int, int, int]:
    """Block sizes (pixels, output channels, channels), warps and stages."""
    block_o = max(16, min(128, triton.next_power_of_2(o)))
    block_c = max(16, min(64, triton.next_power_of_2(c)))
    if dtype == torch.float32:
        return 64, min(64, block_o), min(16, block_c), 4, 3
    return 128, block_o, block_c, 4, 3


def _outer_blocks(dtype: torch.dtype, u: int, v: int) -> tuple[int, int, int, int, int]:
    """Block sizes (U, V, pixels), warps and stages."""
    block_u, block_v = (max(16, min(128, triton.next_power_of_2(size))) for size in (u, v))
    if dtype == torch.float32:
        return min(64, block_u), min(64, block_v), 16, 4, 3
    return block_u, block_v, 64, 4, 3


@triton.jit(do_not_specialize=["in_h", "in_w", "out_h", "out_w", "kh", "kw", "pad"])
def _gather(
    x, w, b, y, in_h, in_w, out_h, out_w, C, D, kh, kw, pad,
    x_h, x_w, x_n, w_n, w_i, w_j, w_c, w_o, y_h, y_w, y_n,
    STRIDE: tl.constexpr, IS_TURNED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RELU: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1)
    o_blocks = tl.cdiv(D, BLOCK_O)
    p = tl.program_id(0) // o_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    o = tl.program_id(0) % o_blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    c = tl.arange(0, BLOCK_C)
    h, col = p // out_w, p % out_w
    x_first = x + n * x_n + c[None, :]
    w_first = w + n * w_n + c[:, None] * w_c + o[None, :] * w_o
    c_blocks = tl.cdiv(C, BLOCK_C)
    total = tl.zeros((BLOCK_P, BLOCK_O), dtype=tl.float32)
    for step in range(kh * kw * c_blocks):  # one loop over taps and channels, for the loads' pipeline
        tap, c_0 = step // c_blocks, step % c_blocks * BLOCK_C
        i, j = tap // kw, tap % kw
        r, q = STRIDE * h + i - pad, STRIDE * col + j - pad
        if IS_TURNED:
            i, j = kh - 1 - i, kw - 1 - j
        is_inside = (r >= 0) & (r < in_h) & (q >= 0) & (q < in_w) & (h < out_h)
        x_mask = is_inside[:, None] & (c_0 + c < C)[None, :]
        w_mask = (c_0 + c < C)[:, None] & (o < D)[None, :]
        x_tile = tl.load(x_first + (r * x_h + q * x_w)[:, None] + c_0, mask=x_mask, other=0.0)
        w_tile = tl.load(w_first + (i * w_i + j * w_j + c_0 * w_c), mask=w_mask, other=0.0)
        total = tl.dot(x_tile, w_tile, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(b + n * D + o, mask=o < D, other=0.0).to(tl.float32)[None, :]
    if HAS_RELU:
        total = tl.where(total < 0, 0.0, total)  # NaN stays NaN
    y_mask = (h < out_h)[:, None] & (o < D)[None, :]
    tl.store(y + (h * y_h + col * y_w)[:, None] + n * y_n + o[None, :], total.to(y.dtype.element_ty), mask=y_mask)


@triton.jit(do_not_specialize=["a_h", "a_w", "b_h", "b_w", "k", "pad"])
def _outer(
    a, b, d, a_h, a_w, b_h, b_w, U, V, k, pad, a_sh, a_sw, a_sn, b_sh, b_sw, b_sn, d_part,
    STRIDE: tl.constexpr, IS_TURNED: tl.constexpr, PART: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    n, part = tl.program_id(1), tl.program_id(2)
    v_blocks, u_blocks = tl.cdiv(V, BLOCK_V), tl.cdiv(U, BLOCK_U)
    v = tl.program_id(0) % v_blocks * BLOCK_V + tl.arange(0, BLOCK_V)
    u = tl.program_id(0) // v_blocks % u_blocks * BLOCK_U + tl.arange(0, BLOCK_U)
    tap = tl.program_id(0) // (v_blocks * u_blocks)
    i, j = tap // k, tap % k
    num_pixels = tl.minimum(a_h * a_w - part * PART, PART)
    total = tl.zeros((BLOCK_U, BLOCK_V), dtype=tl.float32)
    for first in range(0, num_pixels, BLOCK_P):
        p = part * PART + first + tl.arange(0, BLOCK_P)
        h, col = p // a_w, p % a_w
        r, q = STRIDE * h + i - pad, STRIDE * col + j - pad
        a_mask = (u < U)[:, None] & (h < a_h)[None, :]
        b_mask = ((r >= 0) & (r < b_h) & (q >= 0) & (q < b_w) & (h < a_h))[:, None] & (v < V)[None, :]
        a_tile = tl.load(a + n * a_sn + u[:, None] + (h * a_sh + col * a_sw)[None, :], mask=a_mask, other=0.0)
        b_tile = tl.load(b + n * b_sn + (r * b_sh + q * b_sw)[:, None] + v[None, :], mask=b_mask, other=0.0)
        total = tl.dot(a_tile, b_tile, total, input_precision="ieee")
    if IS_TURNED:
        tap = k * k - 1 - tap
    d_first = d + part.to(tl.int64) * d_part + (n * k * k + tap).to(tl.int64) * U * V
    tl.store(d_first + u[:, None] * V + v[None, :], total, mask=(u < U)[:, None] & (v < V)[None, :])
