"""Runs for contact sheets, and how a sheet is measured: which picture stands where, and what is written below it."""

import io
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dgn.runs.schema import SCHEMA
from tests.helpers.fake_runs import write_fake_run
from tests.helpers.rows import edit_rows

MARGIN, FONT, LINE = 6, 14, 18
CELL_W, CELL_H = 224 + MARGIN, 224 + 3 * LINE + MARGIN


def as_ok(row):
    """A row whose picture there is, as fake runs make some that have none."""
    return row | {"status": "ok", "reason": None, "activation": 9.5, "rank": 1}


def as_mode(row, mode):
    return row | {"mode": mode, "target_id": row["target_id"].replace("-untrained-", f"-{mode}-")}


def write_shown(folder, targets, seeds=1, both_modes=False):
    """All rows have a picture of the fake run's. `both_modes`: each again as pretrained, with another picture."""
    write_fake_run(str(folder), seeds=seeds, targets=targets, shard_size=16)
    names = sorted(str(path.relative_to(folder)) for path in (folder / "images").rglob("*.png"))
    count = iter(range(10**6))
    edit_rows(folder, lambda row: as_ok(row) | {"file_name": names[7 * next(count) % len(names)]})
    if both_modes:
        for path in sorted((folder / "metadata").iterdir()):
            rows = pq.read_table(path).to_pylist()
            again = [as_mode(row, "pretrained") | {"file_name": names[11 * next(count) % len(names)]} for row in rows]
            pq.write_table(pa.Table.from_pylist([*again, *rows], schema=SCHEMA), path)
    return folder


def at(sheet, column, line, px=224, name_lines=1):
    """The picture at a place of a sheet, and its caption."""
    line_px = max(10, px // 16) + 4
    cell_h = px + (name_lines + 2) * line_px + MARGIN
    left, top = MARGIN + column * (px + MARGIN), MARGIN + line * cell_h
    return (
        np.asarray(sheet)[top : top + px, left : left + px],
        np.asarray(sheet)[top + px : top + cell_h - MARGIN, left : left + px],
    )


def png(folder, row, px=224):
    with Image.open(folder / row["file_name"]) as image:
        return np.asarray(image.resize((px, px), Image.Resampling.LANCZOS))


def opened(path):
    with Image.open(path) as sheet:
        sheet.load()
        return sheet


def assert_shows(sheet, folder, rows, columns, px=224):
    """These rows in this order, line by line; white behind the last."""
    width, height = columns, -(-len(rows) // columns)
    assert sheet.size == (
        min(width, len(rows)) * (px + MARGIN) + MARGIN,
        height * (px + 3 * (max(10, px // 16) + 4) + MARGIN) + MARGIN,
    )
    for n, row in enumerate(rows):
        picture, caption = at(sheet, n % columns, n // columns, px)
        assert (picture == png(folder, row, px)).all(), (n, row["target_id"])
        assert (caption != 255).any()
    for n in range(len(rows), height * columns if height > 1 else 0):
        assert (at(sheet, n % columns, n // columns, px)[0] == 255).all()


def pages_of(pdf):
    """(width and height in points, the picture) of each page: of an object that is there again, the last counts."""
    data = pdf.read_bytes()
    assert data.startswith(b"%PDF-")
    assert data.rstrip().endswith(b"%%EOF")
    objects = dict(re.findall(rb"(?<![^\n])(\d+) 0 obj(.*?)endobj", data, re.DOTALL))
    kids = re.findall(rb"/Type /Pages.*?/Kids \[ (.*?) \]|/Kids \[ (.*?) \]", data, re.DOTALL)[-1]
    pages = []
    for number in re.findall(rb"(\d+) 0 R", b"".join(kids)):
        width, height = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", objects[number]).groups()
        [image] = re.findall(rb"/image (\d+) 0 R", objects[number])
        jpeg = objects[image][objects[image].index(b"\xff\xd8") :]
        pages.append(((float(width), float(height)), Image.open(io.BytesIO(jpeg))))
    return pages
