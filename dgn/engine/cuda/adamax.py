"""AdaMax in one pass over memory. On a GPU the stock one reads and writes a target's variables some twenty times."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


class Adamax(torch.optim.Optimizer):
    """`torch.optim.Adamax` on a GPU. Its steps and its learning rate are on the device, so that a CUDA graph can replay
    it while both change."""

    def __init__(self, variables: Iterable[Tensor], lr: float, betas: tuple[float, float], eps: float):
        super().__init__(variables, {"lr": lr, "betas": betas, "eps": eps})
        [group] = self.param_groups
        like = group["params"][0]
        group["step"] = torch.zeros((), dtype=torch.float64, device=like.device)
        group["lr"] = torch.tensor(lr, dtype=torch.float64, device=like.device)
        self.constants = torch.tensor([1 - betas[0], betas[1], eps], dtype=like.dtype, device=like.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        [group] = self.param_groups
        group["step"] += 1
        rate = (group["lr"] / (1 - group["betas"][0] ** group["step"])).to(self.constants)
        for variable in (variable for variable in group["params"] if variable.grad is not None):
            state = self.state[variable]
            if not state:
                state["exp_avg"], state["exp_inf"] = torch.zeros_like(variable), torch.zeros_like(variable)
            # The kernel walks through memory, so all four must have the same order. Autograd's gradients do, except
            # for the strides of axes of length 1.
            grad = variable.grad
            if grad.stride() != variable.stride():
                grad = torch.empty_like(variable).copy_(grad)
            n = variable.numel()
            tensors = (variable, grad, state["exp_avg"], state["exp_inf"])
            _adamax[(triton.cdiv(n, BLOCK),)](*tensors, rate, self.constants, n, BLOCK)


@triton.jit
def _adamax(variable, grad, mean, norm, rate, constants, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    g = tl.load(grad + i, mask=mask, other=0.0)
    m = tl.load(mean + i, mask=mask, other=0.0)
    m += (g - m) * tl.load(constants)
    u = tl.maximum(tl.load(norm + i, mask=mask, other=0.0) * tl.load(constants + 1), tl.abs(g) + tl.load(constants + 2))
    v = tl.load(variable + i, mask=mask, other=0.0) - tl.load(rate) * m / u
    tl.store(mean + i, m, mask=mask)
    tl.store(norm + i, u, mask=mask)
    tl.store(variable + i, v, mask=mask)
