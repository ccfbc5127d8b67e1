"""Photographs whose folders name their classes, shown to a network class by class.

Memory does not grow with their number: at most MOST_OF_CLASS of one class are held at a time, and MOST_OF_ALL of all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from dgn.errors import DgnError
from dgn.method.memory import in_batches
from dgn.networks.frozen import FrozenNetwork
from dgn.pictures.accuracy import folders_of_classes
from dgn.pictures.codec import as_tensor, encode_thumbnail
from dgn.pictures.examples import seen, square_px
from dgn.pictures.paths import Paths, evenly
from dgn.pictures.photographs import UnreadablePhotograph, load_photograph
from dgn.runs.photographs import list_photographs, photograph_store, read_photograph
from dgn.runs.run import NUM_READERS
from dgn.runs.stores import Store

MOST_OF_CLASS, MOST_OF_ALL = 50, 200
LEAST_OF_CLASS = 5  # with which pictures of a class are compared


@dataclass(frozen=True, eq=False)
class Looked:
    """Photographs that were shown to the network, and what its units did.

    Args:
        classes_N: the true ones.
    """

    names: tuple[str, ...]
    classes_N: NDArray[np.int64]
    thumbnails: tuple[bytes, ...]
    paths: Paths

    def outside(self, class_: int) -> Looked | None:
        """Those of other classes; None if there are none."""
        chosen = np.flatnonzero(self.classes_N != class_).tolist()
        if not chosen:
            return None
        names = tuple(self.names[n] for n in chosen)
        thumbnails = tuple(self.thumbnails[n] for n in chosen)
        return Looked(names, self.classes_N[chosen], thumbnails, self.paths.take(chosen))


@dataclass(frozen=True)
class _Photograph:
    """One that was read.

    Args:
        digest: SHA-256 of its file.
        seen_HW3: the square that the network sees.
    """

    name: str
    class_: int
    digest: bytes
    thumbnail: bytes
    seen_HW3: NDArray[np.uint8]


@dataclass
class LabelledPhotographs:
    """A folder's photographs by class, in order of names.

    Args:
        num_without_class: photographs that are left out.
        left_out: other files, in words.
        unreadable: names and reasons, of those looked at.
    """

    store: Store
    by_class: dict[int, list[str]]
    num_without_class: int
    left_out: str
    network: FrozenNetwork
    layers: tuple[str, ...]
    unreadable: dict[str, str] = field(default_factory=dict)

    @classmethod
    def at(cls, url: str, network: FrozenNetwork, layers: tuple[str, ...]) -> LabelledPhotographs:
        """Raises: StoreError; DgnError if no folder is named as a class."""
        store = photograph_store(url)
        listing = list_photographs(store)
        names = listing.photographs
        folders = folders_of_classes(names, network.layers)
        by_class: dict[int, list[str]] = {}
        for name in names:
            if (class_ := folders.get(str(PurePosixPath(name).parent))) is not None:
                by_class.setdefault(class_, []).append(name)
        if len(by_class) < 2:
            raise DgnError(
                f"{store.url} has folders of {len(by_class)} classes of {network.layers.network}: expected folders of "
                "at least two, named as the classes or by their numbers"
            )
        num_without_class = len(names) - sum(map(len, by_class.values()))
        return cls(store, by_class, num_without_class, listing.remark, network, layers)

    def of_class(self, class_: int) -> Looked | None:
        """At most MOST_OF_CLASS of a class, evenly spread; None if fewer than LEAST_OF_CLASS can be read."""
        names = self.by_class.get(class_, [])
        if len(names) < LEAST_OF_CLASS:
            return None
        read = self._read([(name, class_) for name in evenly(names, MOST_OF_CLASS)])
        return self._look(read) if len(read) >= LEAST_OF_CLASS else None

    def of_all(self) -> Looked:
        """At most MOST_OF_ALL, evenly spread over the classes' photographs. Raises: DgnError if none can be read."""
        every = [(name, class_) for class_, names in sorted(self.by_class.items()) for name in names]
        read = self._read(evenly(every, MOST_OF_ALL))
        if not read:
            name, why = min(self.unreadable.items())
            raise DgnError(
                f"none of {len(self.unreadable)} photographs in {self.store.url} can be read, such as {name}: {why}"
            )
        return self._look(read)

    def _read(self, chosen: Sequence[tuple[str, int]]) -> list[_Photograph]:
        """Those that can be read. Of files that are the same, byte by byte, the first counts."""
        distinct: dict[bytes, _Photograph] = {}
        with ThreadPoolExecutor(NUM_READERS) as readers:
            for photograph in readers.map(self._read_one, chosen):
                if photograph is not None:
                    distinct.setdefault(photograph.digest, photograph)
        return list(distinct.values())

    def _read_one(self, named: tuple[str, int]) -> _Photograph | None:
        name, class_ = named
        data, size_px = read_photograph(self.store, name), self.network.size_px
        try:
            seen_HW3 = seen(load_photograph(data, square_px(size_px)), size_px)
        except UnreadablePhotograph as error:
            self.unreadable[name] = str(error)
            return None
        return _Photograph(name, class_, hashlib.sha256(data).digest(), encode_thumbnail(seen_HW3), seen_HW3)

    def _look(self, photographs: Sequence[_Photograph]) -> Looked:
        engine = self.network.engine
        squares = [one.seen_HW3 for one in photographs]
        return Looked(
            tuple(one.name for one in photographs), np.array([one.class_ for one in photographs]),
            tuple(one.thumbnail for one in photographs),
            Paths.joined(list(in_batches(squares, engine.scoring_batch_size, self._paths, engine))),
        )  # fmt: skip

    def _paths(self, seen_HW3: Sequence[NDArray[np.uint8]]) -> Paths:
        return Paths.of(as_tensor(seen_HW3) / 255, self.network, self.layers)
