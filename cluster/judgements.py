"""Second opinions on a run's pictures, beside its rows: what an independent network and D itself say of them.

judgements/<network>-<8 hex of its weights' sha256>/<shard:06d>.parquet    created once, when its shard is judged
index/<part>/judged-<network>-<8 hex>-<time>-<8 hex>.parquet               the same, compacted for readers

Judges write the former, a row for each of the shard's rows, and know by `attempt` which rendering of the shard they
judged: what is of another one counts for nothing and is judged again. Readers read the latter, which holds a row for
each row of the part's rows.parquet, in its order, all null where there is no judgement. `index/current.json` names it.
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
from cluster import rows as row_files
from cluster.run import Ranges, Run, as_ranges, dated_id, in_ranges, read_many
from cluster.storage import KeyExists
from dgn.errors import DgnError, RunDamaged

SCHEMA_VERSION = 1
DISTORTED = ("jpeg", "blur", "crop", "turn")  # those of dgn.distort, which brings torch along
OF_JUDGE = [  # null for targets that are not of classes: another network has no such unit
    ("judge_rank", pa.int32()),  # of the target's class, 1 is first; of several the weakest counts
    ("judge_probability", pa.float32()),  # softmax of the target's class, the sum of several
    ("judge_top_unit", pa.int32()),  # the class that the judge puts first
    ("judge_top_label", pa.string()),
]
OF_OWN = [  # D's own rank and activation after each distortion, for every target
    field for name in DISTORTED for field in ((f"{name}_rank", pa.int32()), (f"{name}_activation", pa.float32()))
]
WHOSE = [("by", pa.string()), ("by_weights_sha256", pa.string())]  # the judge
TARGET = ("target_id", pa.string())
SCHEMA = pa.schema([TARGET, ("shard", pa.int32()), ("attempt", pa.string()), *WHOSE, *OF_JUDGE, *OF_OWN])
JUDGED_SCHEMA = pa.schema([*OF_JUDGE, *OF_OWN, TARGET, *WHOSE])
JUDGED = "judged-"  # how the name of a part's judgements begins
_NETWORK, _SHA256 = r"[A-Za-z0-9][A-Za-z0-9_.-]*", r"[0-9a-f]{64}"
_FOLDER = rf"{_NETWORK}-[0-9a-f]{{8}}"
_KEY = re.compile(rf"judgements/({_FOLDER})/(\d+)\.parquet")


@dataclass(frozen=True)
class Judge:
    """An independent network. `sha256`: of its weights' file."""

    network: str
    sha256: str

    @property
    def folder(self) -> str:
        return f"{self.network}-{self.sha256[:8]}"


@dataclass(frozen=True)
class Judged:
    """A part's judgements by one judge, in `index/<part>/<name>`. `shards`: those of the part that it has judged, as
    half-open ranges; `num_rows`: of the part's pictures, how many."""

    by: Annotated[str, Field(pattern=rf"^{_NETWORK}$")]
    weights_sha256: Annotated[str, Field(pattern=rf"^{_SHA256}$")]
    name: Annotated[str, Field(pattern=rf"^{JUDGED}{_FOLDER}-[0-9TZ]+-[0-9a-f]{{8}}\.parquet$")]
    num_rows: int
    bytes: int
    shards: Ranges

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
    """One file for a shard: `rows` of SCHEMA without the judge. `is_again`: in place of one that is out of date."""
    whose = {"by": judge.network, "by_weights_sha256": judge.sha256}
    metadata = {"schema_version": SCHEMA_VERSION, "dgn_version": dgn.__version__, **whose, **about}
    data = row_files.serialise([row | whose for row in rows], metadata, SCHEMA)
    key = judgements_key(judge.folder, shard)
    if is_again:
        run.store.write(key, data)
        return
    try:
        run.store.create(key, data)
    except KeyExists:  # a second judge at the same work, who says the same
        return


def judged_shards(run: Run) -> dict[str, set[int]]:
    """Which shards have a file, by the judge's folder. One uncached listing."""
    found: dict[str, set[int]] = {}
    for key in run.store.list("judgements"):
        match = _KEY.fullmatch(key)
        if match and key == judgements_key(match[1], shard := int(match[2])):
            found.setdefault(match[1], set()).add(shard)
    return found


