"""The index of a run: its committed rows compacted into few sorted Parquet files, for queries and for the gallery.

index/current.json                 which parts make the index; written last, in one step, so nobody sees half of one
index/<part>/rows.parquet          all columns but the thumbnails, sorted by layer, mode and falling activation
index/<part>/thumbs.parquet        thumbnails in the same order; a row tells where in this file its own one lies
index/<part>/judged-<...>.parquet  second opinions in the same order, see judgements.py

The shards' files under `metadata/` stay the truth: an index can be deleted and made again. A part is made of some
shards and never changed; newer judgements of it are another file. New shards make a new part; small parts are made
again together with them, so that parts stay few and a row is written a logarithmic number of times, however often the
index is brought up to date. Indexers need no lock: one that finds another `current.json` at its end than at its
beginning starts over. What is no longer named is kept for a day, for those who are still reading it.
"""

from __future__ import annotations

import io
import json
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter, ValidationError

from cluster.judgements import JUDGED, JUDGED_SCHEMA, Judged, compact, is_up_to_date, judged_key, judged_shards
from cluster.rows import SCHEMA
from cluster.run import (
    NUM_READERS,
    Committed,
    Ranges,
    Run,
    RunInfo,
    as_ranges,
    dated_id,
    first_problem,
    in_ranges,
    made_at,
)
from cluster.store import RangeFile
from dgn.errors import NOT_JSON, RunDamaged, Shortened, StoreError

log = logging.getLogger("dgn")

VERSION = 1
CURRENT_FILE = "index/current.json"
FIRST_COLUMNS = (  # what filters, sorts and the gallery's grid need, side by side: a few kilobytes and one request
    "layer", "mode", "unit", "label", "status", "activation", "rank", "probability", "seed", "target_id",
    "thumb_offset", "thumb_bytes", "reason", "file_name",
)  # fmt: skip
THUMBS = [("thumb_offset", pa.int64()), ("thumb_bytes", pa.int32())]  # within the part's thumbs.parquet
_FIELDS = {name: type_ for name, type_ in zip(SCHEMA.names, SCHEMA.types, strict=True) if name != "thumbnail"}
_FIELDS |= dict(THUMBS)
INDEX_SCHEMA = pa.schema([(n, _FIELDS[n]) for n in (*FIRST_COLUMNS, *(n for n in _FIELDS if n not in FIRST_COLUMNS))])
SORTING = [("layer", "ascending"), ("mode", "ascending"), ("activation", "descending"), ("target_id", "ascending")]
GROUP_ROWS = 16_384  # rows of a row group
PAGE_ROWS = 128  # so that one row's details are a few kilobytes to fetch
PART_ROWS = 65_536  # at most; with thumbnails of 3 kB a part is made within half a gigabyte
GROWTH = 2  # a part up to so many times larger than what is new is made again together with it
KEPT_FOR = timedelta(days=1)
ADVICE = "dgn index --rebuild makes it again"
TAIL_BYTES = 8  # of a Parquet file: the footer's length and a magic word


@dataclass(frozen=True)
class Group:
    """The rows of one layer and mode in a part. `first_shard` tells depth: shards are numbered in order of depth."""

    layer: str
    mode: str
    num_rows: int
    max_activation: float | None
    first_shard: int


@dataclass(frozen=True)
class Part:
    """Rows of some shards (half-open ranges). `footer_bytes` end rows.parquet: what a reader fetches first."""

    id: Annotated[str, Field(pattern=r"^[0-9TZ]+-[0-9a-f]{8}$")]
    num_rows: int
    rows_bytes: int
    footer_bytes: int
    thumbs_bytes: int
    shards: Ranges
    groups: list[Group]
    judged: list[Judged] = field(default_factory=list)

    @property
    def rows_key(self) -> str:
        return f"index/{self.id}/rows.parquet"

    @property
    def thumbs_key(self) -> str:
        return f"index/{self.id}/thumbs.parquet"

    @property
    def num_shards(self) -> int:
        return sum(stop - start for start, stop in self.shards)

    def shard_numbers(self) -> Iterable[int]:
        return in_ranges(self.shards)


