"""`dgn sheet`: a contact sheet of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dgn import picture
from dgn.errors import DgnError, printable
from jobs.status import open_run

MARGIN_PX = 6
SUFFIXES = (".png", ".webp", ".jpg")


def sheet_command(url: str, out: Path, layer: str | None, columns: int, picture_px: int) -> None:
    if not out.parent.is_dir() or out.suffix.lower() not in SUFFIXES:
        raise DgnError(
            f"cannot write the sheet {out}: expected a file in a folder that exists, {' or '.join(SUFFIXES)}"
        )
    run = open_run(url)
    info = run.info()
    committed = run.committed(info.num_shards)
    tables = run.tables(shard for shard in range(info.num_shards) if shard in committed)
    rows = [row for table in tables for row in table.to_pylist() if layer is None or row["layer"] == layer]
    if not rows:
        raise DgnError(f"{url} has no pictures{f' of layer {layer}' if layer else ''} yet")
    rows = _modes_side_by_side(rows)
    columns = min(columns, len(rows))
    font_px = max(10, picture_px // 16)
    font = ImageFont.load_default(font_px)
    line_px = font_px + 4
    caption_px = 3 * line_px
    cell_w, cell_h = picture_px + MARGIN_PX, picture_px + caption_px + MARGIN_PX
    page = Image.new(
        "RGB", (columns * cell_w + MARGIN_PX, math.ceil(len(rows) / columns) * cell_h + MARGIN_PX), "white"
    )
    pen = ImageDraw.Draw(page)
    for i, row in enumerate(rows):
        x, y = MARGIN_PX + i % columns * cell_w, MARGIN_PX + i // columns * cell_h
        if row["file_name"]:
            image = Image.fromarray(picture.decode(run.picture(row["file_name"])))
            page.paste(image.resize((picture_px, picture_px), Image.Resampling.LANCZOS), (x, y))
        else:
            pen.rectangle([x, y, x + picture_px, y + picture_px], outline="grey")
        for n, text in enumerate(_caption(row)):
            at = (x, y + picture_px + 1 + n * line_px)
            pen.text(at, _fitting(printable(text), font, picture_px), fill="dimgrey" if n else "black", font=font)
    page.save(out)
    print(f"{len(rows)} pictures on {out}")


def _modes_side_by_side(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Targets in the run's order, each with its pictures of both modes next to each other."""
    by_target: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_target.setdefault(row["target_id"].replace(f"-{row['mode']}-", "-"), []).append(row)
    return [row for pictures in by_target.values() for row in pictures]


def _caption(row: dict[str, Any]) -> tuple[str, ...]:
    name = row["label"] or row["target_id"].rsplit("-", 2)[0]
    origin = f"{row['mode']}, {row['discriminator']}"
    if row["status"] == "nonfinite" or row["activation"] is None:
        return name, origin, "nonfinite"
    outcome = "" if row["status"] == "ok" else f", {row['status'].replace('_', ' ')}"
    return name, origin, f"rank {row['rank']}, activation {row['activation']:.3g}{outcome}"


def _fitting(text: str, font: Any, width_px: int) -> str:
    """The text, or as much of its beginning as fits."""
    while len(text) > 1 and font.getlength(text) > width_px:
        text = text.rstrip("…")[:-1] + "…"
    return text
