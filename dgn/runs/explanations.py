"""Explanations of photographs on disk: from files to photographs, from filters to their pictures, and to rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

import dgn
from dgn.errors import DgnError
from dgn.networks.layers import Layers
from dgn.pictures.examples import seen, square_px
from dgn.pictures.explaining import Explanation, Photograph
from dgn.pictures.photographs import UnreadablePhotograph, load_photograph
from dgn.runs import schema
from dgn.runs.conditions import condition
from dgn.runs.examples import COLUMNS as EXAMPLE_COLUMNS
from dgn.runs.examples import SIDES
from dgn.runs.layout import sha256
from dgn.runs.photographs import (
    Listing,
    PhotographFolder,
    list_photographs,
    make_photograph_plan,
    photograph_store,
    read_shard,
)
from dgn.runs.query import Rows
from dgn.runs.run import Run
from dgn.runs.schema import Column
from dgn.runs.stores import Store
from dgn.targets import Mode, Target
from dgn.text import plural

VERSION = 1
NEEDED = ("target_id", "status", "reason", "file_name", "sha256")  # of a picture's row
COLUMNS = (
    Column("photograph", pa.string(), "Photograph", "its name in its folder", is_required=True),
    Column("sha256", pa.string(), "SHA-256", "of the photograph's file", is_required=True),
    Column("sheet", pa.string(), "Sheet", "the PNG in the same folder that shows this", is_required=True),
    Column("class", pa.int32(), "Class", "what is explained: the network's answer, or the class that --class names",
           is_required=True),
    Column("label", pa.string(), "Label", "of the class; null for numbers"),
    Column("value", pa.float32(), "Value", "of the class, before any softmax or sigmoid", is_required=True),
    Column("probability", pa.float32(), "Probability", "of the class; null if the output gives none"),
    Column("layer", pa.string(), "Layer", "of the filter", is_required=True),
    Column("place", pa.int32(), "Place", "1 for the filter of the layer with the largest fall; 0 for all of "
           "them together, the weighted group", is_required=True),
    Column("unit", pa.int32(), "Unit", "the filter, 0-based in its layer; null for the group"),
    Column("weight", pa.float32(), "Weight", "of the filter in the group's target; null for the group"),
    Column("fall", pa.float32(), "Fall", "what the class's value loses when the filter, or the group, is silenced",
           is_required=True),
    Column("probability_without", pa.float32(), "Probability without", "of the class when it is silenced; null if the "
           "output gives none"),
    Column("activation", pa.float32(), "Activation", "on the photograph, as the rows' activation", is_required=True),
    *(column for column in EXAMPLE_COLUMNS if column.name in SIDES),
    Column("target_id", pa.string(), "Target", "of its picture", is_required=True),
    Column("run", pa.string(), "Run", "where the picture is: the run that was given, or the folder `run` beside this "
           "file", is_required=True),
    Column("status", pa.string(), "Status", "of the picture", is_required=True),
    Column("file_name", pa.string(), "File", "path of the picture, relative to `run`; null if there is none"),
)  # fmt: skip
SCHEMA = pa.schema([(column.name, column.type) for column in COLUMNS])


def read_photographs(places: Sequence[str], size_px: int) -> tuple[list[Photograph], list[str], str]:
    """The photographs in files and folders, what cannot be read of them, and what was left out of folders. Of files
    that are the same byte by byte, the first counts.

    Raises: DgnError for a place that is not there or holds no photographs, or if none can be read.
    """
    found, unreadable, left_out = dict[str, Photograph](), list[str](), list[str]()
    for place in places:
        store, listing = _listed(place)
        left_out += [f"{listing.remark} in {store.url}"] if listing.left_out else []
        plan = make_photograph_plan(store, listing, "image")
        for index in range(plan.num_shards):
            for name, read in read_shard(store, plan, index):
                data = read()
                try:
                    square_HW3 = load_photograph(data, square_px(size_px))
                except UnreadablePhotograph as error:
                    unreadable.append(f"{name}: {error}")
                    continue
                found.setdefault(sha256(data), Photograph(name, sha256(data), seen(square_HW3, size_px).copy()))
    if not found:
        raise DgnError(f"none of {plural(len(unreadable), 'photograph')} can be read, such as {unreadable[0]}")
    return list(found.values()), unreadable, "; ".join(left_out)


def _listed(place: str) -> tuple[Store, Listing]:
    """A folder's store and photographs, or a file's. Raises: DgnError."""
    path = Path(place).expanduser()
    if "://" in place or path.is_dir():
        store = photograph_store(place)
        return store, list_photographs(store)
    if not path.is_file():
        raise DgnError(f"{place} is not there: expected a photograph, or a folder of them")
    return PhotographFolder(str(path.absolute().parent)), Listing((path.name,), ())


def targets_of(explanations: Iterable[Explanation], mode: Mode, seed: int) -> dict[str, Target]:
    """The pictures that explanations need, by target_id, each once."""
    every = (one for explanation in explanations for some in explanation.evidence.values() for one in some)
    targets = (one.target(mode, seed) for one in every)
    return {target.target_id: target for target in targets}


def specs_of(targets: Iterable[Target]) -> tuple[str, ...]:
    """Targets as `parse_targets` reads them."""
    units, groups = dict[str, list[str]](), list[str]()
    for target in targets:
        if target.unit is not None:
            units.setdefault(target.layer, []).append(str(target.unit))
        else:
            groups.append(f"group:{target.layer}:{'+'.join(f'{one.unit}*{one.weight:g}' for one in target.units)}")
    return (*(f"filters:{layer}:{','.join(some)}" for layer, some in units.items()), *groups)


def drawn_in(run: Run, targets: Mapping[str, Target]) -> dict[str, dict[str, Any]]:
    """The rows of those targets that the run holds, by target_id."""
    rows, found = Rows(run), dict[str, dict[str, Any]]()
    for layer, mode, seed in dict.fromkeys((one.layer, one.mode, one.seed) for one in targets.values()):
        wanted = [condition("layer", "=", layer), condition("mode", "=", mode), condition("seed", "=", seed)]
        for row in rows.select(wanted, NEEDED).to_pylist():
            if row["target_id"] in targets:
                found[row["target_id"]] = row
    return found


def rows_of(
    explanation: Explanation, sheet: str, layers: Layers, pictures: Mapping[str, dict[str, Any]], mode: Mode, seed: int
) -> Iterator[dict[str, Any]]:
    """Rows of SCHEMA.

    Args:
        pictures: rows of pictures by target_id, each with the `run` that holds it.
    """
    about = {
        "photograph": explanation.photograph.name, "sha256": explanation.photograph.sha256, "sheet": sheet,
        "class": explanation.class_, "label": layers.labels[explanation.class_] if layers.labels else None,
        "value": explanation.value, "probability": explanation.probability,
    }  # fmt: skip
    for layer, some in explanation.evidence.items():
        for n, one in enumerate(some):
            target = one.target(mode, seed)
            picture = pictures[target.target_id]
            yield {
                **about, "layer": layer, "place": 0 if one.weight is None else n + 1, "unit": target.unit,
                "weight": one.weight, "fall": one.fall,
                "probability_without": one.probability_without, "activation": one.activation,
                **dict(zip(SIDES, one.box or (None,) * len(SIDES), strict=True)),
                "target_id": target.target_id, "run": picture["run"].store.url, "status": picture["status"],
                "file_name": picture["file_name"],
            }  # fmt: skip


def serialise(rows: Sequence[Mapping[str, Any]], about: dict[str, Any]) -> bytes:
    """The bytes of a Parquet file; `about` becomes its metadata, as JSON."""
    return schema.serialise(rows, {"schema_version": VERSION, "dgn_version": dgn.__version__, **about}, SCHEMA)
