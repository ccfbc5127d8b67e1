"""`dgn explain`: the filters that speak most for a network's answer to photographs, drawn alone and as one group.

Paper: section 5.3 and its outlook.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgn.jobs.common.arguments import RunArgument
from dgn.jobs.common.files import check_empty, whole_or_not_at_all
from dgn.jobs.common.flags import with_settings
from dgn.jobs.common.progress import bar, log_to_stderr
from dgn.jobs.render import render
from dgn.runs.config import RunConfig
from dgn.runs.run import Run
from dgn.targets import MODES
from dgn.text import A_BUCKET, plural, printable

if TYPE_CHECKING:
    from dgn.networks.layers import Layers
    from dgn.pictures.explaining import Explanation

log = logging.getLogger("dgn")

FOLDER, TABLE = "run", "explain.parquet"


@with_settings(RunConfig, "discriminator", "weights", "labels", "decoder", "generator", "workers", "gpus_per_worker")
def command(
    run: RunArgument,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A new folder, for the sheets, the Parquet file and new pictures.")
    ],
    photographs: Annotated[
        list[str], typer.Argument(metavar="PHOTO", help=f"Photographs; or folders of them, or {A_BUCKET}.")
    ],
    settings: dict[str, Any],
    layers: Annotated[
        str | None,
        typer.Option(help="Filter layers, joined by commas. Default: the last, and the one in the middle."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=100, help="Filters per layer, at most.")] = 6,
    class_: Annotated[
        str | None, typer.Option("--class", metavar="CLASS", help="Explain this class. Default: the network's answer.")
    ] = None,
) -> None:
    """Pictures that RUN lacks are drawn with its settings, in OUT/run. Repeating the command finishes them."""
    check_empty(out, besides=FOLDER)
    opened = Run.at(run)
    info = opened.info()
    from dgn.jobs.explanations.sheet import draw_sheet
    from dgn.networks.frozen import FrozenNetwork
    from dgn.pictures.explaining import chosen_class, chosen_layers, explain
    from dgn.runs.explanations import drawn_in, read_photographs, rows_of, serialise, specs_of, targets_of
    from dgn.runs.origin import own_config, own_weights

    config = own_config(info, settings)
    weights = own_weights(info, config)
    known = weights.network.layers
    asked_class = chosen_class(class_, known)
    asked_layers = chosen_layers(None if layers is None else [name.strip() for name in layers.split(",")], known)
    mode, seed = next(mode for mode in MODES if mode in (config.modes or MODES)), config.seed
    drawing = own_config(info, settings, draws=mode == "pretrained")
    found, unreadable, left_out = read_photographs(photographs, weights.network.size)
    log_to_stderr()
    network = FrozenNetwork(weights)
    explanations = []
    with bar("photographs", len(found)) as (progress, task):
        for photograph in found:
            explanations.append(explain(network, photograph, asked_layers, asked_class, top))
            progress.advance(task)
    targets = targets_of(explanations, mode, seed)
    pictures = _with_run(opened, drawn_in(opened, targets))
    if missing := {name: target for name, target in targets.items() if name not in pictures}:
        log.info("%s in %s, %s to draw", plural(len(pictures), "picture"), opened.store.url, f"{len(missing):,}")
        given = drawing.model_dump() | {
            "targets": specs_of(missing.values()),
            "modes": (mode,),
            "seeds": 1,
            "shard_size": "auto",
        }
        if mode == "untrained":  # which needs neither, and a generator without use is refused
            given |= {"decoder": None, "generator": None}
        render(str(out / FOLDER), RunConfig(**given))
        drawn = Run.at(str(out / FOLDER))
        pictures |= _with_run(drawn, drawn_in(drawn, missing))
    names = _sheet_names([one.photograph.name for one in explanations])
    rows: list[dict[str, Any]] = []
    with whole_or_not_at_all(out) as folder:
        for explanation, name in zip(explanations, names, strict=True):
            draw_sheet(explanation, known, pictures, mode, seed).save(folder / name)
            rows += rows_of(explanation, name, known, pictures, mode, seed)
        about = {
            "run": opened.store.url, "run_id": info.run_id, "discriminator": known.network,
            "weights_sha256": weights.sha256, "layers": asked_layers, "top": top,
        }  # fmt: skip
        (folder / TABLE).write_bytes(serialise(rows, about))
    for explanation in explanations:
        print(printable(_line(explanation, known)))
    print(printable(_summary(out, len(names), len(targets), len(missing), unreadable, left_out)))


def _with_run(run: Run, rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {**row, "run": run} for name, row in rows.items()}


def _sheet_names(photographs: Sequence[str]) -> list[str]:
    """A file name for each sheet, after its photograph's; the second of a name gets a number."""
    names: dict[str, None] = {}
    for photograph in photographs:
        stem = re.sub(r"[^\w.-]|^\.", "_", Path(photograph).stem)
        number, name = 1, stem
        while f"{name}.png" in names:
            number += 1
            name = f"{stem}-{number}"
        names[f"{name}.png"] = None
    return list(names)


def _line(explanation: Explanation, layers: Layers) -> str:
    """An explanation in one line: the class and, by layer, the filters."""
    label = layers.class_name(explanation.class_)
    probability = "" if explanation.probability is None else f" {explanation.probability:.2f}"
    filters = (
        f"{layer}: {', '.join(str(one.units[0].unit) for one in some if one.weight is not None) or 'none'}"
        for layer, some in explanation.evidence.items()
    )
    return f"{explanation.photograph.name}: {label}{probability}; {'; '.join(filters)}"


def _summary(
    out: Path, num_sheets: int, num_pictures: int, num_drawn: int, unreadable: Sequence[str], left_out: str
) -> str:
    parts = [
        f"{plural(num_sheets, 'sheet')} in {out}, with {plural(num_pictures, 'picture')}, {num_drawn:,} of them new"
    ]
    if unreadable:
        parts.append(f"{len(unreadable):,} unreadable, such as {unreadable[0]}")
    if left_out:
        parts.append(f"left out: {left_out}")
    return "; ".join(parts)
