"""A run as a few tar files with an index, by which one range read gets one picture.

pack-00000.tar    pictures under their target_id, with ~ for each dot
index.parquet     all columns, and the place of each row's picture; written last

webdataset takes a file's name up to the first dot for the name of its sample, and merges the files of one sample.
"""

from __future__ import annotations

import io
import itertools
import re
import tarfile
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from dgn.errors import DgnError
from dgn.jobs.exports.chosen import Chosen, Piece, described_schema, joined

PLAIN_NAME = re.compile(r"\w[\w.+-]*", re.ASCII)  # safe as a file name wherever it is unpacked


def write_tar(chosen: Chosen, pieces: Iterator[Piece], write: Callable[[str, bytes], None]) -> None:
    texts, numbers = ("pack", "member"), ("offset", "length")
    places = [*(pa.field(name, pa.string()) for name in texts), *(pa.field(name, pa.int64()) for name in numbers)]
    schema = described_schema(places, chosen.rows.info)
    index = io.BytesIO()
    with pq.ParquetWriter(index, schema) as writer:
        for number, of_pack in itertools.groupby(pieces, key=lambda piece: piece[0]):
            name, pack, located = f"pack-{number:05d}.tar", io.BytesIO(), []
            for _, rows, pngs in of_pack:
                target_ids = rows["target_id"].to_pylist()
                members = [_member(target_id) if png else None for target_id, png in zip(target_ids, pngs, strict=True)]
                offsets = [
                    _append(pack, member, png) if member and png else None
                    for member, png in zip(members, pngs, strict=True)
                ]
                columns = ([png and name for png in pngs], members, offsets, [png and len(png) for png in pngs])
                arrays = [pa.array(values, place.type) for values, place in zip(columns, places, strict=True)]
                located.append(joined(rows, arrays, schema))
            pack.write(bytes(2 * tarfile.BLOCKSIZE))  # the end of a tar
            pack.write(bytes(-pack.tell() % tarfile.RECORDSIZE))
            write(name, pack.getvalue())
            writer.write_table(pa.concat_tables(located))
    write("index.parquet", index.getvalue())


def _member(target_id: str) -> str:
    """The name of a target's file: another for each target. Raises: DgnError for a target_id that is not plain."""
    if not PLAIN_NAME.fullmatch(target_id):
        raise DgnError(f"target_id '{target_id}' of the run is not a file name: expected letters, digits and . _ + -")
    return f"{target_id.replace('.', '~')}.png"


def _append(pack: io.BytesIO, member: str, png: bytes) -> int:
    """Adds a file to a tar and returns the offset of its bytes."""
    header = tarfile.TarInfo(member)  # without date or owner, so that every export has the same bytes
    header.size = len(png)
    pack.write(header.tobuf(tarfile.PAX_FORMAT))
    offset = pack.tell()
    pack.write(png)
    pack.write(bytes(-len(png) % tarfile.BLOCKSIZE))
    return offset
