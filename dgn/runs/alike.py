"""Which pictures of a run look alike, in files of their own below the run.

    alike/<network>-<8 hex of its weights' sha256>/<shard>.parquet   features, created once, when the shard is looked at
    alike/<time>-<8 hex>/embeddings.parquet                         an embedding of each picture, of halves
    alike/<time>-<8 hex>/alike.parquet                              its neighbours, two figures, its place on the map
    alike/current.json                                              which of these count; written last, in one step

The latter three are made again, of all pictures, whenever `dgn alike` runs. They have a row per picture, in the order
of the index at that time.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

import dgn
from dgn.errors import DgnError, RunDamaged, StoreError
from dgn.runs import schema
from dgn.runs.layout import dated_id, made_at
from dgn.runs.run import Run
from dgn.runs.schema import Column
from dgn.text import NOT_JSON

VERSION = 1
FOLDER = "alike"
CURRENT_FILE = f"{FOLDER}/current.json"
NUM_SIMILAR = 12
AGAIN = "dgn alike makes it again"  # advice that ends a message
KEPT_FOR = timedelta(days=1)
HALVES = pa.list_(pa.field("element", pa.float16(), nullable=False))
FIGURES = (
    Column("redundancy", pa.float32(), "Redundancy", "how much it resembles another unit's picture: the highest cosine "
           "of their embeddings among the same layer and mode; null if there is no other"),
    Column("spread", pa.float32(), "Spread", "how much the unit's pictures of other seeds differ: the mean of 1 - "
           "cosine over all pairs of the same mode; null with one seed"),
)  # fmt: skip
_KEYS = (
    Column("target_id", pa.string(), "Target", "as in the rows", is_required=True),
    Column("attempt", pa.string(), "Attempt", "as in the rows: of another rendering of the shard nothing is known"),
)
COLUMNS = (
    *_KEYS,
    Column("x", pa.float32(), "x", "place on the map, 0 to 1 from the left; null without a map"),
    Column("y", pa.float32(), "y", "place on the map, 0 to 1 from the top, at the scale of x"),
    *FIGURES,
    Column("similar", pa.list_(pa.int32()), "Similar", f"the {NUM_SIMILAR} pictures that resemble it most, the most "
           "similar first: 0-based numbers of rows of this table"),
    Column("similarity", pa.list_(pa.float32()), "Similarity", "their cosines"),
)  # fmt: skip
SCHEMA = pa.schema([(column.name, column.type) for column in COLUMNS])
EMBEDDING = Column("embedding", HALVES, "Embedding", "of unit length, so that a cosine is the sum of products; at most "
                   "256 values: the main directions of the run's pictures in the network's last maps")  # fmt: skip
EMBEDDING_SCHEMA = pa.schema([(column.name, column.type) for column in (*_KEYS, EMBEDDING)])
FEATURES_SCHEMA = pa.schema([*((column.name, column.type) for column in _KEYS), ("features", HALVES)])
SIMILARITY = "similarity"  # of `like`, and of rows that `dgn query --like` shows
FIGURE_TYPES = {column.name: column.type for column in FIGURES}
_ROUNDING = 1e-3  # more than a cosine of halves can be wrong by: halves near 1 are 0.0005 apart


@dataclass(frozen=True)
class Current:
    """The content of current.json."""

    version: int
    run_id: str
    created_at: str
    by: str
    by_weights_sha256: str
    num_rows: int
    has_map: bool
    table: str
    table_bytes: int
    embeddings: str
    embeddings_bytes: int


class Alike:
    """What `dgn alike` found in a run."""

    def __init__(self, run: Run, current: Current):
        self.run, self.current = run, current

    @classmethod
    def of(cls, run: Run) -> Alike:
        """Raises: DgnError before `dgn alike` has run; RunDamaged."""
        found = read_current(run)
        if found is None:
            raise DgnError(f"nobody has looked yet which pictures are alike: dgn alike {run.store.url} does")
        return cls(run, found)

    def table(self, columns: Sequence[str] = tuple(SCHEMA.names)) -> pa.Table:
        """A row per picture, with COLUMNS or some. Raises: RunDamaged."""
        return self._read(self.current.table, list(columns), SCHEMA)

    @cached_property
    def _embedded(self) -> tuple[pa.Table, NDArray[np.float16]]:
        table = self._read(self.current.embeddings, None, EMBEDDING_SCHEMA)
        # A copy, because PyTorch does not take what it must not write to.
        return table.select([column.name for column in _KEYS]), as_array(table["embedding"]).copy()

    @property
    def targets(self) -> pa.Table:
        """Target and attempt of each row."""
        return self._embedded[0]

    @property
    def embeddings(self) -> NDArray[np.float16]:
        """(N, at most 256) halves of unit length. Raises: RunDamaged."""
        return self._embedded[1]

    def figures_of(self, rows: pa.Table) -> pa.Table:
        """Rows with `target_id` and `attempt`, and the columns of FIGURES beside them. Raises: RunDamaged."""
        names = [column.name for column in FIGURES]
        table = self.table(["target_id", "attempt", *names])
        places = self.places_of(rows, table)
        for name in names:
            rows = rows.append_column(name, table[name].take(places))
        return rows

    @staticmethod
    def places_of(rows: pa.Table, table: pa.Table) -> pa.ChunkedArray:
        """Where in `table` each of the rows is, null if it is not there or was rendered again since."""
        places = pc.index_in(rows["target_id"], value_set=table["target_id"].combine_chunks())
        is_known = pc.equal(table["attempt"].take(places), rows["attempt"])
        return pc.if_else(pc.fill_null(is_known, False), places, None)

    def number_of(self, target_id: str) -> int:
        """The row of a target. Raises: DgnError if there is none; RunDamaged."""
        number = pc.index(self.targets["target_id"], target_id).as_py()
        if number < 0:
            raise DgnError(
                f"no picture '{target_id}' was compared: expected a target_id such as LAYER-00009-untrained-s0; "
                f"if it was rendered since, repeat dgn alike {self.run.store.url}"
            )
        return number

    def like(self, number: int, top: int, among: NDArray[np.bool_] | None = None) -> pa.Table:
        """The `top` pictures most similar to that of a row, itself first: their target_id, attempt and similarity, the
        cosine of the embeddings. Of equals, earlier rows come first.

        Args:
            top: no more than there are.
            among: which rows to choose from, (N,); all without.

        Raises: RunDamaged.
        """
        import torch  # NumPy multiplies halves ten times more slowly

        every = torch.from_numpy(self.embeddings)
        cosines = every @ every[number]
        if among is not None:
            cosines[torch.from_numpy(~among)] = -torch.inf
        least = cosines.topk(top).values[-1] if top else torch.inf
        candidates = torch.nonzero((cosines >= least - _ROUNDING) & (cosines > -torch.inf))[:, 0]
        exact = torch.cosine_similarity(every[candidates].float(), every[number].float()[None])
        is_itself = candidates == number
        best = torch.sort(exact + 2 * is_itself, descending=True, stable=True).indices[:top]
        found = self.targets.take(pa.array(candidates[best].numpy()))
        return found.append_column(SIMILARITY, pa.array(exact[best].numpy(), pa.float32()))

    def _read(self, key: str, columns: list[str] | None, of: pa.Schema) -> pa.Table:
        try:
            table = schema.parse(self.run.store.read(key), columns, of)
            if len(table) != self.current.num_rows:
                raise DgnError(f"it has {len(table)} rows, not {self.current.num_rows}")
        except (DgnError, FileNotFoundError) as error:
            what = "it is gone" if isinstance(error, FileNotFoundError) else error
            raise RunDamaged(f"{self.run.store.url}/{key} is not what was written: {what}", AGAIN) from error
        return table


def read_current(run: Run) -> Current | None:
    """None before `dgn alike` has run, or if that was another run in the same place. Raises: RunDamaged."""
    where = f"{run.store.url}/{CURRENT_FILE}"
    try:
        current = TypeAdapter(Current).validate_python(json.loads(run.store.read(CURRENT_FILE)))
    except FileNotFoundError:
        return None
    except (ValidationError, *NOT_JSON) as error:
        raise RunDamaged(f"{where} is not what was written", AGAIN) from error
    if current.version != VERSION:
        raise StoreError(f"{where} has version {current.version}, this dgn reads {VERSION}: use the dgn that wrote it")
    return current if current.run_id == run.info().run_id else None


def as_array(halves: pa.ChunkedArray) -> NDArray[np.float16]:
    """Lists of one length as (N, length)."""
    joined = pa.concat_arrays(halves.chunks) if halves.num_chunks else pa.array([], HALVES)
    return joined.flatten().to_numpy(zero_copy_only=False).reshape(len(joined), -1 if len(joined) else 0)


def as_halves(values_NC: NDArray[np.floating]) -> pa.Array:
    """(N, C) as lists of halves."""
    num, width = values_NC.shape
    offsets = pa.array(np.arange(num + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(values_NC.astype(np.float16).ravel()), type=HALVES)


def write_alike(run: Run, table: pa.Table, embeddings: pa.Table, by: str, by_weights_sha256: str) -> Current:
    """Writes both tables, of SCHEMA and EMBEDDING_SCHEMA, and then that they count. Deletes old ones, except those that
    counted until now, which an open page may be reading."""
    folder, info = f"{FOLDER}/{dated_id()}", run.info()
    former = _former(run)
    about = {"run_id": info.run_id, "by": by, "by_weights_sha256": by_weights_sha256}
    data = {"table": as_file(table, about), "embeddings": as_file(embeddings, about, use_dictionary=False)}
    keys = {"table": f"{folder}/alike.parquet", "embeddings": f"{folder}/embeddings.parquet"}
    for name, key in keys.items():
        run.store.create(key, data[name])
    current = Current(
        version=VERSION,
        run_id=info.run_id,
        created_at=datetime.now(UTC).isoformat(timespec="microseconds"),
        by=by,
        by_weights_sha256=by_weights_sha256,
        num_rows=len(table),
        has_map=table["x"].null_count == 0,
        table_bytes=len(data["table"]),
        embeddings_bytes=len(data["embeddings"]),
        **keys,
    )
    run.store.write(CURRENT_FILE, json.dumps(asdict(current), indent=2).encode())
    oldest = datetime.now(UTC) - KEPT_FOR
    for key in list(run.store.list(FOLDER)):
        of = key.split("/")[1]
        if key not in keys.values() and of not in former and made_at(of) < oldest:
            run.store.delete(key)
    return current


def _former(run: Run) -> str:
    """The table that counts now, if any."""
    try:
        current = read_current(run)
    except StoreError:
        return ""
    return current.table if current else ""


def as_file(table: pa.Table, about: dict[str, str], **options: Any) -> bytes:
    """A Parquet file from which a few rows can be fetched by their bytes alone. `about`: for its metadata."""
    metadata = {"dgn": json.dumps({"schema_version": VERSION, "dgn_version": dgn.__version__, **about})}
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        buffer,
        compression="snappy",
        row_group_size=16_384,
        max_rows_per_page=128,
        write_page_index=True,
        **options,
    )
    return buffer.getvalue()
