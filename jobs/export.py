"""`dgn export`: a run as a data set that Hugging Face's `datasets` loads, or as few tar packs with an index.

hf    data/train-00000-of-00012.parquet   pictures and all columns of their rows
      README.md                           the data set's card, written last
tar   pack-00000.tar                      pictures under their target_id
      index.parquet                       all columns, and where in which pack a row's picture lies; written last

Both are sorted as the index of a run is, and the same rows give the same bytes. Every picture is checked against its
row's sha256. What is exported whole has its last file; an export that fails takes its files away again.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.query import COLUMNS, Condition, Rows, condition, parse_condition
from cluster.rows import SCHEMA
from cluster.run import NUM_READERS, Run, RunInfo
from cluster.storage import LocalStore, Store, open_store
from dgn.errors import DgnError, RunDamaged, StoreError, printable
from jobs.progress import pictures_shown
from jobs.query import STATUSES, whole_picture
from jobs.status import open_run

PACK_BYTES = 256 * 2**20  # of a pack or a file of Parquet, give or take a picture; it is made in memory
ROWS_AT_A_TIME = 100  # a row group of pictures, as `datasets` itself writes them
ROW_BYTES = 1024  # a row's own columns, about; a tar header and what fills up the last block are no more
PLAIN_NAME = re.compile(r"\w[\w.+-]*", re.ASCII)  # of a file, wherever it is unpacked

Piece = tuple[int, pa.Table, list[bytes | None]]  # a pack's number, some of its rows, their PNGs


def export_command(url: str, out: str, form: str, where: list[str]) -> None:
    """`form`: hf or tar."""
    conditions = [parse_condition(text) for text in where]  # before anything is looked for
    run = open_run(url)
    store = open_store(out)
    if os.path.isfile(store.url):
        raise DgnError(
            f"{store.url} is a file: expected a new or an empty folder for the export, or s3://bucket/prefix"
        )
    store.check(must_write=True)
    for is_hidden in (False, True):
        if (found := next(store.list("", is_hidden), None)) is not None:
            raise DgnError(
                f"{store.url} is not empty, it holds {found}: give a folder or prefix that is, or delete what an "
                "interrupted export left"
            )
    rows = Rows(run)
    chosen = Chosen(rows, where, conditions, rows.select(conditions, ["layer", "mode", "status", "bytes"]))
    if chosen.table.num_rows == 0:
        raise DgnError(f"{run.store.url} has no rows{' like that' if where else ''} yet")
    if chosen.table["layer"].null_count:
        raise DgnError(f"{run.store.url} has rows without a layer: dgn verify tells what else is wrong")
    with _taken_away_on_failure(store) as write, pictures_shown(chosen.table.num_rows) as advance:
        (_write_hf if form == "hf" else _write_tar)(chosen, _pieces(chosen, advance), write)
    print(f"{chosen.told} in {chosen.num_packs:,} {'files of Parquet' if form == 'hf' else 'packs'}: {store.url}")


@contextmanager
def _taken_away_on_failure(store: Store) -> Iterator[Callable[[str, bytes], None]]:
    """Writes whole keys, and deletes them all if the block does not end well."""
    keys: list[str] = []
    is_new = isinstance(store, LocalStore) and not store.root.exists()

    def write(key: str, data: bytes) -> None:
        keys.append(key)
        store.write(key, data)

    try:
        yield write
    except BaseException:
        with suppress(StoreError):  # which would hide what went wrong first
            for key in keys:
                store.delete(key)
        if is_new and isinstance(store, LocalStore):
            with suppress(OSError):
                store.root.rmdir()
        raise


@dataclass(frozen=True)
class Chosen:
    """What is exported. `table`: layer, mode, status and bytes of all rows, in another order."""

    rows: Rows
    where: list[str]
    conditions: list[Condition]
    table: pa.Table

    @cached_property
    def num_bytes(self) -> int:
        return pc.sum(_sizes(self.table["bytes"])).as_py()

    @property
    def num_packs(self) -> int:
        return -(-self.num_bytes // PACK_BYTES)

    @property
    def told(self) -> str:
        num_rows, num_targets = self.table.num_rows, self.rows.info.num_targets
        missing = f" of the run's {num_targets:,}" if num_rows < num_targets else ""
        only = f" ({printable(' and '.join(self.where))})" if self.where else ""
        return f"{num_rows - self.table['bytes'].null_count:,} pictures, {num_rows:,} rows{missing}{only}"


def _pieces(chosen: Chosen, advance: Callable[[int], None]) -> Iterator[Piece]:
    """All rows with their pictures, sorted by layer, mode and falling activation, cut into packs of about one size.

    Raises: DgnError where the run grew meanwhile, RunDamaged for a picture that is not as its row says.
    """
    run, by_group = chosen.rows.run, [("layer", "ascending"), ("mode", "ascending")]
    at = num_done = 0
    with ThreadPoolExecutor(NUM_READERS) as readers:
        for group in chosen.table.group_by(["layer", "mode"]).aggregate([]).sort_by(by_group).to_pylist():
            of_group = [condition(name, "=", value) for name, value in group.items()]
            table = chosen.rows.select([*chosen.conditions, *of_group], COLUMNS)
            for start in range(0, table.num_rows, ROWS_AT_A_TIME):
                some = table.slice(start, ROWS_AT_A_TIME)
                pngs = list(readers.map(partial(_picture, run), some.select(_OF_PICTURE).to_pylist()))
                numbers = []
                for size in _sizes(some["bytes"]).to_pylist():
                    numbers.append(min(at * chosen.num_packs // chosen.num_bytes, chosen.num_packs - 1))
                    at += size
                for number, positions in itertools.groupby(range(len(numbers)), key=numbers.__getitem__):
                    which = list(positions)
                    yield number, some.slice(which[0], len(which)), pngs[which[0] : which[-1] + 1]
                num_done += some.num_rows
                advance(some.num_rows)
    if num_done != chosen.table.num_rows:
        raise DgnError(
            f"{run.store.url} has {num_done:,} rows by now, it had {chosen.table.num_rows:,}: wait until it rests, "
            "then the same line again"
        )


_OF_PICTURE = ["file_name", "sha256", "bytes"]


def _sizes(num_bytes: pa.ChunkedArray) -> pa.ChunkedArray:
    """What rows take in a pack, about."""
    return pc.add(pc.max_element_wise(num_bytes, 0), ROW_BYTES)


def _picture(run: Run, row: dict[str, Any]) -> bytes | None:
    """The PNG of a row, None where none was made. Raises: RunDamaged where it is missing or another one."""
    if row["file_name"] is None:
        return None
    png = whole_picture(run, row["file_name"], row["sha256"])
    if len(png) != row["bytes"]:  # by which the packs are planned
        raise RunDamaged(
            f"{run.store.url}/{row['file_name']} has {len(png)} bytes, {row['bytes']} by its row: dgn verify tells "
            "what else is wrong"
        )
    return png


def _write_hf(chosen: Chosen, pieces: Iterator[Piece], write: Callable[[str, bytes], None]) -> None:
    image = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    features = {"info": {"features": {"image": {"_type": "Image"}}}}  # all others are as their columns' types say
    schema = _schema([image], chosen.rows.info, huggingface=json.dumps(features))
    for number, of_file in itertools.groupby(pieces, key=lambda piece: piece[0]):
        file = io.BytesIO()
        with pq.ParquetWriter(file, schema, use_dictionary=list(COLUMNS)) as writer:
            for _, rows, pngs in of_file:
                images = [
                    png and {"bytes": png, "path": f"{name}.png"}
                    for name, png in zip(rows["target_id"].to_pylist(), pngs, strict=True)
                ]
                writer.write_table(_joined(rows, [pa.array(images, image.type)], schema))
        write(f"data/train-{number:05d}-of-{chosen.num_packs:05d}.parquet", file.getvalue())
    write("README.md", _card(chosen).encode())


def _write_tar(chosen: Chosen, pieces: Iterator[Piece], write: Callable[[str, bytes], None]) -> None:
    places = [pa.field("pack", pa.string()), pa.field("offset", pa.int64()), pa.field("length", pa.int64())]
    schema = _schema(places, chosen.rows.info)
    index = io.BytesIO()
    with pq.ParquetWriter(index, schema) as writer:
        for number, of_pack in itertools.groupby(pieces, key=lambda piece: piece[0]):
            name, pack, located = f"pack-{number:05d}.tar", io.BytesIO(), []
            for _, rows, pngs in of_pack:
                offsets = [
                    png and _append(pack, target_id, png)
                    for target_id, png in zip(rows["target_id"].to_pylist(), pngs, strict=True)
                ]
                columns = ([png and name for png in pngs], offsets, [png and len(png) for png in pngs])
                arrays = [pa.array(values, place.type) for values, place in zip(columns, places, strict=True)]
                located.append(_joined(rows, arrays, schema))
            pack.write(bytes(2 * tarfile.BLOCKSIZE))  # its end
            pack.write(bytes(-pack.tell() % tarfile.RECORDSIZE))
            write(name, pack.getvalue())
            writer.write_table(pa.concat_tables(located))
    write("index.parquet", index.getvalue())


def _append(pack: io.BytesIO, target_id: str, png: bytes) -> int:
    """Adds a file to a tar and returns where its bytes begin. Raises: DgnError for a name that could lead elsewhere."""
    if not PLAIN_NAME.fullmatch(target_id):
        raise DgnError(f"target_id '{target_id}' of the run is no file name: expected letters, digits and . _ + -")
    header = tarfile.TarInfo(f"{target_id}.png")  # of 1970, of nobody: the same bytes at every export
    header.size = len(png)
    pack.write(header.tobuf(tarfile.PAX_FORMAT))
    offset = pack.tell()
    pack.write(png)
    pack.write(bytes(-len(png) % tarfile.BLOCKSIZE))
    return offset


def _schema(more: Sequence[pa.Field], info: RunInfo, **metadata: str) -> pa.Schema:
    """The rows' columns and some more; which run they are from under the key `dgn`, as in the run's own files."""
    origin = {"run_id": info.run_id, "created_at": info.created_at, "fingerprint": info.fingerprint}
    described = {"dgn": json.dumps(origin | {"config": info.config}, sort_keys=True), **metadata}
    return pa.schema([*more, *(SCHEMA.field(name) for name in COLUMNS)], metadata=described)


def _joined(rows: pa.Table, more: Sequence[pa.Array], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_arrays([*more, *rows.select(list(COLUMNS)).columns], schema=schema)


def _card(chosen: Chosen) -> str:
    """README.md of a data set: a header for the hub, and what a reader has to know."""
    import yaml

    info = chosen.rows.info
    network = info.fingerprint["discriminator"]
    header = {
        "pretty_name": f"What {network} has learned",
        "size_categories": [_size_category(chosen.table.num_rows)],
        "tags": ["image", "synthetic", "activation-maximization", "feature-visualization", "interpretability"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }
    decoder = info.fingerprint.get("decoder_sha256")
    facts = {
        "network": network,
        "sha256 of its weights": info.fingerprint["weights_sha256"],
        **({"sha256 of the decoder": decoder} if decoder else {}),
        "preset": info.config["preset"],
        "dgn": info.fingerprint.get("dgn_version"),
        "run": f"{info.run_id}, begun {info.created_at}",
    }
    lines = [f"* {name}: {_code(value)}" for name, value in facts.items()]
    table = ["| layer | mode | rows | " + " | ".join(status.replace("_", " ") for status in STATUSES) + " |"]
    table += ["| --- | --- |" + " ---: |" * (1 + len(STATUSES))]
    for (layer, mode), counts in _counts(chosen.table).items():
        cells = [f"{sum(counts.values()):,}", *(f"{counts.get(status, 0):,}" for status in STATUSES)]
        table.append(f"| {_code(layer)} | {_code(mode)} | {' | '.join(cells)} |")
    return CARD.format(
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(),
        network=_code(network), facts="\n".join(lines), table="\n".join(table), told=chosen.told,
    )  # fmt: skip


def _counts(rows: pa.Table) -> dict[tuple[str, str], dict[str, int]]:
    """Rows of each status by layer and mode, in order."""
    keys = ["layer", "mode", "status"]
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows.group_by(keys).aggregate([([], "count_all")]).sort_by([(k, "ascending") for k in keys]).to_pylist():
        counts.setdefault((row["layer"], row["mode"]), {})[row["status"]] = row["count_all"]
    return counts


def _size_category(num_rows: int) -> str:
    """As the hub calls them: n<1K, 1K<n<10K and so on."""
    steps = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    power = max(0, len(str(num_rows)) - 3)
    return f"{steps[power - 1]}<n<{steps[power]}" if power else "n<1K"


def _code(text: object) -> str:
    """Shown as it is, whatever it says."""
    return "`" + printable(text).replace("`", "'").replace("|", "/") + "`"


CARD = """\
---
{header}
---

