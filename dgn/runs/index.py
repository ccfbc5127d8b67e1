"""The index of a run: its committed rows compacted into few sorted Parquet files, for queries and for the gallery.

The shards' files under `metadata/` stay the truth: an index can be deleted and made again. A part is made of some
shards and never changed; newer judgements of it go into another file. New shards make a new part, together with the
rows of small parts, so that parts stay few and a row is written a logarithmic number of times, however often the index
is brought up to date. Indexers need no lock: one that finds another `current.json` at its end than at its start begins
again. Files that are no longer named are kept for a day, for those who are still reading them.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from dgn.errors import RunDamaged, StoreError
from dgn.runs.index_file import VERSION, Index, Part, parse_index, read_current, read_index
from dgn.runs.index_parts import build_part, open_part, read_groups
from dgn.runs.info import RunInfo
from dgn.runs.judgements import JUDGED, compact, is_up_to_date, judged_key, judged_shards
from dgn.runs.layout import INDEX_FILE, made_at
from dgn.runs.run import Run, read_many
from dgn.runs.shards import Committed

log = logging.getLogger("dgn")

PART_ROWS = 65_536  # at most; with thumbnails of 3 kB, making a part takes less than half a gigabyte
GROWTH = 2  # a part up to this many times as large as what is new is made again together with it
KEPT_FOR = timedelta(days=1)


def update_index(run: Run, rebuild: bool = False) -> Index:
    """Brings the index up to date with the committed shards and their judgements, and returns it.

    Raises: RunDamaged for a shard's file that is not what was committed.
    """
    while True:
        data = read_current(run)
        try:
            old = None if data is None else parse_index(run, data)
        except StoreError:
            if not rebuild:
                raise
            old = None
        info = run.info()
        parts = _updated_parts(run, info, None if rebuild else old)
        if old and parts == old.parts and info.num_targets == old.num_targets:
            return old
        if data == read_current(run):
            return _swing(run, info, parts, old)
        # Otherwise another indexer was faster, or a job is about to render shards again whose rows are in these parts.


def _updated_parts(run: Run, info: RunInfo, old: Index | None) -> list[Part]:
    """The parts that the index should have now: old ones that are still true, and new ones, which are written."""
    committed = run.committed(info.num_shards)
    there = set(run.store.list("index"))
    kept = [
        replace(part, judged=[one for one in part.judged if judged_key(part.id, one.name) in there])
        for part in _still_true(old, info, committed)
        if {part.rows_key, part.thumbs_key} <= there
    ]
    indexed = {shard for part in kept for shard in part.shard_numbers()}
    new = [shard for shard in committed if shard not in indexed]
    most = max(1, PART_ROWS // info.run_config.largest_shard)
    for part in sorted(kept, key=lambda part: part.num_rows):
        if new and part.num_shards <= GROWTH * len(new) and part.num_shards + len(new) <= most:
            kept.remove(part)
            new += part.shard_numbers()
    new.sort()
    parts = [*kept, *(build_part(run, new[at : at + most]) for at in range(0, len(new), most))]
    parts.sort(key=lambda part: part.shards[0])
    listed = judged_shards(run)
    return [_with_judgements(run, part, listed) for part in parts]


def _with_judgements(run: Run, part: Part, listed: Mapping[str, set[int]]) -> Part:
    """The part with all second opinions on its pictures."""
    shards = set(part.shard_numbers())
    if is_up_to_date(shards, listed, part.judged):
        return part
    file = open_part(run, part)
    rows = read_groups(run, part, file, range(file.num_row_groups), ["target_id", "shard", "attempt"])
    return replace(part, judged=compact(run, part.id, rows, shards, listed, part.judged))


def indexed_rows(
    run: Run, info: RunInfo, committed: Committed, columns: Sequence[str]
) -> Iterator[tuple[Part, pa.Table]]:
    """Some columns of the index's rows, part by part, of the parts whose shards are all whole.

    What cannot be read is left out with a warning: the shards have the same rows.
    """
    try:
        parts = _still_true(read_index(run), info, committed)
    except StoreError as error:
        log.warning("%s", error)
        return
    found = read_many(lambda number: _rows_if_whole(run, parts[number], columns), range(len(parts)))
    for part, rows in zip(parts, found, strict=True):
        if rows is not None:
            yield part, rows


def _rows_if_whole(run: Run, part: Part, columns: Sequence[str]) -> pa.Table | None:
    try:
        file = open_part(run, part)
        return read_groups(run, part, file, range(file.num_row_groups), columns)
    except RunDamaged as error:
        log.warning("%s", error)
        return None


def forget_missing(run: Run) -> None:
    """Removes parts from the index that have lost a shard, before the shard is rendered again with other pictures.

    An index that cannot be read is replaced by an empty one. So is a missing one, so that an indexer at work notices
    that what it has read may change.
    """
    info = run.info()
    committed = run.committed(info.num_shards)
    try:
        old = read_index(run)
    except StoreError as error:
        log.warning("%s; it is made again at the end of the job", error)
        old = None
    kept = _still_true(old, info, committed)
    if len(kept) < len(old.parts) if old else committed.count:
        _swing(run, info, kept, old)


def _still_true(old: Index | None, info: RunInfo, committed: Committed) -> list[Part]:
    """Parts of this run whose shards are all whole."""
    if old is None or old.run_id != info.run_id:
        return []
    return [part for part in old.parts if all(shard in committed for shard in part.shard_numbers())]


def _swing(run: Run, info: RunInfo, parts: list[Part], old: Index | None) -> Index:
    """Writes current.json for these parts, then deletes files that are no longer needed."""
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
    run.store.write(INDEX_FILE, json.dumps(asdict(index)).encode())
    _delete_old(run, index)
    return index


def _delete_old(run: Run, index: Index) -> None:
    """Deletes parts and judgements that nobody can still be reading or about to name. Their names say when they were
    made."""
    oldest = datetime.now(UTC) - KEPT_FOR
    for key in list(run.store.list("index")):
        _, part, *file = key.split("/")
        name = f"{part}/{file[-1]}" if file and file[-1].startswith(JUDGED) else part
        is_kept = name in index.names or name in index.former or part in index.former
        made = made_at(part) if name == part else made_at(name.removesuffix(".parquet"))
        if not is_kept and made < oldest:
            run.store.delete(key)
