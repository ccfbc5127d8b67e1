"""AdaMax in one pass over memory: the stock one reads and writes a target's variables some twenty times on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


class Adamax(torch.optim.Optimizer):
    """`torch.optim.Adamax` on a GPU. It counts its steps on the device, so that a graph can replay them."""

    def __init__(self, variables: Iterable[Tensor], lr: float, betas: tuple[float, float], eps: float):
        super().__init__(variables, {"lr": lr, "betas": betas, "eps": eps})
        like = self.param_groups[0]["params"][0]
        self.steps = torch.zeros((), dtype=torch.float64, device=like.device)
        self.constants = torch.tensor([1 - betas[0], betas[1], eps], dtype=like.dtype, device=like.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            self.steps += 1
            rate = (group["lr"] / (1 - group["betas"][0] ** self.steps)).to(self.constants)
            for variable in group["params"]:
                if variable.grad is None:
                    continue
                state = self.state[variable]
                if not state:
                    state["mean"], state["norm"] = torch.zeros_like(variable), torch.zeros_like(variable)
                # A flat walk through memory: all four must lie alike, as autograd's gradients do but for axes of 1.
                grad = variable.grad
                if grad.stride() != variable.stride():
                    grad = torch.empty_like(variable).copy_(grad)
                n = variable.numel()
                _adamax[(triton.cdiv(n, BLOCK),)](
                    variable, grad, state["mean"], state["norm"], rate, self.constants, n, BLOCK
                )


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