@dataclass(frozen=True)
class Index:
    """current.json. `files` names the parts' rows.parquet for programs that only want to read them. `former`: parts and
    judgements (`<part>/<name>`) that lost their name within the last day, and when, in seconds since 1970."""

    version: int
    run_id: str
    created_at: str
    settings: dict[str, Any]  # the run's preset and its fingerprint
    num_shards: int  # of the run, indexed or not
    num_targets: int
    num_rows: int
    files: list[str]
    parts: list[Part] = field(default_factory=list)
    former: dict[str, float] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Parts and judgements that it is made of, as in `former`."""
        return {part.id for part in self.parts} | {
            f"{part.id}/{one.name}" for part in self.parts for one in part.judged
        }

    @property
    def is_whole(self) -> bool:
        return sum(part.num_shards for part in self.parts) == self.num_shards


def read_index(run: Run) -> Index | None:
    """The index as it is now, None where there is none. Raises: StoreError for one that cannot be used."""
    data = _read_current(run)
    return None if data is None else _parsed(run, data)


def _read_current(run: Run) -> bytes | None:
    try:
        return run.store.read(CURRENT_FILE)
    except FileNotFoundError:
        return None


def _parsed(run: Run, data: bytes) -> Index:
    where = f"{run.store.url}/{CURRENT_FILE}"
    try:
        content = json.loads(data)
        version = content.get("version") if isinstance(content, dict) else None
        if version != VERSION:
            raise StoreError(f"{where} has version {version}, expected {VERSION}: {ADVICE}")
        return TypeAdapter(Index).validate_python(content)
    except ValidationError as error:
        raise RunDamaged(f"{where} is not as it was written: {first_problem(error)}; {ADVICE}") from error
    except NOT_JSON as error:
        raise RunDamaged(f"{where} is no JSON: {ADVICE}") from error


def update_index(run: Run, rebuild: bool = False) -> Index:
    """Brings the index up to date with the committed shards and their judgements, and returns it.

    Raises: StoreError for a shard's file that is not as it was committed.
    """
    while True:
        data = _read_current(run)
        try:
            old = None if data is None else _parsed(run, data)
        except StoreError:
            if not rebuild:
                raise
            old = None
        info = run.info()
        parts = _updated_parts(run, info, None if rebuild else old)
        if old and parts == old.parts:
            return old
        if data == _read_current(run):
            return _swing(run, info, parts, old)
        # Somebody was faster, or is about to render shards again whose rows are in these parts.


def _updated_parts(run: Run, info: RunInfo, old: Index | None) -> list[Part]:
    committed = run.committed(info.num_shards)
    there = set(run.store.list("index"))
    kept = [
        replace(part, judged=[one for one in part.judged if judged_key(part.id, one.name) in there])
        for part in _still_true(old, info, committed)
        if {part.rows_key, part.thumbs_key} <= there
    ]
    indexed = {shard for part in kept for shard in part.shard_numbers()}
    new = [shard for shard in range(info.num_shards) if shard in committed and shard not in indexed]
    most = max(1, PART_ROWS // info.run_config.shard_size)
    for part in sorted(kept, key=lambda part: part.num_rows):
        if new and part.num_shards <= GROWTH * len(new) and part.num_shards + len(new) <= most:
            kept.remove(part)
            new += part.shard_numbers()
    new.sort()
    parts = [*kept, *(_build_part(run, new[at : at + most]) for at in range(0, len(new), most))]
    parts.sort(key=lambda part: part.shards[0])
    listed = judged_shards(run)
    return [_with_judgements(run, part, listed) for part in parts]


def _with_judgements(run: Run, part: Part, listed: Mapping[str, set[int]]) -> Part:
    """The part and what there is of second opinions on its pictures."""
    shards = set(part.shard_numbers())
    if is_up_to_date(shards, listed, part.judged):
        return part
    file = open_part(run, part)
    rows = read_groups(run, part, file, range(file.num_row_groups), ["target_id", "shard", "attempt"])
    return replace(part, judged=compact(run, part.id, rows, shards, listed, part.judged))


def forget_missing(run: Run) -> None:
    """Takes out of the index what has lost a shard: whoever is about to render that one again makes other pictures.

    An index that cannot be read is forgotten as a whole, and where there is none an empty one tells an indexer at work
    that what it has read may change.
    """
    info = run.info()
    committed = run.committed(info.num_shards)
    try:
        old = read_index(run)
    except StoreError as error:
        log.warning("%s; it is made again when the job is done", error)
        old = None
    kept = _still_true(old, info, committed)
    if len(kept) < len(old.parts) if old else committed.count:
        _swing(run, info, kept, old)


def _still_true(old: Index | None, info: RunInfo, committed: Committed) -> list[Part]:
    if old is None or old.run_id != info.run_id:
        return []
    return [part for part in old.parts if all(shard in committed for shard in part.shard_numbers())]


def _swing(run: Run, info: RunInfo, parts: list[Part], old: Index | None) -> Index:
    index = Index(
        version=VERSION,
        run_id=info.run_id,
        created_at=datetime.now(UTC).isoformat(timespec="microseconds"),
        settings={"preset": info.config["preset"], **info.fingerprint},
        num_shards=info.num_shards,
        num_targets=info.num_targets,
        num_rows=sum(part.num_rows for part in parts),
        files=[part.rows_key for part in parts],
        parts=parts,
    )
    if old:
        now = time.time()
        lost = old.former | dict.fromkeys(old.names, now)
        young = {name: since for name, since in lost.items() if since > now - KEPT_FOR.total_seconds()}
        index.former.update((name, young[name]) for name in sorted(young.keys() - index.names))
    run.store.write(CURRENT_FILE, json.dumps(asdict(index)).encode())
    _delete_old(run, index)
    return index


def _delete_old(run: Run, index: Index) -> None:
    """Parts and judgements that nobody can still be reading or about to name. Their names tell when they were made."""
    oldest = datetime.now(UTC) - KEPT_FOR
    for key in list(run.store.list("index")):
        _, part, *file = key.split("/")
        name = f"{part}/{file[-1]}" if file and file[-1].startswith(JUDGED) else part
        is_kept = name in index.names or name in index.former or part in index.former
        made = made_at(part) if name == part else made_at(name.removesuffix(".parquet"))
        if not is_kept and made < oldest:
            run.store.delete(key)


def _build_part(run: Run, shards: Sequence[int]) -> Part:
    """Reads shards, writes their sorted rows and thumbnails."""
    rows = pa.concat_tables(run.tables(shards))
    rows = rows.take(pc.sort_indices(rows, [(*key, "at_end") for key in SORTING])).combine_chunks()
    thumbnails = [thumbnail.as_py() or b"" for thumbnail in rows["thumbnail"]]
    thumbs = _thumbs_file(rows["target_id"], thumbnails)
    located = {"thumb_offset": _places(thumbs, thumbnails), "thumb_bytes": [len(data) for data in thumbnails]}
    for name, type_ in THUMBS:
        rows = rows.append_column(name, pa.array(located[name], type_))
    data = _rows_file(rows.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA))
    part = Part(
        id=dated_id(),
        num_rows=rows.num_rows,
        rows_bytes=len(data),
        footer_bytes=int.from_bytes(data[-TAIL_BYTES:-4], "little") + TAIL_BYTES,
        thumbs_bytes=len(thumbs),
        shards=as_ranges(shards),
        groups=_groups(rows),
    )
    run.store.create(part.thumbs_key, thumbs)
    run.store.create(part.rows_key, data)
    return part


def _rows_file(rows: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(
        rows,
        buffer,
        compression="snappy",  # which every reader has, the gallery's too
        row_group_size=GROUP_ROWS,
        max_rows_per_page=PAGE_ROWS,
        write_page_index=True,
        sorting_columns=pq.SortingColumn.from_ordering(rows.schema, SORTING),
    )
    return buffer.getvalue()


def _thumbs_file(target_ids: pa.ChunkedArray, thumbnails: list[bytes]) -> bytes:
    """Not compressed, so that a thumbnail can be fetched by its bytes alone."""
    buffer = io.BytesIO()
    table = pa.table({"target_id": target_ids, "thumbnail": pa.array(thumbnails, pa.binary())})
    pq.write_table(
        table, buffer, compression="none", use_dictionary=False, row_group_size=GROUP_ROWS, write_statistics=False
    )
    return buffer.getvalue()


def _places(file: bytes, thumbnails: list[bytes]) -> list[int]:
    """Where in the file each begins: Parquet's plain values stand one behind another, each behind its length."""
    places, at = [], 0
    for thumbnail in thumbnails:
        at = file.index(len(thumbnail).to_bytes(4, "little") + thumbnail, at) + 4
        places.append(at)
        at += len(thumbnail)
    return places


