"""The photographs of `dgn examples` on an audit's page: a class's strongest, and those surest and wrong."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from dgn.errors import DgnError, RunDamaged
from dgn.jobs.common.pages import image_url
from dgn.pictures.example_sheets import decode_example_sheet
from dgn.runs.audit import Audit
from dgn.runs.examples import AGAIN, KINDS, Examples, sheet_key
from dgn.text import in_one_line

NUM_WRONG = 6


def examples_of(audit: Audit, shown: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each picture `strongest`, a sheet or None, and `wrong`, the surest first. Raises: RunDamaged."""
    found = Examples.of(audit.run)
    if not found.has_lists:
        return [{"strongest": None, "wrong": []}] * len(shown)
    subjects = [one["target_id"].rsplit("-", 2)[0] for one in shown]
    lists = found.lists()
    rows = lists.filter(pc.is_in(lists["subject"], pa.array(subjects, pa.string()))).to_pylist()
    wrong = [row for row in rows if row["kind"] == KINDS[1] and row["place"] <= NUM_WRONG]
    thumbnails = found.thumbnails({row["photograph"] for row in wrong})
    has_sheet = {row["subject"] for row in rows if row["kind"] == KINDS[0]}
    return [
        {
            "strongest": _sheet(found, subject) if subject in has_sheet else None,
            "wrong": [_wrong(audit, row, thumbnails) for row in wrong if row["subject"] == subject],
        }
        for subject in subjects
    ]


def _sheet(found: Examples, subject: str) -> str:
    key = sheet_key(subject)
    try:
        return image_url(decode_example_sheet(found.store.read(key)))
    except (FileNotFoundError, DgnError) as error:
        what = "it is gone" if isinstance(error, FileNotFoundError) else error
        raise RunDamaged(f"{found.store.url}/{key} is not what was written: {what}", AGAIN) from error


def _wrong(audit: Audit, row: dict[str, Any], thumbnails: dict[str, bytes]) -> dict[str, Any]:
    name = row["photograph"]
    try:
        with Image.open(io.BytesIO(thumbnails[name]), formats=["WEBP"]) as image:
            url = image_url(image.convert("RGB"))
    except (KeyError, OSError, ValueError) as error:
        raise RunDamaged(f"the thumbnail of {name} cannot be read: {in_one_line(error)}", AGAIN) from error
    true_class = "" if row["true_class"] is None else audit.own.layers.class_name(row["true_class"])
    return {"photograph": name, "probability": row["probability"], "true": true_class, "image": url}
