"""What `dgn tune` measured, kept in a file of the user: the fastest settings by device model.

A hint for later runs. A run that settles batch size or precision itself ignores it.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dgn.errors import DgnError
from dgn.targets import MODES, Mode
from dgn.text import NOT_JSON, in_one_line

VERSION = 1  # of the file


@dataclass(frozen=True)
class Variant:
    """One way to do the same work."""

    mode: Mode
    precision: Literal["float32", "bfloat16"]
    is_winograd: bool | None  # None on a GPU, whose convolutions have one form
    batch_size: int

    @property
    def form(self) -> str:
        return {True: "winograd", False: "plain", None: ""}[self.is_winograd]


@dataclass(frozen=True)
class Timing(Variant):
    """How long a variant took."""

    seconds: float  # per update and target, a median


@dataclass(frozen=True)
class Tuned:
    """What a device model does fastest, and every measurement behind it."""

    device: str  # `Engine.model`
    discriminator: str  # the network that it was measured with
    preset: str
    precision: Literal["float32", "bfloat16"]
    is_winograd: bool | None
    batch_size: Mapping[Mode, int]  # only modes in which at least two sizes were compared
    timings: tuple[Timing, ...]
    is_complete: bool  # False: time ran out before everything was measured

    def is_winner(self, timing: Timing) -> bool:
        form = (timing.precision, timing.is_winograd)
        return form == (self.precision, self.is_winograd) and self.batch_size.get(timing.mode) == timing.batch_size

    def __str__(self) -> str:
        sizes = ", ".join(f"{size} {mode}" for mode, size in self.batch_size.items())
        form = "" if self.is_winograd is None else f"{'Winograd' if self.is_winograd else 'plain'} convolutions, "
        return f"{self.precision}, {form}batches of {sizes or 'the default size'}"


def tuned_path() -> Path:
    """The file: $DGN_TUNED, or tuned.json in the user's cache folder."""
    if path := os.environ.get("DGN_TUNED"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "dgn" / "tuned.json"


def load_tuned(path: Path) -> dict[str, Tuned]:
    """The file's entries by device model; empty if the file does not exist.

    Raises: DgnError for a file that holds something else, or another version.
    """
    advice = f"delete it and run dgn tune again (DGN_TUNED={path} chooses the file)"
    try:
        content = json.loads(path.read_text())
        version = content["version"]
        if version == VERSION:
            return {device: _entry(device, fields) for device, fields in content["devices"].items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DgnError(
            f"cannot read {path}: {error.strerror}; make it readable, or set DGN_TUNED to another file"
        ) from error
    except (*NOT_JSON, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DgnError(f"{path} was not written by dgn tune ({in_one_line(error)}): {advice}") from error
    raise DgnError(f"{path} has version {version!r}, expected {VERSION}: {advice}")


def _entry(device: str, fields: dict[str, Any]) -> Tuned:
    """Raises: KeyError, TypeError, ValueError."""
    timings = tuple(Timing(**timing) for timing in fields["timings"])
    tuned = Tuned(device, **{**fields, "timings": timings})
    if tuned.precision not in ("float32", "bfloat16") or tuned.is_winograd not in (True, False, None):
        raise ValueError(f"{device}: precision {tuned.precision!r}, is_winograd {tuned.is_winograd!r}")
    for mode, size in tuned.batch_size.items():
        if mode not in MODES or type(size) is not int or size < 1:
            raise ValueError(f"{device}: batch size {size!r} of mode {mode!r}")
    return tuned


def check_writable(path: Path) -> None:
    """Creates the file's folder. Raises: DgnError if nothing can be written there."""
    with _writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()


def store_tuned(tuned: Tuned, path: Path) -> None:
    """Adds an entry to the file in one step, replacing the same device model's. Raises: DgnError."""
    entries = load_tuned(path) | {tuned.device: tuned}
    devices = {device: asdict(entry) for device, entry in entries.items()}
    for fields in devices.values():
        del fields["device"]  # it is the key
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    with _writing_to(path):
        try:
            temporary.write_text(json.dumps({"version": VERSION, "devices": devices}, indent=1) + "\n")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _writing_to(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DgnError(f"cannot write {path}: {error.strerror}; set DGN_TUNED to a file that can be written") from error
