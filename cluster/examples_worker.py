"""ExamplesWorker: shows a shard of photographs to the classifier and commits those that excite its units most."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from dgn.cluster.context import ExamplesContext, ShardReport
from dgn.cluster.device_worker import DeviceWorker
from dgn.errors import StoreError
from dgn.method.memory import in_batches
from dgn.networks.weights import NetworkWeights
from dgn.pictures.codec import encode_thumbnail
from dgn.pictures.examples import NOBODY, Best, Lists, Look, Watcher
from dgn.pictures.photographs import UnreadablePhotograph, load_photograph
from dgn.runs.examples import DIGEST_BYTES, KINDS, SIDES, Examples
from dgn.runs.layout import sha256
from dgn.runs.photographs import photograph_store, read_shard
from dgn.runs.stores import open_store

log = logging.getLogger("dgn")

NUM_DECODERS = 4  # threads
GONE = "it is gone, empty, or cannot be opened"
BATCHES_AHEAD = 3  # that are decoded while the device looks at another


@dataclass(frozen=True)
class _Photograph:
    name: str
    sha256: str
    square_HW3: NDArray[np.uint8] | None  # None: unreadable
    thumbnail: bytes = b""
    problem: str = ""


@dataclass
class _Looked:
    """A shard that was looked at."""

    index: int
    started_at: float
    rows: list[dict[str, Any]]
    unreadable: list[str] = field(default_factory=list)
    digests: str = ""  # of all photographs, in hex; zeros for one that cannot be read
    num_with_class: int = 0
    busy_s: float = 0.0
    span_s: float = 0.0


class ExamplesWorker(DeviceWorker):
    """Looks at shards of photographs. Its memory does not grow with their number."""

    context: ExamplesContext

    def __init__(self, context: ExamplesContext, weights: NetworkWeights, _: None):
        super().__init__(context, Examples(open_store(context.url)))
        self.classifier = self._load(weights, torch.float32)
        self.watcher = Watcher(self.classifier, context.subjects)
        self.photographs = photograph_store(context.plan.url)
        self.decoders = ThreadPoolExecutor(NUM_DECODERS, "decoder")
        self.looked: dict[str, _Looked] = {}  # by attempt

    def render(self, index: int, attempt: str) -> None:
        """Looks at a shard. Raises: StoreError, DgnError for a Parquet file that is damaged."""
        self.looked[attempt] = self.device_thread.submit(self._look, index, attempt).result()

    @ray.method(concurrency_group="finish")
    def finish(self, attempt: str) -> ShardReport:
        """Commits a shard. Raises: StoreError."""
        shard = self.looked.pop(attempt)
        about = {
            "unreadable": shard.unreadable, "digests": shard.digests, "num_with_class": shard.num_with_class,
        }  # fmt: skip
        self.run.commit(shard.index, attempt, shard.rows, about)
        count, num_bad = len(self.context.plan.shard(shard.index)), len(shard.unreadable)
        statuses = {status: n for status, n in (("ok", count - num_bad), ("unreadable", num_bad)) if n}
        seconds = time.monotonic() - shard.started_at
        return ShardReport(shard.index, count, statuses, seconds, shard.busy_s, shard.span_s)

    def _look(self, index: int, attempt: str) -> _Looked:
        started_at = time.monotonic()
        self.first_at = self.first_at or started_at
        log.info("shard %06d starts", index, extra=self._about(index, attempt))
        shard = self.context.plan.shard(index)
        lists = Lists(self.context.subjects, self.classifier.layers.class_layer)
        looked = _Looked(index, started_at, [])
        kept: dict[int, _Photograph] = {}  # those in a list, by number
        hashes = set[str]()
        number, num_gone = shard.first, 0
        for batch in self._read_ahead(index):
            good, numbers, classes = [], [], []
            for photograph in batch:
                is_read = photograph.square_HW3 is not None
                looked.digests += photograph.sha256[: 2 * DIGEST_BYTES] if is_read else "00" * DIGEST_BYTES
                num_gone += photograph.problem == GONE
                if photograph.square_HW3 is None:
                    looked.unreadable.append(f"{photograph.name}: {photograph.problem}")
                else:
                    true_class = self._true_class(photograph.name)
                    looked.num_with_class += true_class is not None
                    if photograph.sha256 not in hashes:
                        hashes.add(photograph.sha256)
                        good.append(photograph)
                        numbers.append(number)
                        classes.append(true_class)
                number += 1
            self._note_step()
            if not good:
                continue
            for at, look in self._looks(good):
                some = slice(at, at + len(look.values_NS))
                lists.add(look, np.array(numbers[some], np.int64), classes[some])
            kept |= {n: replace(one, square_HW3=None) for n, one in zip(numbers, good, strict=True)}  # without pixels
            in_lists = lists.numbers()
            kept = {number: photograph for number, photograph in kept.items() if number in in_lists}
        if num_gone == len(shard):
            raise StoreError(f"none of {len(shard)} photographs of {self.photographs.url} is there: is it mounted?")
        looked.rows = self._rows(lists, kept, attempt)
        ended_at = time.monotonic()
        self.busy_s += ended_at - started_at
        looked.busy_s, looked.span_s = self.busy_s, ended_at - self.first_at
        return looked

    def _looks(self, photographs: list[_Photograph]) -> Iterator[tuple[int, Look]]:
        """What readable photographs do to the subjects, in parts that fit into memory, and where each part begins."""
        squares = [one.square_HW3 for one in photographs if one.square_HW3 is not None]

        def look(some: Sequence[NDArray[np.uint8]]) -> Look:
            return self.watcher.look(np.stack(some))

        at = 0
        for part in in_batches(squares, len(squares), look, self.engine):
            yield at, part
            at += len(part.values_NS)

    def _read_ahead(self, index: int) -> Iterator[list[_Photograph]]:
        """A shard's photographs in batches, which are decoded while the device works."""
        ahead: deque[list[Future[_Photograph]]] = deque()
        for name, read in read_shard(self.photographs, self.context.plan, index):
            if not ahead or len(ahead[-1]) == self.engine.scoring_batch_size:
                if len(ahead) > BATCHES_AHEAD:
                    yield [photograph.result() for photograph in ahead.popleft()]
                ahead.append([])
            ahead[-1].append(self.decoders.submit(self._decoded, name, read))
        for batch in ahead:
            yield [photograph.result() for photograph in batch]

    def _decoded(self, name: str, read: Callable[[], bytes]) -> _Photograph:
        if not (data := read()):
            return _Photograph(name, "", None, problem=GONE)
        digest = sha256(data)
        try:
            square_HW3 = load_photograph(data, self.watcher.square_px)
        except UnreadablePhotograph as error:
            return _Photograph(name, digest, None, problem=str(error))
        return _Photograph(name, digest, square_HW3, encode_thumbnail(self.watcher.seen(square_HW3)))

    def _true_class(self, name: str) -> int | None:
        return self.context.true_classes.get(str(PurePosixPath(name).parent))

    def _rows(self, lists: Lists, kept: dict[int, _Photograph], attempt: str) -> list[dict[str, Any]]:
        """Of SHARD_SCHEMA, in order of numbers."""
        excites: dict[int, list[dict[str, Any]]] = {}
        for kind, best in zip(KINDS, (lists.strongest, lists.wrong), strict=True):
            for subject, place in np.argwhere(best.photographs_SB != NOBODY).tolist():
                number = int(best.photographs_SB[subject, place])
                excites.setdefault(number, []).append(self._example(best, kind, subject, place))
        return [
            {
                "number": number, "photograph": kept[number].name, "sha256": kept[number].sha256,
                "true_class": self._true_class(kept[number].name), "thumbnail": kept[number].thumbnail,
                "attempt": attempt, "excites": excites[number],
            }
            for number in sorted(excites)
        ]  # fmt: skip

    def _example(self, best: Best, kind: str, subject: int, place: int) -> dict[str, Any]:
        box = self.watcher.box(self.context.subjects[subject].layer, int(best.cells_SB[subject, place]))
        probability = float(best.probabilities_SB[subject, place])
        value = float(best.values_SB[subject, place])
        return {
            "subject": subject, "kind": kind, "activation": value if kind == "strongest" else None,
            "probability": None if np.isnan(probability) else probability,
            **dict(zip(SIDES, box or (None,) * len(SIDES), strict=True)),
        }  # fmt: skip
