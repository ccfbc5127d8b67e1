"""What a network returns: a tensor, several, or a dictionary of them, as its author pleased."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def named_outputs(result: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a network's output with their names: keys, or numbers in a tuple, joined by dots."""
    if isinstance(result, Tensor):
        if result.ndim:
            yield name, result
        return
    if isinstance(result, Mapping):
        parts = [(str(key), value) for key, value in result.items()]
    elif is_dataclass(result):
        parts = [(one.name, getattr(result, one.name)) for one in fields(result)]
    elif isinstance(result, list | tuple):
        parts = [
            (str(key), value) for key, value in zip(getattr(result, "_fields", range(len(result))), result, strict=True)
        ]
    else:
        parts = []
    for key, value in parts:
        yield from named_outputs(value, f"{name}.{key}" if name else key)


def class_values(result: Any, name: str) -> Tensor:
    """The classes' values in a network's output, (N, classes); maps are averaged over space, one value is one class.

    Args:
        name: of the tensor, as `named_outputs` gives it.
    """
    values = dict(named_outputs(result))[name]
    return values[:, None] if values.ndim == 1 else values.flatten(2).mean(2) if values.ndim > 2 else values
