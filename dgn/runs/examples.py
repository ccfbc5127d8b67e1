"""Examples: the photographs that excite a run's units most, in a folder of the run's own.

    examples/run.json, metadata/, failures/, lease.json   a job over photographs with shards as in `run.py`
    examples/examples.parquet                             both lists of every subject, see COLUMNS
    examples/photographs.parquet                          the photographs in them, with thumbnails
    examples/sheets/<subject>.webp                        a subject's nine strongest photographs, 3 x 3
    examples/done.json                                    what was looked at; written last

A shard's file has a row for each photograph that is among the best of the shard. The lists are made of these, so their
bytes do not depend on what was lost or done twice on the way.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from dgn.errors import DgnError, RunDamaged
from dgn.pictures.example_sheets import NUM_BEST
from dgn.runs import schema
from dgn.runs.layout import metadata_key
from dgn.runs.run import Run, read_many
from dgn.runs.schema import Column
from dgn.runs.stores import KeyExists, open_store
from dgn.text import NOT_JSON

VERSION = 1
FOLDER = "examples"
LISTS, PHOTOGRAPHS, DONE = "examples.parquet", "photographs.parquet", "done.json"
DIGEST_BYTES = 8  # of a photograph's SHA-256, kept of each
KINDS = ("strongest", "wrong")
AGAIN = "delete the folder examples of the run, and dgn examples makes it again"  # advice that ends a message
SIDES = ("box_left", "box_top", "box_right", "box_bottom")
_OF_SUBJECT = (
    Column(
        "subject", pa.string(), "Subject", "what is sought: a target_id without its mode and seed", is_required=True
    ),
    Column("layer", pa.string(), "Layer", "as in the rows", is_required=True),
    Column("unit", pa.int32(), "Unit", "as in the rows"),
    Column("label", pa.string(), "Label", "as in the rows"),
)
_OF_EXAMPLE = (
    Column("kind", pa.string(), "Kind", "`strongest`; or `wrong`: the network puts this class first, with the highest "
           "probability, and the photograph's folder says another", is_required=True),
    Column("place", pa.int32(), "Place", "1 to 9 in the list", is_required=True),
    Column("activation", pa.float32(), "Activation",
           "as the rows' activation, but a class's value as it is, also below zero"),
    Column("probability", pa.float32(), "Probability", "of a class; otherwise null"),
    *(Column(side, pa.float32(), side.replace("_", " ").capitalize(),
             f"{side.removeprefix('box_')} side of the box around the strongest response, as a share of the square "
             "that the network saw; null without a map") for side in SIDES),
)  # fmt: skip
_OF_PHOTOGRAPH = (
    Column("photograph", pa.string(), "Photograph", "its name in the folder", is_required=True),
    Column("sha256", pa.string(), "SHA-256", "of its file", is_required=True),
    Column("true_class", pa.int32(), "True class", "the class that its folder names; otherwise null"),
)
THUMBNAIL = Column("thumbnail", pa.binary(), "Thumbnail", "WebP, 96 x 96 px, of the square that the network saw")
COLUMNS = (*_OF_SUBJECT, *_OF_EXAMPLE, *_OF_PHOTOGRAPH)
SCHEMA = pa.schema([(column.name, column.type) for column in COLUMNS])
PHOTOGRAPH_SCHEMA = pa.schema([(column.name, column.type) for column in (*_OF_PHOTOGRAPH, THUMBNAIL)])
_EXCITES = pa.struct([
    ("subject", pa.int32()), ("kind", pa.string()),
    *((c.name, c.type) for c in _OF_EXAMPLE if c.name not in ("kind", "place")),
])  # fmt: skip
SHARD_SCHEMA = pa.schema([
    *PHOTOGRAPH_SCHEMA, ("number", pa.int64()), ("attempt", pa.string()), ("excites", pa.list_(_EXCITES)),
])  # fmt: skip


@dataclass(frozen=True)
class Done:
    """The content of done.json: what was looked at.

    Args:
        column: of Parquet files. left_out: other files, in words. unreadable: names and reasons of the first ten.
        num_copies: photographs whose files are another's, byte by byte. num_with_class: photographs whose folder names
            a class.
    """

    version: int
    images: str
    column: str
    left_out: str
    num_photographs: int
    num_unreadable: int
    unreadable: tuple[str, ...]
    num_copies: int
    num_with_class: int
    num_subjects: int
    num_examples: int


class Examples(Run):
    """The examples of a run: a job of their own, with its own commits, in a folder below the run."""

    holds_examples = True

    @classmethod
    def of(cls, run: Run) -> Examples:
        return cls(open_store(f"{run.store.url}/{FOLDER}"))

    def commit(self, shard: int, attempt: str, rows: list[dict[str, Any]], metadata: dict[str, Any]) -> None:
        """Makes a shard whole. Every attempt at it writes the same, so whoever is second has nothing to take back."""
        try:
            self.store.create(metadata_key(shard), schema.serialise(rows, metadata, SHARD_SCHEMA))
        except KeyExists:
            return

    def shards(self, count: int) -> Iterator[tuple[pa.Table, dict[str, Any]]]:
        """Rows and metadata of all shards, in order. Raises: RunDamaged."""
        for table in read_many(self._shard, range(count)):
            yield table.replace_schema_metadata(None), json.loads(table.schema.metadata[b"dgn"])

    def _shard(self, shard: int) -> pa.Table:
        key = metadata_key(shard)
        try:
            data = self.store.read(key)
            table = schema.parse(data, schema=SHARD_SCHEMA)
            return table.replace_schema_metadata(pq.read_schema(pa.BufferReader(data)).metadata)
        except (DgnError, FileNotFoundError) as error:
            what = "it is gone" if isinstance(error, FileNotFoundError) else error
            raise RunDamaged(f"{self.store.url}/{key} is not what was committed: {what}", AGAIN) from error

    def done(self) -> Done | None:
        """None before all are made. Raises: RunDamaged."""
        try:
            return TypeAdapter(Done).validate_python(json.loads(self.store.read(DONE)))
        except FileNotFoundError:
            return None
        except (ValidationError, *NOT_JSON) as error:
            raise RunDamaged(f"{self.store.url}/{DONE} is not what was written", AGAIN) from error

    @property
    def has_lists(self) -> bool:
        return all(self.store.exists(name) for name in (LISTS, PHOTOGRAPHS))

    def finish(self, done: Done) -> None:
        self.store.write(DONE, json.dumps(asdict(done), indent=2).encode())

    def write(self, name: str, table: pa.Table) -> None:
        """LISTS or PHOTOGRAPHS."""
        described = table.replace_schema_metadata({"dgn": json.dumps({"schema_version": VERSION})})
        buffer = io.BytesIO()
        # The rows of one subject lie together, so that readers find them by the statistics of small row groups.
        pq.write_table(described, buffer, compression="snappy", row_group_size=4096, write_page_index=True)
        self.store.write(name, buffer.getvalue())

    def lists(self) -> pa.Table:
        """Both lists of every subject. Raises: DgnError if there are none yet; RunDamaged."""
        return self._read(LISTS, SCHEMA)

    def thumbnails(self, photographs: Collection[str]) -> dict[str, bytes]:
        """Files of thumbnails by their photographs' names. Raises: as `lists`."""
        table = self._read(PHOTOGRAPHS, PHOTOGRAPH_SCHEMA)
        some = table.filter(pc.is_in(table["photograph"], pa.array(photographs, pa.string())))
        return dict(zip(some["photograph"].to_pylist(), some["thumbnail"].to_pylist(), strict=True))

    def _read(self, name: str, of: pa.Schema) -> pa.Table:
        try:
            return schema.parse(self.store.read(name), schema=of)
        except FileNotFoundError as error:
            raise DgnError(
                f"{self.store.url.removesuffix('/' + FOLDER)} has no examples yet: dgn examples RUN IMAGES makes them"
            ) from error
        except DgnError as error:
            raise RunDamaged(f"{self.store.url}/{name} is not what was written: {error}", AGAIN) from error