def _groups(rows: pa.Table) -> list[Group]:
    grouped = rows.group_by(["layer", "mode"], use_threads=False).aggregate(
        [("target_id", "count"), ("activation", "max"), ("shard", "min")]
    )
    return [
        Group(row["layer"], row["mode"], row["target_id_count"], _finite(row["activation_max"]), row["shard_min"])
        for row in grouped.to_pylist()
    ]


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def open_part(run: Run, part: Part) -> pq.ParquetFile:
    """rows.parquet, one request for its footer made and one for each further run of columns to come.

    Raises: StoreError where the part is gone or not as it was written.
    """
    if not 0 < part.footer_bytes < part.rows_bytes:
        raise _damaged(run, part, "its footer is said to be larger")
    try:
        data = run.store.read_range(part.rows_key, part.rows_bytes - part.footer_bytes, part.rows_bytes)
        metadata = pq.read_metadata(io.BytesIO(data))
        file = pq.ParquetFile(RangeFile(run.store, part.rows_key, part.rows_bytes), metadata=metadata, pre_buffer=True)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError, Shortened) as error:
        raise _damaged(run, part, error) from error
    if schema.names != INDEX_SCHEMA.names or schema.types != INDEX_SCHEMA.types:
        raise _damaged(run, part, "it has other columns")
    return file


