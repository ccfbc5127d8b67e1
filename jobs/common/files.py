"""Writing files on this machine: completely or not at all, and never over others' files."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dgn.errors import DgnError
from dgn.runs.stores.base import HIDDEN
from dgn.text import in_one_line

ENDS_BYTES = 4096  # at a file's beginning and end, where its maker is named


@contextmanager
def one_line_errors(place: Path) -> Iterator[None]:
    """Raises: DgnError in place of an OSError of the block."""
    try:
        yield
    except OSError as error:
        raise DgnError(f"cannot write to {place}: {error.strerror or in_one_line(error)}") from error


def check_empty(folder: Path, besides: str = "") -> None:
    """Raises: DgnError if `folder` is a file, or holds anything but the file or folder `besides`, even hidden files."""
    advice = "give a new or an empty folder"
    with one_line_errors(folder):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise DgnError(f"{folder} exists and is a file: {advice}")
        names = sorted(path.name for path in folder.iterdir() if path.name != besides)
    if names:
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        left = " (left by a killed command: delete it)" if names[0].startswith(HIDDEN) else ""
        raise DgnError(f"{folder} exists and holds {names[0]}{left}{more}: {advice}")


def check_replaceable(path: Path, what: str, marks: Sequence[bytes]) -> None:
    """Raises: DgnError if `path` exists without one of `marks` near its beginning or end."""
    with one_line_errors(path):
        if path.is_symlink() or (path.exists() and not _is_marked(path, marks)):
            raise DgnError(f"{path} exists and is not a {what} by dgn: give another name, or move it away")


def _is_marked(path: Path, marks: Sequence[bytes]) -> bool:
    if not path.is_file():  # opening a pipe could wait forever
        return False
    with path.open("rb") as file:
        ends = file.read(ENDS_BYTES)
        file.seek(max(ENDS_BYTES, path.stat().st_size - ENDS_BYTES))
        ends += file.read()
    return any(mark in ends for mark in marks)


@contextmanager
def whole_or_not_at_all(folder: Path) -> Iterator[Path]:
    """Yields a hidden folder whose files move into `folder` if the block succeeds; otherwise deletes it."""
    new: list[Path] = []
    temporary = folder / f"{HIDDEN}{uuid.uuid4().hex}"
    try:
        with one_line_errors(folder):
            new += (place for place in (folder, *folder.parents) if not place.exists())
            temporary.mkdir(parents=True)
            yield temporary
            for path in sorted(temporary.iterdir()):
                path.replace(folder / path.name)
        new.clear()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for place in new:
            with suppress(OSError):
                place.rmdir()
