"""Reads what `torch.save` wrote without running the file's code: inert objects stand for whatever is not a tensor.

`torch.load(weights_only=True)` refuses a file that names any class or function which torch has not approved. Here each
such name gets a stand-in, under the name by which the file calls it, so that nothing of the file is imported or called.

    torch.load's unpickler asks for     it gets
    a class or function                 StandIn, which keeps what it is given
    one whose object is appended to     StandInList: torch appends to plain lists only
    one whose object's items are set    StandInDict: torch sets items of plain dicts only
    a subclass of Tensor                torch.Tensor
    `getattr`, for a class in a class   stand_in_attribute, which gives StandIn
"""

from __future__ import annotations

import io
import pickletools
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch._utils import IMPORT_MAPPING, NAME_MAPPING

LEGACY_START = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e8002")  # torch.save before 1.6: its magic number, pickled
PROTOCOL = 2  # torch.save's default, and the only one whose instructions torch's safe unpickler knows
BLOCKED = ("nt", "os", "posix", "sys")  # torch refuses names of these modules whatever stands in for them
MAX_DEPTH = 100  # of modules in modules, and of tuples in tuples: deeper ones overflow C's stack when they are hashed
MAX_PARTS = 1_000_000  # of a tuple or of a pickled module, counted as often as they are shared
_LOCK = threading.Lock()  # torch keeps its list of approved names in one global set


class Unreadable(Exception):
    """The file cannot be read without running its code, or is not made as torch makes its files."""


class StandIn:
    """An object of the file, of which nothing is run: what it was made from, and the state that it was given."""

    __slots__ = ("arguments", "state")

    arguments: tuple[object, ...]
    state: object

    def __new__(cls, *arguments: object) -> StandIn:
        made = super().__new__(cls)  # pickle's NEWOBJ calls no `__init__`
        made.arguments, made.state = arguments, None
        return made

    def __setstate__(self, state: object) -> None:
        self.state = state

    @property
    def attributes(self) -> dict[Any, Any]:
        """The object's `__dict__`, if the file has it: its state, or where that is a pair with slots, the first half.

        A `torch.fx.GraphModule` has no state and is made from its `__dict__` instead.
        """
        for state in (self.state, *self.arguments[:1]):
            state = state[0] if isinstance(state, tuple) and state else state
            if isinstance(state, dict):
                return state
        return {}

    @property
    def is_module(self) -> bool:
        """Whether the object was a `torch.nn.Module`."""
        return all(isinstance(self.attributes.get(part), dict) for part in ("_parameters", "_buffers", "_modules"))


class StandInList:
    def __new__(cls, *_: object) -> list[object]:  # type: ignore[misc]
        return []


class StandInDict:
    def __new__(cls, *_: object) -> OrderedDict[object, object]:  # type: ignore[misc]
        return OrderedDict()  # not a dict, which torch gives no state


def stand_in_attribute(*_: object) -> type[StandIn]:
    return StandIn


_Role = Callable[..., Any]
_Pair = _Role | tuple[_Role, str]  # as torch calls it


