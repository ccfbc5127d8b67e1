"""The CUDA engine: Triton kernels with weights per target, fused steps, updates replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx

from dgn.engine.cuda import fused, stacked
from dgn.engine.cuda.adamax import Adamax
from dgn.engine.cuda.graphs import Replayed
from dgn.engine.fusion import fuse
from dgn.method.architecture import Architecture, Weights
from dgn.method.engine import BETAS, EPS, Engine, Update
from dgn.method.generator import generate_shared

MEMORY_SHARE = 0.8  # of the free memory, which batches may fill


class CudaEngine(Engine):
    """One GPU. In float64, which only tests use, it draws with stock PyTorch."""

    is_gpu = True
    usual_batch_size = None
    tuning_batch_sizes = (8, 16, 32, 64, 128)
    updates_per_wait = 8
    scoring_batch_size = 64

    def __init__(self, device: torch.device):
        super().__init__(torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index))
        self.name = self.model = torch.cuda.get_device_name(self.device)
        with self.selected():
            self.has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)

    def draw(self, architecture: Architecture, own: Weights, shared: Weights, features_NK: Tensor) -> Tensor:
        if "conv0.weight" not in own:
            return generate_shared(architecture, shared, features_NK, stacked.shared_statistics)
        if features_NK.dtype == torch.float64:
            return super().draw(architecture, own, shared, features_NK)
        return stacked.generate(architecture, own, features_NK)

    def lay_out(self, stacked_weights: Tensor) -> Tensor:
        return stacked.lay_out(stacked_weights)

    def adamax(self, variables: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        return Adamax(variables, learning_rate, BETAS, EPS)

    def set_learning_rate(self, optimiser: torch.optim.Optimizer, rate: float) -> None:
        for group in optimiser.param_groups:
            group["lr"].fill_(rate)

    def repeated(self, update: Update) -> Update:
        return Replayed(update, self.device)

    def fuse(self, network: fx.GraphModule) -> fx.GraphModule:
        is_bfloat16 = any(weight.dtype == torch.bfloat16 for weight in network.parameters())
        return fuse(network, fused.convolution) if is_bfloat16 else network

    def selected(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.device)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def release_memory(self) -> None:
        torch.cuda.empty_cache()

    def free_bytes(self) -> float:
        free, _ = torch.cuda.mem_get_info(self.device)
        free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return MEMORY_SHARE * free

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)
