"""Reads a network's weights from whatever file a trainer left, without running anything of the file.

The file may be a state dict, a dictionary that holds one beside an optimiser and settings, or a whole pickled module.
Of all mappings of names to tensors in it, the one is taken that holds most of the network's own names.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dgn.errors import WeightsMismatch
from dgn.networks.standins import LEGACY_START, StandIn, Unreadable, load_inertly, module_state
from dgn.text import plural, printable

Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]
MAX_WRAPPERS = 3  # containers around the weights
MAX_SHOWN = 3  # names in a message
MAX_CHARS = 80  # in a name in a message
MAX_REPEATED = 10**8  # values of a tensor that has more of them than its storage, as a file of bytes can claim
_ZIP = b"PK\x03\x04"
_AVERAGES = {"ema", "swa", "avg", "average", "averaged", "shadow", "momentum", "teacher"}
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2}
_INTEGERS = {
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64
}  # fmt: skip
_SAVE = "in the program that wrote it, call torch.save(model.state_dict(), 'weights.pth')"
_STARTS = {  # what files begin with that hold something else
    b"version https://git-lfs": ("a pointer of Git LFS without the file's content", "fetch it with `git lfs pull`"),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file, as Keras and TensorFlow write them", "give weights that PyTorch saved"),
    b"\x93NUMPY": ("an array of NumPy", "give weights that PyTorch saved"),
    b"GGUF": ("a GGUF file of llama.cpp", "give weights that PyTorch saved"),
    b"\x1f\x8b": ("compressed with gzip", "unpack it first"),
}
_ONNX = re.compile(rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]")  # its version's number, then another field
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")


@dataclass(frozen=True)
class Checkpoint:
    """A network's weights out of a file, on the CPU.

    Args:
        state: names -> tensors of float32, of integers or of booleans; floating ones are finite. It has the attribute
            `_metadata`, the versions of the modules by which `load_state_dict` converts old weights, if the file has.
        remarks: at most one line for people: where in the file the weights were and what was left out.
    """

    state: dict[str, Tensor]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Mapping:
    """Names and tensors somewhere in the file."""

    at: tuple[str, ...]  # keys that lead to it
    tensors: Mapping[str, Tensor]
    versions: Mapping[str, Mapping[str, int]]  # of the modules by their names
    is_module: bool = False  # a pickled module, not a state dict


@dataclass(frozen=True)
class _Choice:
    """One way to read the network's weights from the file."""

    mapping: _Mapping
    stripped: str  # prefix in the file that the network's names lack
    added: str  # prefix of the network's names that the file's lack
    num_covered: int  # of the network's names

    @property
    def rank(self) -> tuple[int, bool, int, int]:
        """Higher is better: names, then plain weights before averages, then names as they are."""
        words = re.split(r"[._]", ".".join((*self.mapping.at, self.stripped)).lower())
        return self.num_covered, _AVERAGES.isdisjoint(words), -len(self.added), -len(self.stripped)

    def renamed(self, name: str) -> str | None:
        """The network's name for one of the file's; None if it lies outside the prefix."""
        return f"{self.added}{name[len(self.stripped) :]}" if name.startswith(self.stripped) else None

    def __str__(self) -> str:
        return _shown("/".join(self.mapping.at) or self.stripped) if self.mapping.at or self.stripped else "the top"