# What {network} has learned

{told}.

Every picture was made by optimising a generator through a frozen network, until it excites one unit of that network, a
class or a filter, or a weighted group of them (dgn, after Despraz et al., "Towards a Better Understanding of Deep
Neural Networks Representations using Deep Generative Networks").

{facts}

{table}

```python
from datasets import load_dataset

rows = load_dataset("FOLDER", split="train")
```

## What to keep in mind

The pictures show one network with one set of weights, not the things that its classes are named after. **A high
`activation` alone proves little**: pictures that excite a unit strongly and show nothing to a person are easy to make.
Look at the picture, at `rank` and `status`, and ask a network that took no part. Activations of different layers, and
of different networks, cannot be compared.

`status` is `ok`, `not_converged` (a class that the network does not rank first, or an activation below its start),
`dead` (the unit is silent) or `nonfinite` (no picture: `image` is null); `reason` says more. `activation`, `rank`,
`probability` and `top5` are scored from the 8-bit PNG that is stored here, after it was rounded.

## Columns

`image` is the PNG, `file_name` where it lay in the run, `sha256` and `bytes` are the PNG's. `layer` and `unit`
(0-based; null for a group, whose `units` are several) tell what it maximises, `label` is a class's name, `mode` whether
the generator began untrained or pretrained on photographs, `seed` its random stream. `activation_curve` has at most 64
points over the `updates`. `seconds`, `device`, `host` and `rendered_at` tell of the machine.
"""