def _read(shard: int, run: Run, folder: str) -> pa.Table:
    key = judgements_key(folder, shard)
    try:
        table = row_files.parse(run.store.read(key), of=SCHEMA)
        _judge(table, folder)
    except (DgnError, FileNotFoundError) as error:
        what = "it is gone" if isinstance(error, FileNotFoundError) else error
        raise RunDamaged(
            f"{run.store.url}/{key} is not as it was written: {what}; delete it, and dgn judge makes it again"
        ) from error
    return table


def _judge(judgements: pa.Table, folder: str) -> Judge:
    """Whose they are. Raises: DgnError where not all are of the one judge that has this folder."""
    whose = judgements.group_by(["by", "by_weights_sha256"]).aggregate([]).drop_null().to_pylist()
    judges = [Judge(one["by"], one["by_weights_sha256"]) for one in whose]
    if len(judges) != 1 or judges[0].folder != folder or not re.fullmatch(_SHA256, judges[0].sha256):
        raise DgnError("its judgements are not all of the judge that its folder names")
    return judges[0]


def compact(
    run: Run, part_id: str, rows: pa.Table, shards: set[int], listed: Mapping[str, set[int]], old: Sequence[Judged]
) -> list[Judged]:
    """Judgements of a part, a file for each judge of any of its `shards`; those of `old` stay where nothing is new.
    `rows`: target_id, shard and attempt of rows.parquet. `listed`: as `judged_shards` found them.

    Raises: StoreError.
    """
    known = {judged.judge.folder: judged for judged in old}
    found = []
    for folder in sorted(listed):
        there = listed[folder] & shards
        before = known.get(folder)
        covered = before.shard_numbers() if before else set()
        new = _aligned(run, folder, there - covered, rows)
        if before and covered <= there and new["attempt"].null_count == len(new):  # of other renderings, if any
            found.append(before)
            continue
        aligned = new if not covered else _aligned(run, folder, there, rows)
        if aligned["attempt"].null_count < len(aligned):
            found.append(_write_compacted(run, part_id, folder, aligned))
    return found


def is_up_to_date(shards: set[int], listed: Mapping[str, set[int]], judged: Sequence[Judged]) -> bool:
    """Whether a part's compacted judgements are of the very shards that there are judgements of."""
    there = {folder: found & shards for folder, found in listed.items() if found & shards}
    return there == {one.judge.folder: one.shard_numbers() for one in judged}


def _aligned(run: Run, folder: str, shards: set[int], rows: pa.Table) -> pa.Table:
    """The judgement of each row, null where there is none of this very rendering."""
    tables = read_many(partial(_read, run=run, folder=folder), sorted(shards))
    judgements = pa.concat_tables([SCHEMA.empty_table(), *tables])
    places = pc.index_in(rows["target_id"], value_set=judgements["target_id"])
    found = judgements.take(places)
    is_true = pc.and_(pc.equal(found["attempt"], rows["attempt"]), pc.equal(found["shard"], rows["shard"]))
    return found.take(_or_null(pc.fill_null(is_true, False)))


def _or_null(is_kept: pa.ChunkedArray) -> pa.ChunkedArray:
    """Each row's number, null where it is not kept."""
    return pc.if_else(is_kept, pa.array(range(len(is_kept)), pa.int32()), None)


def _write_compacted(run: Run, part_id: str, folder: str, aligned: pa.Table) -> Judged:
    judge = _judge(aligned, folder)
    has_picture = pc.is_valid(aligned[f"{DISTORTED[0]}_rank"])
    about = {"schema_version": SCHEMA_VERSION, "by": judge.network, "by_weights_sha256": judge.sha256}
    schema = JUDGED_SCHEMA.with_metadata({"dgn": json.dumps(about, sort_keys=True)})
    table = aligned.select(JUDGED_SCHEMA.names).take(_or_null(has_picture)).cast(schema)
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
    """A part's judgements, one row for each of its `num_rows` rows. Raises: StoreError."""
    key = judged_key(part_id, judged.name)
    try:
        table = row_files.parse(run.store.read(key), columns, JUDGED_SCHEMA)
        if len(table) != num_rows:
            raise DgnError(f"it has {len(table)} rows for {num_rows}")
    except (DgnError, FileNotFoundError) as error:
        what = "it is gone" if isinstance(error, FileNotFoundError) else error
        advice = "dgn index --rebuild makes it again"
        raise RunDamaged(f"{run.store.url}/{key} is not as it was written: {what}; {advice}") from error
    return table