def read_checkpoint(path: Path, expected: Collection[str], what: str, convert: Convert | None = None) -> Checkpoint:
    """The weights of a network from a file that exists, whichever of the known trainers wrote it.

    Args:
        expected: names of the network's own state dict, by which the weights are found in the file.
        what: the network's name, for messages.
        convert: changes the names that the network's authors gave their weights into the expected ones.

    Raises: WeightsMismatch.
    """
    if known := _known_as(path):
        is_a, advice = known
        raise WeightsMismatch(f"{path} is {is_a}: expected a file of weights for {what}; {advice}")
    mappings = _read(path, what)
    beginnings = _beginnings(expected)
    choices = [choice for mapping in mappings for choice in _choices(mapping, beginnings)]
    best = max(choices, key=lambda choice: choice.rank, default=None)  # the first of equals
    if convert and mappings and (best is None or best.num_covered < len(expected)):
        source = best.mapping if best else max(mappings, key=lambda mapping: len(mapping.tensors))
        others = [choice for mapping in _converted(source, convert) for choice in _choices(mapping, beginnings)]
        other = max(others, key=lambda choice: choice.rank, default=None)
        if other and (best is None or other.num_covered > best.num_covered):
            best, choices = other, [other]
    if best is None:
        most = max((mapping.tensors for mapping in mappings), key=len, default={})
        names = f" ({_listed(most)})" if most else ""
        raise WeightsMismatch(
            f"{path} holds no weights of {what}: it has {plural(len(most), 'tensor')}{names}, "
            f"expected names such as {_listed(expected)}; give weights of {what}"
        )
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, tensor in best.mapping.tensors.items():
        if (renamed := best.renamed(name)) is not None:
            state[renamed] = _checked(path, name, tensor)
    if best.mapping.versions:
        state._metadata = _renamed_versions(best)  # type: ignore[attr-defined]
    return Checkpoint(state, _remarks(best, choices))


def _known_as(path: Path) -> tuple[str, str] | None:
    """What the file is, and what to do with it, if it is known to hold something other than weights to read."""
    folder = path if path.is_dir() else path.parent
    if (folder / ".metadata").is_file() and (path.is_dir() or path.name == ".metadata" or path.suffix == ".distcp"):
        convert = (
            "from torch.distributed.checkpoint import format_utils; "
            f"format_utils.dcp_to_torch_save({str(folder)!r}, 'weights.pth')"
        )
        return "a checkpoint of torch.distributed.checkpoint", f"make one file of its folder: {convert}"
    if path.is_dir():
        return "a folder", "give the file in it that holds the weights"
    if not path.stat().st_size:
        return "empty", "copy it again"
    with path.open("rb") as file:
        start = file.read(4096)
    for begins, known in _STARTS.items():
        if start.startswith(begins):
            return known
    if start.startswith(_ZIP):
        return _known_zip(path)
    if start.lstrip().lower().startswith(_PAGES):
        return "a web page instead of the file that it links to", "download the file itself"
    if start.lstrip().startswith(b"{") and b'"weight_map"' in (content := path.read_bytes()):
        return "the list of the files into which weights were split", f"join them: {_join(path, content)}"
    if path.suffix == ".onnx" or _ONNX.match(start):
        return "a model of ONNX", "give the weights from which it was exported"
    return None


