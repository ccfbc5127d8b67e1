"""Second opinions on a run's pictures, beside its rows: what a judge and the network itself see in them.

    judgements/<network>-<8 hex of its weights' sha256>/<shard>.parquet    created once, when its shard is judged
    index/<part>/judged-<network>-<8 hex>-<time>-<8 hex>.parquet           the same, compacted for readers

`dgn judge` writes the former, one row for each row of the shard. Its `attempt` says which rendering of the shard was
judged; judgements of another rendering do not count, and the shard is judged again. Readers read the latter: one row
for each row of the part's rows.parquet, in the same order, all null if there is no judgement. `index/current.json`
names these files.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

import dgn
from dgn.errors import DgnError, RunDamaged
from dgn.runs import schema
from dgn.runs.layout import dated_id
from dgn.runs.run import Run, read_many
from dgn.runs.schema import Column
from dgn.runs.shards import Ranges, as_ranges, in_ranges
from dgn.runs.stores.base import KeyExists

SCHEMA_VERSION = 1
DISTORTION_NAMES = ("jpeg", "blur", "crop", "turn")  # the names in dgn.pictures.distortions, which needs torch
_OF_JUDGE = (  # null for targets in other layers than the classes': the judge has no such unit
    Column("judge_rank", pa.int32(), "Rank", "the judge's rank of the target's class; of several, the weakest's"),
    Column("judge_probability", pa.float32(), "Probability", "softmax of the target's class, summed over several"),
    Column("judge_top_unit", pa.int32(), "First unit", "the class that the judge ranks first"),
    Column("judge_top_label", pa.string(), "First label", "its label"),
)
_OF_OWN = tuple(
    column
    for name in DISTORTION_NAMES
    for column in (
        Column(f"{name}_rank", pa.int32(), f"Rank after {name}", "the own network's rank after the distortion"),
        Column(f"{name}_activation", pa.float32(), f"Activation after {name}", "the activation after it"),
    )
)
_WHOSE = (
    Column("by", pa.string(), "Judge", "the judge's network"),
    Column("by_weights_sha256", pa.string(), "Weights", "SHA-256 of the judge's weights file"),
)
_TARGET = Column("target_id", pa.string(), "Target", "as in the rows")
JUDGED_COLUMNS = (*_OF_JUDGE, *_OF_OWN, _TARGET, *_WHOSE)  # of the compacted files, and of SQL's table `judged`
JUDGED_SCHEMA = pa.schema([(column.name, column.type) for column in JUDGED_COLUMNS])
SCHEMA = pa.schema([
    (_TARGET.name, _TARGET.type), ("shard", pa.int32()), ("attempt", pa.string()),
    *((column.name, column.type) for column in (*_WHOSE, *_OF_JUDGE, *_OF_OWN)),
])  # fmt: skip
JUDGED = "judged-"  # starts the names of compacted files
_NETWORK, _SHA256 = r"[^/\\\x00-\x1f]+", r"[0-9a-f]{64}"
_UNSAFE = r"[^A-Za-z0-9_.-]"  # in a network's name, such as the colon of FILE.py:FUNCTION
_FOLDER = r"[A-Za-z0-9_][A-Za-z0-9_.-]*-[0-9a-f]{8}"
_KEY = re.compile(rf"judgements/({_FOLDER})/(\d+)\.parquet")


@dataclass(frozen=True)
class Judge:
    """An independent network."""

    network: str
    sha256: str  # of its weights file

    @property
    def folder(self) -> str:
        """The judge's name in keys."""
        safe = re.sub(rf"^[.-]|{_UNSAFE}", "_", self.network)
        return f"{safe}-{self.sha256[:8]}"


@dataclass(frozen=True)
class Judged:
    """A part's judgements by one judge, in `index/<part>/<name>`."""

    by: Annotated[str, Field(pattern=rf"^{_NETWORK}$")]
    weights_sha256: Annotated[str, Field(pattern=rf"^{_SHA256}$")]
    name: Annotated[str, Field(pattern=rf"^{JUDGED}{_FOLDER}-[0-9TZ]+-[0-9a-f]{{8}}\.parquet$")]
    num_rows: int  # pictures that were judged
    bytes: int
    shards: Ranges  # the part's shards that were judged

    @property
    def judge(self) -> Judge:
        return Judge(self.by, self.weights_sha256)

    def shard_numbers(self) -> set[int]:
        return set(in_ranges(self.shards))


def judgements_key(folder: str, shard: int) -> str:
    return f"judgements/{folder}/{shard:06d}.parquet"


def write_judgements(
    run: Run, judge: Judge, shard: int, rows: list[dict[str, Any]], about: dict[str, Any], is_again: bool
) -> None:
    """Writes one file for a shard.

    Args:
        rows: of SCHEMA, without the judge's columns.
        about: for the file's metadata.
        is_again: whether to replace a file that is out of date.
    """
    whose = {"by": judge.network, "by_weights_sha256": judge.sha256}
    metadata = {"schema_version": SCHEMA_VERSION, "dgn_version": dgn.__version__, **whose, **about}
    data = schema.serialise([row | whose for row in rows], metadata, SCHEMA)
    key = judgements_key(judge.folder, shard)
    assert _KEY.fullmatch(key), "networks' names are plain"
    if is_again:
        run.store.write(key, data)
        return
    try:
        run.store.create(key, data)
    except KeyExists:  # another process judges the same shard and writes the same
        return


