"""AdaMax, as a CPU does it fastest: one block of the variables after another, so that what a step of it writes the next
finds in cache. What a GPU does in its place is in `dgn/adamax_gpu.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

BLOCK = 2**18  # elements; measured


class Adamax(torch.optim.Optimizer):
    """`torch.optim.Adamax`, bit for bit."""

    def __init__(self, variables: Iterable[Tensor], lr: float, betas: tuple[float, float], eps: float):
        super().__init__(variables, {"lr": lr, "betas": betas, "eps": eps})
        self.steps: Any = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        self.steps += 1
        for group in self.param_groups:
            rate = self._rate(group)
            for variable in (variable for variable in group["params"] if variable.grad is not None):
                state = self.state[variable]
                if not state:
                    state["mean"], state["norm"] = torch.zeros_like(variable), torch.zeros_like(variable)
                # A flat walk through memory: all four must lie alike, as autograd's gradients do but for axes of 1.
                grad = variable.grad
                if grad.stride() != variable.stride():
                    grad = torch.empty_like(variable).copy_(grad)
                self._walk(group, rate, variable, grad, state["mean"], state["norm"])

    def _rate(self, group: dict[str, Any]) -> Any:
        return group["lr"] / (1 - group["betas"][0] ** self.steps)

    def _walk(self, group: dict[str, Any], rate: Any, *laid_out_alike: Tensor) -> None:
        """Changes a variable and its state: variable, gradient (which is used up), mean, norm."""
        (beta_1, beta_2), eps = group["betas"], group["eps"]
        for v, g, mean, norm in zip(*map(_blocks, laid_out_alike), strict=True):
            mean.lerp_(g, 1 - beta_1)
            torch.maximum(norm.mul_(beta_2), g.abs_().add_(eps), out=norm)
            v.addcdiv_(mean, norm, value=-rate)


def _blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """The elements in the order in which they lie in memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,)).split(BLOCK)