def _known_zip(path: Path) -> tuple[str, str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
    except Exception as error:  # a damaged directory raises more than BadZipFile: text errors, missing compressions
        return f"not a whole weights file ({_shown(str(error))})", "copy it again"
    if "constants.pkl" in names:
        convert = f"torch.save(torch.jit.load({str(path)!r}, map_location='cpu').state_dict(), 'weights.pth')"
        return "a TorchScript archive", f"make a state dict of it: import torch; {convert}"
    if "archive_format" in names or "serialized_exported_program.json" in names:
        convert = f"torch.save(torch.export.load({str(path)!r}).state_dict, 'weights.pth')"
        return "an archive of torch.export", f"make a state dict of it: import torch; {convert}"
    if "model.weights.h5" in names:
        return "a model of Keras", "give weights that PyTorch saved"
    if "data.pkl" not in names:
        return f"a zip archive without weights ({_listed(names)})", "give the file that torch.save wrote"
    return None


def _join(path: Path, index: bytes) -> str:
    """The line of Python that makes one file of those in the index."""
    if b".safetensors" in index:
        save, load, pattern, joined = "save_file", "load_file", "*-of-*.safetensors", "weights.safetensors"
        module = "safetensors.torch"
    else:
        save, load, pattern, joined, module = "save", "load", "*-of-*.bin", "weights.pth", "torch"
    parts = f"for part in glob.glob({str(path.parent / pattern)!r}) for name, tensor in {module}.{load}(part).items()"
    return f"import glob, {module}; {module}.{save}({{name: tensor {parts}}}, '{joined}')"


def _read(path: Path, what: str) -> list[_Mapping]:
    """All mappings of names to tensors in the file. Raises: WeightsMismatch."""
    with path.open("rb") as file:
        start = file.read(len(LEGACY_START))
    try:
        if start[8:9] == b"{":  # after the header's length
            return [_Mapping((), load_file(path), {})]
        if start.startswith(_ZIP):
            _check_sums(path)
        if start.startswith((_ZIP, LEGACY_START)):
            return list(_mappings(load_inertly(path)))
        kind = "a pickle that torch.save did not write" if start[:1] == b"\x80" else "neither safetensors nor torch's"
        raise Unreadable(f"it is {kind}")
    except Unreadable as error:
        problem = f"{path} cannot be read safely as weights of {what}: {printable(error)}; {_SAVE}"
        raise WeightsMismatch(problem) from error
    except Exception as error:  # torch's and pickle's own differ between versions; here any of them means a bad file
        reason = type(error).__name__
        is_cut = isinstance(error, SafetensorError | EOFError | OSError | RuntimeError | zipfile.BadZipFile)
        if is_cut and "weights_only" not in str(error):  # which would be torch's advice to read it without safety
            reason = _shown(str(error).partition("\n")[0] or reason)
            raise WeightsMismatch(f"{path} is not a whole weights file for {what}: {reason}; copy it again") from error
        raise WeightsMismatch(
            f"{path} cannot be read safely as weights of {what}: expected .safetensors or a file of torch.save "
            f"({reason}); {_SAVE}"
        ) from error


def _check_sums(path: Path) -> None:
    """Compares every part of a zip with its check sum, which PyTorch does not: a changed weight would be read as it is.

    Raises: OSError, RuntimeError; zipfile.BadZipFile.
    """
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.CRC:  # 0 where torch.save was told to leave it out
                with archive.open(part) as file:
                    while file.read(1 << 20):
                        pass


def _mappings(content: object) -> Iterator[_Mapping]:
    """Those at the top first. Raises: Unreadable."""
    seen: set[int] = set()
    waiting: deque[tuple[tuple[str, ...], object]] = deque([((), content)])
    while waiting:
        at, value = waiting.popleft()
        if id(value) in seen or len(at) > MAX_WRAPPERS:
            continue
        seen.add(id(value))
        if isinstance(value, StandIn) and value.is_module:
            yield _Mapping(at, module_state(value), {}, is_module=True)
            continue
        items = _items(value)
        tensors = {name: tensor for name, tensor in items if isinstance(name, str) and isinstance(tensor, Tensor)}
        if tensors:
            yield _Mapping(at, tensors, _versions(getattr(value, "_metadata", None)))
        for name, child in items:
            if isinstance(child, dict | list | tuple | StandIn):
                waiting.append(((*at, str(name)) if name is not None else at, child))


def _items(value: object) -> list[tuple[object, object]]:
    """What a container of the file holds, with its key, which is None for what an object was made from."""
    if isinstance(value, StandIn):
        return [*dict.items(value.attributes), *((None, argument) for argument in value.arguments)]
    if isinstance(value, dict):
        return [*dict.items(value)]  # not its own method, which the file's state of an OrderedDict can hide
    return [*enumerate(value)] if isinstance(value, list | tuple) else []


def _versions(metadata: object) -> dict[str, dict[str, int]]:
    """The modules' versions, which is all that `load_state_dict` reads, as far as they are what torch writes."""
    return {
        name: {"version": entry["version"]}
        for name, entry in (dict.items(metadata) if isinstance(metadata, dict) else ())
        if isinstance(name, str) and isinstance(entry, dict) and isinstance(entry.get("version"), int)
    }


def _prefixes(name: str) -> Iterator[str]:
    """`""`, `"a."` and `"a.b."` of `"a.b.c"`."""
    yield ""
    yield from (name[: dot.end()] for dot in re.finditer(r"\.", name))


def _beginnings(expected: Collection[str]) -> dict[str, set[str]]:
    """Prefixes that at least half of the names have, and the names without them; the empty one is the first."""
    counts = Counter(prefix for name in expected for prefix in _prefixes(name))
    common = ["", *(prefix for prefix, num in counts.items() if prefix and 2 * num >= len(expected))]
    return {prefix: {name.removeprefix(prefix) for name in expected if name.startswith(prefix)} for prefix in common}


def _choices(mapping: _Mapping, beginnings: Mapping[str, set[str]]) -> list[_Choice]:
    """Each way to match the mapping's names with the network's by taking a prefix off, putting one on, or both."""
    covered = Counter(
        (prefix, added)
        for added, wanted in beginnings.items()
        for name in mapping.tensors
        for prefix in _prefixes(name)
        if name[len(prefix) :] in wanted
    )
    return [_Choice(mapping, prefix, added, num) for (prefix, added), num in covered.items()]


def _converted(mapping: _Mapping, convert: Convert) -> Iterator[_Mapping]:
    """The mapping under converted names, for each prefix that a trainer may have put in front of the authors'."""
    plain = {name: tensor for name, tensor in mapping.tensors.items() if not _problem(tensor)}
    for prefix in _beginnings(plain):
        inner = {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name.startswith(prefix)}
        state = convert(inner)
        yield _Mapping(mapping.at, state, _versions(getattr(state, "_metadata", None)))


def _renamed_versions(best: _Choice) -> OrderedDict[str, Mapping[str, int]]:
    renamed = {best.renamed(f"{name}." if name else ""): entry for name, entry in best.mapping.versions.items()}
    return OrderedDict((name.removesuffix("."), entry) for name, entry in renamed.items() if name is not None)


def _checked(path: Path, name: str, tensor: Tensor) -> Tensor:
    """The tensor as plain numbers, floating ones as float32, in memory of its own: the file may change later.

    Raises: WeightsMismatch.
    """
    if problem := _problem(tensor):
        raise WeightsMismatch(
            f"{path}: the tensor {_shown(name)} {problem}: expected plain numbers; convert it before saving"
        )
    tensor = tensor.detach()
    if tensor.dtype in _INTEGERS:
        return tensor.clone()
    tensor = tensor.to(torch.float32, copy=True)
    check_finite(tensor, f"{path}: the tensor {_shown(name)}")
    return tensor


def _problem(tensor: Tensor) -> str:
    """Why a tensor is not one of plain numbers; empty if it is."""
    # Once torch.distributed is imported, torch takes a few more classes for safe.
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"is a {type(tensor).__name__}"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return "is sparse or nested"
    if tensor.is_meta:
        return "has no values"
    if tensor.dtype not in _FLOATS | _INTEGERS:
        return f"is of type {tensor.dtype}"
    if tensor.numel() > MAX_REPEATED and tensor.nbytes > tensor.untyped_storage().nbytes():
        return "claims more values than the file has"
    return ""


def check_finite(tensor: Tensor, what: str) -> None:
    """Raises: WeightsMismatch for NaN or infinity in the tensor, which messages call `what`."""
    if not (is_finite := torch.isfinite(tensor)).all():
        bad = f"{tensor.numel() - int(is_finite.sum()):,} of {plural(tensor.numel(), 'value')}"
        raise WeightsMismatch(
            f"{what} has NaN or infinity in {bad}: expected finite numbers within float32; give weights from before "
            "the training diverged"
        )


def _remarks(best: _Choice, choices: list[_Choice]) -> tuple[str, ...]:
    kind = "weights of a pickled module" if best.mapping.is_module else "weights"
    parts = [f"{kind} under {_shown('/'.join(best.mapping.at))}" if best.mapping.at else kind]
    if best.stripped:
        parts.append(f"without the prefix {_shown(best.stripped)}")
    if best.added:
        parts.append(f"with the prefix {_shown(best.added)} in front")
    outside = [name for name in best.mapping.tensors if best.renamed(name) is None]
    if outside:
        parts.append(f"without {plural(len(outside), 'other tensor')} ({_listed(outside)})")
    rivals = [
        str(choice)
        for choice in choices
        if choice is not best and (choice.num_covered, choice.added) == (best.num_covered, best.added)
    ]
    line = ", ".join(parts)
    if rivals:
        line += f"; {' and '.join(rivals[:MAX_SHOWN])} {'is' if len(rivals) == 1 else 'are'} there too"
    return (line,) if line != "weights" else ()


def _shown(name: str) -> str:
    """A name from the file on one line, in quotes, cut if long."""
    name = printable(name[:MAX_CHARS]) + ("..." if len(name) > MAX_CHARS else "")
    return f"'{name}'"


def _listed(names: Collection[str]) -> str:
    """The first names."""
    first = ", ".join(_shown(name) for name in [*names][:MAX_SHOWN])
    return f"{first}, ..." if len(names) > MAX_SHOWN else first