def judged_shards(run: Run) -> dict[str, set[int]]:
    """The shards that have a file, by the judge's folder; found by one uncached listing."""
    found: dict[str, set[int]] = {}
    for key in run.store.list("judgements"):
        match = _KEY.fullmatch(key)
        if match and key == judgements_key(match[1], shard := int(match[2])):
            found.setdefault(match[1], set()).add(shard)
    return found


def _read(shard: int, run: Run, folder: str) -> pa.Table:
    key = judgements_key(folder, shard)
    try:
        table = schema.parse(run.store.read(key), schema=SCHEMA)
        _judge(table, folder)
    except (DgnError, FileNotFoundError) as error:
        what = "it is gone" if isinstance(error, FileNotFoundError) else error
        advice = "delete it, and dgn judge makes it again"
        raise RunDamaged(f"{run.store.url}/{key} is not what was written: {what}", advice) from error
    return table


def _judge(judgements: pa.Table, folder: str) -> Judge:
    """The judge of these judgements. Raises: DgnError if not all are by the judge that its folder names."""
    whose = judgements.group_by(["by", "by_weights_sha256"]).aggregate([]).drop_null().to_pylist()
    judges = [Judge(one["by"], one["by_weights_sha256"]) for one in whose]
    if len(judges) != 1 or judges[0].folder != folder or not re.fullmatch(_SHA256, judges[0].sha256):
        raise DgnError("not all of its judgements are by the judge that its folder names")
    return judges[0]


def compact(
    run: Run, part_id: str, rows: pa.Table, shards: set[int], listed: Mapping[str, set[int]], old: Sequence[Judged]
) -> list[Judged]:
    """Brings a part's compacted judgements up to date: one file for each judge that judged any of its shards.

    Args:
        rows: target_id, shard and attempt of rows.parquet.
        listed: as `judged_shards` returns it.
        old: the compacted judgements so far, which stay if nothing is new.

    Raises: RunDamaged.
    """
    known = {judged.judge.folder: judged for judged in old}
    found = []
    for folder in sorted(listed):
        there = listed[folder] & shards
        before = known.get(folder)
        covered = before.shard_numbers() if before else set()
        new = _aligned(run, folder, there - covered, rows)
        # New judgements that fit no row are of other renderings.
        if before and covered <= there and new["attempt"].null_count == len(new):
            found.append(before)
            continue
        aligned = new if not covered else _aligned(run, folder, there, rows)
        if aligned["attempt"].null_count < len(aligned):
            found.append(_write_compacted(run, part_id, folder, aligned))
    return found


def is_up_to_date(shards: set[int], listed: Mapping[str, set[int]], judged: Sequence[Judged]) -> bool:
    """Whether a part's compacted judgements cover exactly the shards that were judged."""
    there = {folder: found & shards for folder, found in listed.items() if found & shards}
    return there == {one.judge.folder: one.shard_numbers() for one in judged}


def _aligned(run: Run, folder: str, shards: set[int], rows: pa.Table) -> pa.Table:
    """The judgement of each row, null if this rendering was not judged."""
    tables = read_many(partial(_read, run=run, folder=folder), sorted(shards))
    judgements = pa.concat_tables([SCHEMA.empty_table(), *tables])
    places = pc.index_in(rows["target_id"], value_set=judgements["target_id"])
    found = judgements.take(places)
    is_true = pc.and_(pc.equal(found["attempt"], rows["attempt"]), pc.equal(found["shard"], rows["shard"]))
    return found.take(_or_null(pc.fill_null(is_true, False)))


def _or_null(is_kept: pa.ChunkedArray) -> pa.ChunkedArray:
    """Each row's number, null for rows that are not kept."""
    return pc.if_else(is_kept, pa.array(range(len(is_kept)), pa.int32()), None)


def _write_compacted(run: Run, part_id: str, folder: str, aligned: pa.Table) -> Judged:
    judge = _judge(aligned, folder)
    has_picture = pc.is_valid(aligned[f"{DISTORTION_NAMES[0]}_rank"])
    about = {"schema_version": SCHEMA_VERSION, "by": judge.network, "by_weights_sha256": judge.sha256}
    described = JUDGED_SCHEMA.with_metadata({"dgn": json.dumps(about, sort_keys=True)})
    table = aligned.select(JUDGED_SCHEMA.names).take(_or_null(has_picture)).cast(described)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="snappy")
    name = f"{JUDGED}{folder}-{dated_id()}.parquet"
    run.store.create(judged_key(part_id, name), buffer.getvalue())
    shards = as_ranges(sorted(pc.unique(aligned["shard"].drop_null()).to_pylist()))
    return Judged(judge.network, judge.sha256, name, pc.sum(has_picture).as_py(), buffer.tell(), shards)


def judged_key(part_id: str, name: str) -> str:
    return f"index/{part_id}/{name}"


def read_judged(
    run: Run, part_id: str, num_rows: int, judged: Judged, columns: Sequence[str] | None = None
) -> pa.Table:
    """A part's judgements, one row for each of its `num_rows` rows. Raises: RunDamaged."""
    key = judged_key(part_id, judged.name)
    try:
        table = schema.parse(run.store.read(key), columns, JUDGED_SCHEMA)
        if len(table) != num_rows:
            raise DgnError(f"it has {len(table)} rows for {num_rows}")
    except (DgnError, FileNotFoundError) as error:
        what = "it is gone" if isinstance(error, FileNotFoundError) else error
        advice = "dgn index --rebuild makes it again"
        raise RunDamaged(f"{run.store.url}/{key} is not what was written: {what}", advice) from error
    return table
