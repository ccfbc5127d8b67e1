"""PyTorch's compiler, left out of dgn's own processes until something needs it.

dgn compiles nothing. Even so, PyTorch (2.15) imports its compiler when the first optimiser is made and when the first
sum runs on the meta device, only to mark functions that it must not compile. That takes more than a second. torchvision
(0.29) imports the compiler for a function that its detection operations use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
UTILITIES = "torch._dynamo.utils"


def leave_out_compiler() -> None:
    """Puts stand-ins in the compiler's place, unless it is there. It replaces them once it is asked for anything but
    to leave a function of PyTorch alone."""
    if COMPILER in sys.modules:
        return
    stand_ins = {name: ModuleType(name) for name in (COMPILER, UTILITIES)}
    left_alone: list[Any] = []

    def real(module: str, name: str) -> Any:
        if name.startswith("__") and (module, name) != (COMPILER, "__path__"):  # `inspect` asks all modules for theirs
            raise AttributeError(name)
        for stood_for, stand_in in stand_ins.items():
            if sys.modules.get(stood_for) is stand_in:
                del sys.modules[stood_for]
        found = getattr(import_module(module), name)
        while left_alone:  # PyTorch remembers the answer for each function, and now asks again
            vars(left_alone.pop()).pop("__dynamo_disable", None)
        return found

    def disable(*given: Any, **named: Any) -> Any:
        function = given[0] if given else None
        if not getattr(function, "__module__", "").startswith("torch."):
            return real(COMPILER, "disable")(*given, **named)
        left_alone.append(function)
        return function

    for name, stand_in in stand_ins.items():
        stand_in.__spec__ = ModuleSpec(name, None)
    stand_ins[COMPILER].__dict__.update(
        disable=disable,
        graph_break=lambda msg="": None,  # of a graph that nobody makes
        utils=stand_ins[UTILITIES],
        __getattr__=lambda name: real(COMPILER, name),
    )
    stand_ins[UTILITIES].__dict__.update(
        is_compile_supported=lambda device: real(UTILITIES, "is_compile_supported")(device),
        __getattr__=lambda name: real(UTILITIES, name),
    )
    sys.modules |= stand_ins