def load_inertly(path: Path) -> object:
    """What a file of `torch.save` holds, on the CPU: tensors as they are, plain containers, and stand-ins for the rest.

    Tensors share the file's pages where it is neither compressed nor of torch's format before 1.6.

    Raises: Unreadable, and whatever torch and pickle raise for damaged files.
    """
    is_zip = zipfile.is_zipfile(path)
    roles: dict[str, _Role] = {}
    if is_zip:
        # Not zipfile, which refuses files that were written with torch's set_crc32_options(False).
        _find_roles(io.BytesIO(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")), roles)
        with zipfile.ZipFile(path) as archive:
            is_mapped = all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
    else:
        with path.open("rb") as file:
            for _ in ("magic number", "protocol", "system", "object", "storages"):
                _find_roles(file, roles)
        is_mapped = False
    blocked = sorted(name for name in roles if name.rpartition(".")[0] in BLOCKED)
    if blocked:
        raise Unreadable(f"it names '{blocked[0]}', which can reach the system and which torch never reads")
    pairs: list[_Pair] = [(role, name) for name, role in {**roles, __name__: StandIn}.items()]
    with _LOCK, torch.serialization.safe_globals(pairs), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if is_mapped and path.suffix != ".safetensors":  # by which torch.load chooses another reader
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)


@dataclass(slots=True)
class _Item:
    """What is known of a value on pickle's stack without making it."""

    origin: str = ""  # the name of the class or function that made it, or that it is
    members: tuple[_Item, ...] = ()  # of a tuple
    depth: int = 0
    parts: int = 1


_PLAIN, _MARK, _MODULE = _Item(), _Item("a mark"), _Item("the text 'module'")


def _find_roles(file: IO[bytes], roles: dict[str, _Role]) -> None:
    """Adds each name in the next pickle of the file, with the stand-in that it needs. Makes none of its objects.

    Does what `torch.serialization.get_unsafe_globals_in_checkpoint` does, which reads no files of torch's old format
    and does not say what becomes of the objects.

    Raises: Unreadable.
    """
    stack: list[_Item] = []
    memo: dict[int, _Item] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "STOP":
                return
            case "PROTO":
                if argument != PROTOCOL:
                    raise Unreadable(f"it is a pickle of protocol {argument}, not {PROTOCOL}, which torch.save uses")
            case "GLOBAL":
                name = _name_today(*argument.split(" ", 1))
                roles.setdefault(name, stand_in_attribute if name == "builtins.getattr" else StandIn)
                stack.append(_Item(name))
            case "REDUCE" | "NEWOBJ":
                arguments, made_by = stack.pop(), stack.pop()
                if made_by.origin == "torch._tensor._rebuild_from_type_v2":
                    roles[arguments.members[1].origin] = Tensor
                stack.append(_Item(made_by.origin))
            case "BUILD":
                stack.pop()
            case "APPEND" | "APPENDS" | "SETITEM" | "SETITEMS":
                if opcode.name.endswith("S"):
                    _pop_to_mark(stack)
                else:
                    del stack[-1 if opcode.name == "APPEND" else -2 :]
                if roles.get(stack[-1].origin) is StandIn:
                    roles[stack[-1].origin] = StandInList if opcode.name.startswith("APPEND") else StandInDict
            case "TUPLE":
                stack.append(_tuple_of(_pop_to_mark(stack)))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                num = int(opcode.name[-1])
                stack[-num:] = [_tuple_of(stack[-num:])]
            case "MARK":
                stack.append(_MARK)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "BINPERSID":
                if _MODULE in stack[-1].members[:1]:
                    raise Unreadable("it is a whole module in torch's format before 1.6, which holds its class's code")
                stack[-1] = _PLAIN
            case "BINUNICODE" if argument == "module":  # not the name of a storage, to which torch's old format points
                stack.append(_MODULE)
            case _ if not opcode.stack_before and len(opcode.stack_after) == 1:  # a number, a text, an empty container
                stack.append(_PLAIN)
            case _:
                raise Unreadable(f"its pickle has {opcode.name}, which torch.save does not write")


def _name_today(module: str, name: str) -> str:
    """The name by which torch's safe unpickler asks for a class or function that Python 2 called otherwise."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _pop_to_mark(stack: list[_Item]) -> list[_Item]:
    items: list[_Item] = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _tuple_of(members: list[_Item]) -> _Item:
    depth = 1 + max((item.depth for item in members), default=0)
    parts = 1 + sum(item.parts for item in members)
    if depth > MAX_DEPTH or parts > MAX_PARTS:
        raise Unreadable("it has tuples in tuples without end")
    return _Item(members=tuple(members), depth=depth, parts=parts)


def module_state(module: StandIn) -> OrderedDict[str, Tensor]:
    """The state dict of a pickled module, in the order of `torch.nn.Module.state_dict`. Raises: Unreadable."""
    state: OrderedDict[str, Tensor] = OrderedDict()
    for num, (name, tensor) in enumerate(_named_tensors(module, "", 0)):
        if num > MAX_PARTS:
            raise Unreadable("its modules hold one another without end")
        if isinstance(tensor, Tensor):
            state[name] = tensor
    return state


def _named_tensors(module: object, prefix: str, depth: int) -> Iterator[tuple[str, object]]:
    """Names and tensors, and a None for each module, so that those without tensors count too."""
    yield prefix, None
    if not isinstance(module, StandIn) or not module.is_module:
        return
    if depth > MAX_DEPTH:
        raise Unreadable("its modules hold one another without end")
    attributes = module.attributes
    passing = attributes.get("_non_persistent_buffers_set")
    passing = passing if isinstance(passing, set) else set()
    for name, tensor in dict.items(attributes["_parameters"]):
        yield f"{prefix}{name}", tensor
    for name, tensor in dict.items(attributes["_buffers"]):
        if name not in passing:
            yield f"{prefix}{name}", tensor
    for name, child in dict.items(attributes["_modules"]):
        yield from _named_tensors(child, f"{prefix}{name}.", depth + 1)
