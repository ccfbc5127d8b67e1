"""Networks and generators of one's own: a function in a file or a package that returns an `nn.Module`. dgn runs its
code."""

from __future__ import annotations

import hashlib
import linecache
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from torch import nn

from dgn.errors import DgnError
from dgn.networks.network import copied
from dgn.text import in_one_line


def is_code(name: str) -> bool:
    """Whether a network's name is the place of a function: `package.module:function` or `file.py:function`."""
    return ":" in name and not name.startswith("timm:")


@dataclass(frozen=True)
class OwnCode:
    """Runs a function of one's own, `package.module:function` or `file.py:function`.

    Args:
        source: the file's text, so that other machines can run it too; None for a package, which they need to have.
        folder: of the file; modules beside it can be imported where it exists. `__file__` is the file's path in it on
            other machines too, so that code that looks for a file beside its own finds that one or none.
    """

    name: str
    source: str | None = None
    folder: str = ""

    @property
    def sha256(self) -> str | None:
        """Of the file's text, as 64 hex digits; None for a package."""
        return None if self.source is None else hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self) -> nn.Module:
        """A module of its own for each caller; the function runs once per process."""
        built = _run_once(self)
        try:
            return copied(built)
        except RuntimeError as error:
            raise DgnError(
                f"{self.name}() returned a module that cannot be copied ({in_one_line(error)}): expected one that has "
                "not run yet"
            ) from error

    def run(self) -> nn.Module:
        """What the function returns. Raises: DgnError if it cannot be run, or returns no module."""
        place, _, attribute = self.name.rpartition(":")
        with _importable(self.folder or os.getcwd()):
            try:
                module = import_module(place) if self.source is None else _run(Path(self.folder, place), self.source)
            except (Exception, SystemExit) as error:  # whatever the code raises, and ImportError
                raise DgnError(f"cannot load {self.name}: {in_one_line(error)}") from error
            function = getattr(module, attribute, None)
            if not callable(function):
                raise DgnError(
                    f"{self.name}: {place} has no function '{attribute}'; expected one that returns an nn.Module"
                )
            try:
                built = function()
            except (Exception, SystemExit) as error:  # whatever the code raises
                raise DgnError(f"{self.name}() failed: {in_one_line(error)}") from error
        if not isinstance(built, nn.Module):
            raise DgnError(f"{self.name}() returned a {type(built).__name__}: expected an nn.Module")
        return built


@lru_cache(maxsize=8)
def _run_once(code: OwnCode) -> nn.Module:
    return code.run()


def own_code(name: str, what: str = "network") -> OwnCode:
    """The function behind a name, see `is_code`. Nothing runs before it is called.

    Args:
        what: the function returns, for messages.

    Raises: DgnError for a file that cannot be read.
    """
    place, _, attribute = name.rpartition(":")
    if not attribute.isidentifier() or not place:
        raise DgnError(f"{what} '{name}': expected FILE.py:FUNCTION or package.module:FUNCTION")
    if not place.endswith(".py"):
        return OwnCode(name)
    path = Path(place).expanduser()
    try:
        return OwnCode(f"{path.name}:{attribute}", path.read_text("utf-8"), str(path.absolute().parent))
    except (OSError, UnicodeDecodeError) as error:
        raise DgnError(f"{what} '{name}': cannot read {path} ({in_one_line(error)})") from error


def _run(path: Path, source: str) -> ModuleType:
    """The module of a file's text, run once per process. The file need not exist."""
    name = f"dgn_network_{hashlib.sha256(f'{path}:{source}'.encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(path)
        linecache.cache[module.__file__] = (len(source), None, source.splitlines(keepends=True), module.__file__)
        sys.modules[name] = module
        try:
            exec(compile(source, module.__file__, "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


@contextmanager
def _importable(folder: str) -> Iterator[None]:
    """A folder's modules can be imported in the block."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the code may have removed it
            sys.path.remove(folder)
