"""Number formats that the method computes in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@contextmanager
def exact_float32() -> Iterator[None]:
    """float32 arithmetic in full precision, whatever the caller allows.

    By default cuDNN's convolutions round their inputs to TF32, with 10 bits of mantissa. PyTorch's switches can have
    the same done to matrix products, also on a CPU, and down to bfloat16.
    """
    backends: Any = torch.backends
    switches = [
        backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul,
        backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul,
    ]  # fmt: skip
    allowed = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, allowed, strict=True):
            switch.fp32_precision = "none"  # follows the switch above it, as before if that gives the same
            if switch.fp32_precision != precision:
                switch.fp32_precision = precision
