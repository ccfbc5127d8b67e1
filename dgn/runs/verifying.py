"""Checking a run, shard by shard: every target has one row, and every row's picture is the one that was committed.

Reading needs no plan, so processes and machines that read start at once and never import torch.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from dgn.errors import RunDamaged
from dgn.runs import readers
from dgn.runs.layout import metadata_key, sha256
from dgn.runs.packed import place_of
from dgn.runs.plan import Shard
from dgn.runs.run import Run, read_many
from dgn.runs.stores import LocalStore, open_store

SHARDS_PER_TASK = 32
FEW_SHARDS = 256  # which are read before other processes have started


class IntactPicture(NamedTuple):
    """A picture to score again. Those with the smallest hashes are a random sample, whoever reads which shard."""

    sha256: str
    shard: int
    target_id: str
    file_name: str
    activation: float | None


@dataclass(frozen=True)
class ShardRead:
    """What was read of a committed shard.

    Args:
        sha256: of its committed file; None if that is missing or damaged.
        targets: the rows' target_ids.
        damage: what is wrong with the committed file, or with pictures.
        sample: intact pictures with the smallest hashes.
    """

    shard: int
    sha256: str | None
    targets: Sequence[str]
    damage: Sequence[str]
    sample: Sequence[IntactPicture]


@dataclass(frozen=True)
class Reading:
    """What to read of a run.

    Args:
        intact: by shard, the sha256 of its committed file when its pictures were last found intact. They are not read
            again as long as that file is the same.
        num_sampled: pictures of a shard to return, at most.
    """

    url: str
    run_id: str
    shards: Sequence[int]
    intact: Mapping[int, str]
    num_sampled: int

    def tasks(self) -> Iterator[Reading]:
        """The same in pieces."""
        left = iter(self.shards)
        while some := list(itertools.islice(left, SHARDS_PER_TASK)):
            intact = {shard: self.intact[shard] for shard in some if shard in self.intact}
            yield Reading(self.url, self.run_id, some, intact, self.num_sampled)


def read_shards(reading: Reading) -> list[ShardRead]:
    """Reads shards one after another, or several at a time from a bucket. Damage is an answer.

    Raises: StoreError if the store cannot be used, or holds another run.
    """
    run = Run(open_store(reading.url))
    run.expect(reading.run_id)
    read = partial(_read_shard, run, reading)
    is_local = isinstance(run.store, LocalStore)  # a bucket's answers take their time; a folder's need none to wait in
    return list(map(read, reading.shards) if is_local else read_many(read, reading.shards))


def _read_shard(run: Run, reading: Reading, shard: int) -> ShardRead:
    try:
        data = run.shard_file(shard)
        rows = run.shard_rows(shard, data)
    except RunDamaged as error:
        return ShardRead(shard, None, (), (error.problem,), ())
    digest = sha256(data)
    is_read = reading.intact.get(shard) != digest
    damage: list[str] = []
    pictures: list[IntactPicture] = []
    columns = [rows[name].to_pylist() for name in ("target_id", "file_name", "sha256", "activation")]
    for target_id, file_name, picture_sha256, activation in zip(*columns, strict=True):
        if file_name is None:
            continue
        if is_read and (problem := _problem(run, shard, data, file_name, picture_sha256)):
            damage.append(problem)
        else:
            pictures.append(IntactPicture(picture_sha256, shard, target_id, file_name, activation))
    return ShardRead(shard, digest, columns[0], damage, heapq.nsmallest(reading.num_sampled, pictures))


def _problem(run: Run, shard: int, data: bytes, file_name: str, digest: str | None) -> str | None:
    """What is wrong with a picture. `data`: its shard's file, in which it may be packed."""
    place = place_of(file_name)
    try:
        if place and place.key == metadata_key(shard):
            run.check_picture(file_name, data[place.start : place.stop], digest)
        else:
            run.picture(file_name, digest)
    except RunDamaged as error:
        return error.problem
    return None


@contextmanager
def read_here(reading: Reading) -> Iterator[Iterable[list[ShardRead]]]:
    """Begins to read, in a process for each core if there are many shards, and gives the answers in order.

    Not in threads: checking a picture takes about 100 us, in which they would mostly wait for each other.

    Raises: StoreError; Incomplete if a process is killed.
    """
    if len(reading.shards) <= FEW_SHARDS:
        yield map(read_shards, reading.tasks())
        return
    with readers.reading(read_shards, reading.tasks()) as read:
        yield read


@dataclass(frozen=True)
class ShardCheck:
    """A shard's rows, compared with its targets."""

    num_found: int  # targets that have a row
    num_extra: int  # rows that belong to none
    problems: list[str]


def compare(read: ShardRead, shard: Shard) -> ShardCheck:
    """Everything that is wrong with a shard."""
    if read.sha256 is None:
        return ShardCheck(0, 0, list(read.damage))
    missing = dict.fromkeys(shard.target_ids)
    extra = [target_id for target_id in read.targets if missing.pop(target_id, target_id) is not None]
    problems = [f"{target_id} is a duplicate, or not of shard {shard.index:06d}" for target_id in extra]
    problems += [*read.damage, *(f"{target_id} has no row in shard {shard.index:06d}" for target_id in missing)]
    return ShardCheck(len(shard) - len(missing), len(extra), problems)
