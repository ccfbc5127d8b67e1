"""What somebody hostile might leave in a file, and how a command should end that meets it."""

import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dgn.runs.schema import SCHEMA
from tests.conftest import WIDTH

ROOT = Path(__file__).parent.parent.parent
QUICK = ["--discriminator", "vgg16-mini", "--width", str(WIDTH), "--updates", "3", "--views", "1", "--workers", "1"]
TERMINAL = "\x1b[31m\x1b]0;owned\x07[bold]x[/]\nline"  # colour, the window's title, rich's markup, a second line


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def edit_rows(run, **changes):
    """Writes the shard's rows again with other values in its first."""
    [path] = (run / "metadata").iterdir()
    rows = pq.read_table(path).to_pylist()
    rows[0] |= changes
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    return rows[0]


def png_of_size(width, height):
    """A PNG of a few bytes whose header says that it is huge."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunk = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    body = zlib.compress(b"\0" * 1000)
    data = len(body).to_bytes(4, "big") + b"IDAT" + body + zlib.crc32(b"IDAT" + body).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk + data + b"\0\0\0\0IEND\xaeB`\x82"


def ends_in_one_line(ended, *says, with_code=2):
    """Returns the line."""
    code, _, error = ended
    lines = [line for line in error.splitlines() if line]
    assert code == with_code, error
    assert len(lines) == 1, error
    assert lines[0].startswith("dgn: ")
    for text in says:
        assert text in lines[0]
    return lines[0]
