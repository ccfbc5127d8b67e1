"""AdaMax in one pass over memory: the stock one reads and writes a target's variables some twenty times on a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dgn import adamax

BLOCK = 2048


class Adamax(adamax.Adamax):
    """`torch.optim.Adamax` on a GPU. It counts its steps on the device, so that a graph can replay them."""

    def __init__(self, variables: Iterable[Tensor], lr: float, betas: tuple[float, float], eps: float):
        super().__init__(variables, lr, betas, eps)
        like = self.param_groups[0]["params"][0]
        self.steps = torch.zeros((), dtype=torch.float64, device=like.device)
        self.constants = torch.tensor([1 - betas[0], betas[1], eps], dtype=like.dtype, device=like.device)

    def _rate(self, group: dict[str, Any]) -> Any:
        return super()._rate(group).to(self.constants)

    def _walk(self, group: dict[str, Any], rate: Any, *laid_out_alike: Tensor) -> None:
        n = laid_out_alike[0].numel()
        grid = (triton.cdiv(n, BLOCK),)
        _adamax[grid](*laid_out_alike, rate, self.constants, n, BLOCK)


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
