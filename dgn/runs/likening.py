"""Finding out which pictures of a run look alike: a second network's features become embeddings, neighbours, a map."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from dgn.errors import DgnError, RunDamaged
from dgn.networks.frozen import FrozenNetwork
from dgn.pictures import likeness
from dgn.runs import schema
from dgn.runs.alike import (
    AGAIN,
    EMBEDDING_SCHEMA,
    FEATURES_SCHEMA,
    FOLDER,
    NUM_SIMILAR,
    SCHEMA,
    Alike,
    as_array,
    as_file,
    as_halves,
)
from dgn.runs.index_file import Index
from dgn.runs.index_parts import open_part, read_groups
from dgn.runs.judgements import Judge
from dgn.runs.picture_batches import read_ahead
from dgn.runs.run import Run, read_many
from dgn.runs.stores import KeyExists

log = logging.getLogger("dgn")

NUM_VALUES = 256  # of an embedding
SEED = r"-s\d+(to\d+)?$"  # at the end of a target_id
NEEDED = ("target_id", "shard", "attempt", "layer", "mode", "file_name")


@dataclass(frozen=True)
class Features:
    """The features of a run's pictures in one network, a file per shard."""

    run: Run
    by: Judge

    def key(self, shard: int) -> str:
        return f"{FOLDER}/{self.by.folder}/{shard:06d}.parquet"

    def look(self, shards: Sequence[int], network: FrozenNetwork) -> Iterator[int | RunDamaged]:
        """Writes the features of shards. Yields the number of pictures of each, or what is wrong with it."""
        tables: list[pa.Table] = []
        damage: RunDamaged | None = None
        size_px = self.run.info().network["size"]
        for batch in read_ahead(self.run, shards, size_px, network.engine.scoring_batch_size):
            try:
                pictures = [future.result() for future in batch.pictures]
            except RunDamaged as error:
                damage = damage or error
            else:
                tables.append(_featured(batch.rows, pictures, network))
            if batch.is_last:
                if damage is None:
                    self._write(batch.shard, pa.concat_tables(tables))
                yield damage or sum(len(table) for table in tables)
                tables, damage = [], None

    def _write(self, shard: int, table: pa.Table) -> None:
        data = as_file(table, {"by": self.by.network, "by_weights_sha256": self.by.sha256})
        try:
            self.run.store.create(self.key(shard), data)
        except KeyExists:  # of a rendering before, or by another process, which writes the same
            self.run.store.write(self.key(shard), data)

    def missing(self, shards: Sequence[int]) -> list[int]:
        """The shards that nobody has looked at, or only at another rendering of them."""
        there = set(self.run.store.list(f"{FOLDER}/{self.by.folder}"))
        seen = [shard for shard in shards if self.key(shard) in there]
        attempts = self.run.tables(seen, ["attempt"])
        known = {
            shard for shard, rows, found in zip(seen, attempts, read_many(self._attempts, seen), strict=True)
            if len(found) and found["attempt"][0] == rows["attempt"][0]
        }  # fmt: skip
        return [shard for shard in shards if shard not in known]

    def _attempts(self, shard: int) -> pa.Table:
        """Of a file that cannot be read: none, so that it is made again."""
        try:
            return self._read(shard, ["attempt"])
        except RunDamaged as error:
            log.warning("%s", error.problem)
            return FEATURES_SCHEMA.empty_table()

    def _read(self, shard: int, columns: list[str] | None = None) -> pa.Table:
        key = self.key(shard)
        try:
            return schema.parse(self.run.store.read(key), columns, FEATURES_SCHEMA)
        except (DgnError, FileNotFoundError) as error:
            what = "it is gone" if isinstance(error, FileNotFoundError) else error
            advice = f"delete it, and {AGAIN}"
            raise RunDamaged(f"{self.run.store.url}/{key} is not what was written: {what}", advice) from error

    def aligned(self, index: Index) -> Iterator[tuple[pa.Table, NDArray[np.float16]]]:
        """The index's rows that have features, with NEEDED, and these, (N, channels); part by part."""
        there = set(self.run.store.list(f"{FOLDER}/{self.by.folder}"))
        for part in index.parts:
            file = open_part(self.run, part)
            rows = read_groups(self.run, part, file, range(file.num_row_groups), NEEDED)
            seen = [shard for shard in part.shard_numbers() if self.key(shard) in there]
            found = pa.concat_tables([FEATURES_SCHEMA.empty_table(), *read_many(self._read, seen)])
            places = Alike.places_of(rows, found)
            if places.null_count < len(places):
                yield rows.filter(places.is_valid()), as_array(found["features"].take(places.drop_null()))


