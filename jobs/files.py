"""What commands write on this machine: whole or not at all, and never over what is somebody else's."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.storage import HIDDEN
from dgn.errors import DgnError, in_one_line

ENDS_BYTES = 4096  # of a file, at its beginning and its end: there it says who made it


@contextmanager
def told_in_one_line(place: Path) -> Iterator[None]:
    """Raises: DgnError for what this machine has against writing there."""
    try:
        yield
    except OSError as error:
        raise DgnError(f"cannot write to {place}: {error.strerror or in_one_line(error)}") from error


def check_empty(folder: Path) -> None:
    """Raises: DgnError where there is a file, or a folder that holds something, hidden or not."""
    advice = "give a folder that does not, or an empty one"
    with told_in_one_line(folder):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise DgnError(f"{folder} exists and is a file: {advice}")
        names = sorted(path.name for path in folder.iterdir())
    if names:
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        left = " (what a command left that was killed: delete it)" if names[0].startswith(HIDDEN) else ""
        raise DgnError(f"{folder} exists and holds {names[0]}{left}{more}: {advice}")


def check_replaceable(path: Path, what: str, marks: Sequence[bytes]) -> None:
    """`marks`: at least one is near an end of every file that may be overwritten. Raises: DgnError for another one."""
    with told_in_one_line(path):
        if path.is_symlink() or (path.exists() and not _is_marked(path, marks)):
            raise DgnError(f"{path} is there and no {what} of dgn: give another name, or move it away")


def _is_marked(path: Path, marks: Sequence[bytes]) -> bool:
    if not path.is_file():  # opening a pipe waits for ever
        return False
    with path.open("rb") as file:
        ends = file.read(ENDS_BYTES)
        file.seek(max(ENDS_BYTES, path.stat().st_size - ENDS_BYTES))
        ends += file.read()
    return any(mark in ends for mark in marks)


@contextmanager
def whole_or_not_at_all(folder: Path) -> Iterator[Path]:
    """A hidden folder whose files move up into `folder` when the block ends well; else nothing is left of it."""
    new: list[Path] = []
    temporary = folder / f"{HIDDEN}{uuid.uuid4().hex}"
    try:
        with told_in_one_line(folder):
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