def sheet_key(subject: str) -> str:
    return f"sheets/{subject}.webp"


@dataclass(frozen=True)
class Merged:
    """The lists over all shards. One row per example in `lists`, with the subject's number."""

    lists: pa.Table  # subject, kind, place, activation, probability, box, number
    photographs: pa.Table  # PHOTOGRAPH_SCHEMA and number, in order of numbers, of those that are in a list


class Merger:
    """Merges the lists of shards, which come in order. Of files that are the same, byte by byte, the first counts."""

    def __init__(self) -> None:
        self.num_copies = self.num_photographs = 0  # so far
        self._rows: pa.Table | None = None
        self._photographs: pa.Table | None = None
        self._seen: set[int] = set()  # digests

    def add(self, shard: pa.Table, digests: str) -> None:
        """A shard's rows and the digests of all its photographs, in hex, zeros for one that cannot be read."""
        copies = self._copies(np.frombuffer(bytes.fromhex(digests), dtype=">u8"))
        shard = shard.filter(pc.invert(pc.is_in(shard["number"], pa.array(copies, pa.int64()))))
        if not len(shard):
            return
        counts = [len(excites) for excites in shard["excites"]]
        flat = pa.Table.from_struct_array(pa.chunked_array([shard["excites"].combine_chunks().flatten()], _EXCITES))
        flat = flat.append_column("number", shard["number"].take(np.repeat(np.arange(len(shard)), counts)))
        rows = flat if self._rows is None else pa.concat_tables([self._rows, flat])
        self._rows = rows.take(_best(rows))
        photographs = shard.select([*PHOTOGRAPH_SCHEMA.names, "number"])
        if self._photographs is not None:
            photographs = pa.concat_tables([self._photographs, photographs])
        is_kept = np.isin(photographs["number"].to_numpy(), self._rows["number"].to_numpy())
        self._photographs = photographs.filter(pa.array(is_kept))

    def _copies(self, digests: NDArray[Any]) -> list[int]:
        """Numbers of the photographs that were there before."""
        copies = []
        for digest in digests.tolist():
            if digest in self._seen:
                copies.append(self.num_photographs)
            elif digest:
                self._seen.add(digest)
            self.num_photographs += 1
        self.num_copies += len(copies)
        return copies

    def result(self) -> Merged:
        """Raises: DgnError if the lists are empty."""
        if self._rows is None or self._photographs is None:
            raise DgnError("no photograph excites any of the run's units")
        rows = self._rows
        keys = rows["subject"].to_numpy(), _is_wrong(rows)
        starts = np.flatnonzero(np.r_[True, (keys[0][1:] != keys[0][:-1]) | (keys[1][1:] != keys[1][:-1])])
        places = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)])) + 1
        return Merged(rows.append_column("place", pa.array(places, pa.int32())), self._photographs)