def _featured(rows: Sequence[dict[str, Any]], pictures: Sequence[torch.Tensor], network: FrozenNetwork) -> pa.Table:
    """Of the rows that have a picture which the network responds to. Raises: DgnError for NaN."""
    with_picture = [row for row in rows if row["file_name"] is not None]
    values = likeness.features(torch.cat(list(pictures)), network) if pictures else np.empty((0, 0))
    if not np.isfinite(values).all():
        strange = with_picture[int(np.flatnonzero(~np.isfinite(values).all(1))[0])]["target_id"]
        raise DgnError(f"{network.network.name} answers {strange} with NaN or infinity: name another with --by")
    has_any = np.asarray(values.any(1))
    kept = [row for row, responds in zip(with_picture, has_any, strict=True) if responds]
    columns = {name: pa.array([row[name] for row in kept], pa.string()) for name in ("target_id", "attempt")}
    # Halves end at 65,504, and some networks' features do not; only their directions count.
    columns["features"] = as_halves(likeness.normalised(values[has_any]))
    return pa.table(columns, schema=FEATURES_SCHEMA)


def likened(
    features: Features, index: Index, has_map: bool, observe: Callable[[int], None] = lambda done: None
) -> tuple[pa.Table, pa.Table] | None:
    """The tables of `alike.py`: SCHEMA and EMBEDDING_SCHEMA, for all pictures of the index that have features; None if
    none has.

    Args:
        has_map: whether to compute one; few pictures have none.
        observe: called with the number of pictures whose neighbours are known.
    """
    directions = likeness.main_directions((values for _, values in features.aligned(index)), NUM_VALUES)
    if directions is None:
        return None
    rows: list[pa.Table] = []
    embedded: list[NDArray[np.float16]] = []
    for table, values in features.aligned(index):
        rows.append(table)
        embedded.append(likeness.normalised(values.astype(np.float32) @ directions).astype(np.float16))
    table = pa.concat_tables(rows)
    halves_NC = np.concatenate(embedded)
    keys = table.select(["target_id", "attempt"])
    alike = _figures(table, likeness.normalised(halves_NC), has_map, observe)
    embeddings = keys.append_column(EMBEDDING_SCHEMA.field("embedding"), as_halves(halves_NC))
    return pa.table([*keys.columns, *alike], schema=SCHEMA), embeddings


def _figures(
    table: pa.Table, unit_NC: NDArray[np.float32], has_map: bool, observe: Callable[[int], None]
) -> list[pa.Array]:
    """The columns of SCHEMA after the keys."""
    num = len(unit_NC)
    rows_NK, cosines_NK = likeness.nearest(unit_NC, min(likeness.NUM_NEIGHBOURS, num - 1), observe)
    subjects = pc.replace_substring_regex(table["target_id"], SEED, "")
    groups, units = _codes(table["layer"], table["mode"]), _codes(subjects, table["mode"])
    x = y = np.full(num, np.nan, np.float32)
    if has_map and num >= likeness.FEWEST_ON_MAP:
        x, y = likeness.on_map(unit_NC, rows_NK, cosines_NK).T
    numbers = [x, y, likeness.redundancy(unit_NC, groups, units), likeness.spread(unit_NC, units)]
    return [
        *(pa.array(values, pa.float32(), from_pandas=True) for values in numbers),  # NaN becomes null
        *(pa.array(list(values[:, :NUM_SIMILAR]), pa.list_(type_)) for values, type_ in
          ((rows_NK, pa.int32()), (cosines_NK, pa.float32()))),
    ]  # fmt: skip


def _codes(*columns: pa.ChunkedArray) -> NDArray[np.int32]:
    """A number for each different combination of texts."""
    joined = pc.binary_join_element_wise(*columns, "\n")
    return joined.combine_chunks().dictionary_encode().indices.to_numpy()