def read_groups(run: Run, part: Part, file: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Some row groups of a part, in its order. Raises: StoreError as `open_part` does."""
    try:
        table = file.read_row_groups(list(groups), list(columns))
        table.validate(full=True)
    except (pa.ArrowException, OSError, Shortened) as error:
        raise _damaged(run, part, error) from error
    return table


def _damaged(run: Run, part: Part, what: Any) -> RunDamaged:
    text = " ".join(str(what).split())
    return RunDamaged(f"{run.store.url}/{part.rows_key} is not as it was written: {text}; {ADVICE}")


def judged_dataset(run: Run, index: Index) -> ds.Dataset | None:
    """All judgements for engines that read Arrow's datasets, None where there are none."""
    keys = [judged_key(part.id, judged.name) for part in index.parts for judged in part.judged]
    if not keys:
        return None
    return arrow_dataset(run, keys, JUDGED_SCHEMA).filter(ds.field("by").is_valid())


def unreadable(problem: str) -> RunDamaged:
    """`problem`: what Arrow has against one of the files of an `arrow_dataset`, with its path."""
    advice = "dgn verify tells what else is wrong" if "/metadata/" in problem else ADVICE
    return RunDamaged(f"a file of the run is missing or damaged: {' '.join(problem.split())}; {advice}")


def arrow_dataset(run: Run, keys: Sequence[str], schema: pa.Schema) -> ds.Dataset:
    """Files of the run for engines that read Arrow's datasets.

    Raises: RunDamaged where one is gone or its footer is: Arrow's own scan, begun on such a file, at times never ends.
    """
    files, root = run.store.arrow()

    def open_footer(key: str) -> None:
        try:
            pq.read_metadata(f"{root}/{key}", filesystem=files)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(f"{run.store.url}/{key}: {error}") from error

    with ThreadPoolExecutor(NUM_READERS) as readers:
        list(readers.map(open_footer, keys))
    return ds.dataset([f"{root}/{key}" for key in keys], schema=schema, filesystem=files, format="parquet")