def _is_wrong(rows: pa.Table) -> NDArray[np.bool_]:
    return pc.equal(rows["kind"], KINDS[1]).to_numpy()


def _best(rows: pa.Table) -> NDArray[np.intp]:
    """The rows that stay, nine of each list, in order of subject, kind, falling value, number."""
    is_wrong = _is_wrong(rows)
    values = np.where(is_wrong, rows["probability"].to_numpy(), rows["activation"].to_numpy())
    subjects = rows["subject"].to_numpy()
    order = np.lexsort((rows["number"].to_numpy(), -values, is_wrong, subjects))
    lists = np.stack([subjects[order], is_wrong[order]], 1)
    starts = np.flatnonzero(np.r_[True, (lists[1:] != lists[:-1]).any(1)])
    places = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return order[places < NUM_BEST]


def as_lists(merged: Merged, subjects: Sequence[dict[str, Any]]) -> pa.Table:
    """The table of SCHEMA. `subjects`: subject, layer, unit and label of each, by number."""
    rows = merged.lists
    places = np.searchsorted(merged.photographs["number"].to_numpy(), rows["number"].to_numpy())
    of_photograph = merged.photographs.take(places)
    of_subject = pa.Table.from_pylist(list(subjects), pa.schema([(c.name, c.type) for c in _OF_SUBJECT]))
    columns = {
        **{c.name: of_subject[c.name].take(rows["subject"]) for c in _OF_SUBJECT},
        **{c.name: rows[c.name] for c in _OF_EXAMPLE},
        **{c.name: of_photograph[c.name] for c in _OF_PHOTOGRAPH},
    }
    return pa.table([columns[name].combine_chunks().cast(SCHEMA.field(name).type) for name in SCHEMA.names], SCHEMA)
