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
    """`torch.optim.Adamax` for float32 on a GPU. It counts its steps on the device, so that a graph can replay them."""

    def __init__(self, variables: Iterable[Tensor], lr: float, betas: tuple[float, float], eps: float):
        super().__init__(variables, {"lr": lr, "betas": betas, "eps": eps})
        self.steps: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            beta_1, beta_2 = group["betas"]
            if self.steps is None:
                self.steps = torch.zeros((), dtype=torch.float64, device=group["params"][0].device)
            self.steps += 1
            rate = (group["lr"] / (1 - beta_1**self.steps)).float()
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
                    variable, grad, state["mean"], state["norm"], rate, n, beta_1, beta_2, group["eps"], BLOCK
                )


@triton.jit
def _adamax(  # type: ignore[no-untyped-def]
    variable, grad, mean, norm, rate, n, beta_1, beta_2, eps, BLOCK: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    g = tl.load(grad + i, mask=mask, other=0.0)
    m = tl.load(mean + i, mask=mask, other=0.0)
    m += (g - m) * (1 - beta_1)
    u = tl.maximum(tl.load(norm + i, mask=mask, other=0.0) * beta_2, tl.abs(g) + eps)
    v = tl.load(variable + i, mask=mask, other=0.0) - tl.load(rate) * m / u
    tl.store(mean + i, m, mask=mask)
    tl.store(norm + i, u, mask=mask)
    tl.store(variable + i, v, mask=mask)
