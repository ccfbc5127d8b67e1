"""A folder as a store: on a local disk, or on a network file system that all workers share."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dgn.errors import RunDamaged, StoreError
from dgn.runs.stores.base import HIDDEN, KeyExists, check_create_once
from dgn.runs.stores.patience import PatientStore, patient
from dgn.text import A_BUCKET

PASSING_ERRNOS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}  # of network file systems
ADVICE = {
    errno.ENOSPC: "no space left on {url}: free some, then run the same command again",
    errno.EDQUOT: "the disk quota of {url} is used up: free some space, then run the same command again",
    errno.EROFS: "{url} is read-only: make it writable and run the same command again, or give another folder",
    errno.EACCES: "no permission for {url}: {error}; it must be readable and writable",
    errno.EPERM: "no permission for {url}: {error}; it must be readable and writable",
}
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
NO_SUCH_RENAME = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_HERE, _NOREPLACE = -100, 1  # AT_FDCWD, RENAME_NOREPLACE


class LocalStore(PatientStore):
    """A folder."""

    foreign: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, folder: str):
        self.root = Path(os.path.abspath(Path(folder).expanduser()))  # removes '..', keeps links
        self.url = str(self.root)
        self._base = self.url.rstrip("/")  # nothing of the root folder
        self._plain_folder = self._base  # the last one below it that was found without links

    def _path(self, key: str) -> Path:
        return Path(self._checked(key))

    def _checked(self, key: str) -> str:
        """A key's path. Raises: RunDamaged if it leads out of the run."""
        path = f"{self._base}/{key}"
        self._check_inside(key, path, os.path.islink(path) or self._lies_behind_link(path))
        return path

    def _check_inside(self, key: str, path: str, has_link: bool) -> None:
        """Raises: RunDamaged if a key leads out of the run. `has_link`: its path, or a part of it, may be a link."""
        is_inside = "\0" not in key and not key.startswith("/") and ".." not in key.split("/")
        if is_inside and has_link:
            is_inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root))
        if not is_inside:
            raise RunDamaged(f"key '{key}' leads out of the run {self.url}")

    def _lies_behind_link(self, path: str) -> bool:
        """Whether a folder between a file and the root is a link, which may lead elsewhere.

        The pictures of a shard lie in one folder, which is looked at once; this would take a tenth of a verify's time.
        """
        folder = path.rpartition("/")[0]
        if folder != self._plain_folder:
            above = folder
            while above != self._base:
                if os.path.islink(above):
                    return True
                above = above.rpartition("/")[0]
            self._plain_folder = folder
        return False

    def passes(self, error: BaseException) -> bool:
        return isinstance(error, OSError) and error.errno in PASSING_ERRNOS

    def in_one_line(self, error: BaseException) -> StoreError:
        advice = ADVICE.get(error.errno or 0) if isinstance(error, OSError) else None
        return StoreError(advice.format(url=self.url, error=error)) if advice else super().in_one_line(error)

    @patient("create")
    def create(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with self._temporary(path, data) as temporary:
            try:
                self._name(temporary, path)
            except FileExistsError as error:
                raise KeyExists(key) from error
        self._sync_folder(path.parent)

    def _name(self, temporary: Path, path: Path) -> None:
        """Gives a file its name, in one step. Raises: FileExistsError if the name is taken, unlike a plain rename."""
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            try:
                _rename_if_free(temporary, path)
            except OSError as second:
                if second.errno not in NO_SUCH_RENAME:
                    raise
                raise StoreError(
                    f"the file system of {self.url} has no hard links (exFAT and some network drives have none), and "
                    f"no other way to create a file once: give a folder on another file system, or {A_BUCKET}"
                ) from error

    @patient("write")
    def write(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with self._temporary(path, data) as temporary:
            os.replace(temporary, path)

    @staticmethod
    @contextmanager
    def _temporary(path: Path, data: bytes) -> Iterator[Path]:
        """A whole file beside `path`, under a hidden name that is gone afterwards, whatever happens."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{HIDDEN}{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            with suppress(OSError):  # must not hide how the disk failed before
                temporary.unlink(missing_ok=True)

    @staticmethod
    def _sync_folder(folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @patient("read")
    def read(self, key: str) -> bytes:
        file = self._open(key)  # a file object would take a twentieth of a verify's time
        try:
            num_bytes = os.fstat(file).st_size
            data = os.read(file, num_bytes + 1)
            while len(data) < num_bytes and (more := os.read(file, num_bytes + 1 - len(data))):  # Linux reads 2 GB
                data += more
            return data
        finally:
            os.close(file)

    def _open(self, key: str) -> int:
        """Opens a file to read it. To look first whether it is a link would take another twentieth."""
        path = f"{self._base}/{key}"
        self._check_inside(key, path, self._lies_behind_link(path))
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        return os.open(self._checked(key), os.O_RDONLY)

    @patient("read")
    def read_range(self, key: str, start: int, stop: int) -> bytes:
        with self._path(key).open("rb") as file:
            file.seek(start)
            return self.check_length(key, file.read(stop - start), start, stop)

    @patient("read")
    def read_end(self, key: str, num_bytes: int) -> tuple[bytes, int]:
        with self._path(key).open("rb") as file:
            whole = file.seek(0, os.SEEK_END)
            file.seek(max(whole - num_bytes, 0))
            return file.read(), whole

    @patient("exists")
    def exists(self, key: str) -> bool:
        return self._path(key).exists()

    def list(self, prefix: str, is_hidden: bool = False) -> Iterator[str]:
        folders = [prefix.rstrip("/")]
        while folders:
            folder = folders.pop()
            for name, is_folder in self._entries(folder):
                key = f"{folder}/{name}" if folder else name
                if is_folder:
                    folders.append(key)
                elif name.startswith(HIDDEN) == is_hidden:
                    yield key

    def list_dated(self, prefix: str, is_hidden: bool = False) -> Iterator[tuple[str, float]]:
        for key in self.list(prefix, is_hidden):
            written_at = self._written_at(key)
            if written_at is not None:  # it was deleted meanwhile
                yield key, written_at

    @patient("list")
    def _written_at(self, key: str) -> float | None:
        try:
            return os.lstat(self.root / key).st_mtime
        except FileNotFoundError:
            return None

    @patient("list")
    def _entries(self, folder: str) -> Sequence[tuple[str, bool]]:
        """Names in a folder, and whether each is a folder. Links to folders are left out, because they lead elsewhere.

        A folder that does not exist is empty. Any other fault is raised, so that it cannot be mistaken for empty.
        """
        try:
            with os.scandir(self._path(folder)) as entries:
                named = [(entry, entry.is_dir()) for entry in entries]
                return [(entry.name, is_folder) for entry, is_folder in named if not (is_folder and entry.is_symlink())]
        except FileNotFoundError:
            return []

    def delete(self, key: str) -> None:
        self._unlink(key)
        path = self._path(key)
        with suppress(OSError):  # a folder that is not empty stays
            if path.parent != self.root:
                path.parent.rmdir()

    @patient("delete")
    def _unlink(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    @patient("delete")
    def delete_folder(self, prefix: str) -> None:
        shutil.rmtree(self._path(prefix))

    def arrow(self) -> tuple[Any, str]:
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(), self.url

    def check(self, must_write: bool) -> None:
        self.impatient()._check(".", must_write)

    @patient("check")
    def _check(self, _: str, must_write: bool) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"{self.url} is a file: expected a folder for the run")
        if not must_write:
            if not self.root.is_dir():
                raise StoreError(f"no run at {self.url}: expected the folder of an earlier dgn render")
            return
        existing = next(parent for parent in (self.root, *self.root.parents) if parent.exists())
        if not existing.is_dir():
            raise StoreError(f"cannot write to {self.url}: {existing} is a file; give another folder")
        nearest = LocalStore(str(existing)).impatient()  # on the same disk; leaves nothing if no run starts
        if os.statvfs(existing).f_flag & os.ST_RDONLY:
            raise nearest.in_one_line(OSError(errno.EROFS, ""))
        if not os.access(existing, os.W_OK | os.X_OK):
            raise StoreError(f"cannot write to {existing}: no permission; give a folder that you may write to")
        try:
            check_create_once(nearest)
        except FileNotFoundError as error:  # raised by /proc
            raise StoreError(f"cannot write to {existing}: {error.strerror}; give another folder") from error


def _rename_if_free(old: Path, new: Path) -> None:
    """Linux's renameat2, which Python lacks. Raises: FileExistsError if `new` exists; other OSErrors."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):  # a C library of before 2018
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if libc.renameat2(_HERE, os.fsencode(old), _HERE, os.fsencode(new), _NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(new))  # a FileExistsError for EEXIST
