"""`dgn audit`: what the picture of each class contains beside the class, worst first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import dgn
from dgn.jobs.common.arguments import OwnLabels, OwnNetwork, OwnWeights, RunArgument
from dgn.jobs.common.files import check_empty, whole_or_not_at_all
from dgn.jobs.common.flags import with_settings
from dgn.jobs.common.printing import percent, print_table
from dgn.jobs.common.progress import bar, log_to_stderr
from dgn.runs import schema
from dgn.runs.config import NETWORK_SETTINGS, RunConfig
from dgn.runs.run import Run
from dgn.runs.validation import validated
from dgn.text import A_BUCKET, plural, printable

if TYPE_CHECKING:
    from dgn.networks.weights import NetworkWeights
    from dgn.runs.audit import Audit

log = logging.getLogger("dgn")

JUDGE_SETTINGS = NETWORK_SETTINGS[1:]  # --by names it
PAGE, TABLE = "index.html", "audit.parquet"
NUM_PRINTED = 10


@with_settings(RunConfig, *JUDGE_SETTINGS)
def command(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder, for the page and the Parquet file.")],
    settings: dict[str, Any],
    images: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGES",
            help=f"A folder, or {A_BUCKET}, of photographs in folders named as the classes, with which pictures "
            "are compared.",
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            metavar="NETWORK",
            help="The independent network that says which classes it sees, of the same classes. The flags below that "
            "describe a network are its.",
        ),
    ] = "efficientnet_lite0",
    top: Annotated[int, typer.Option(min=1, help="Pictures on the page, the worst.")] = 100,
    discriminator: OwnNetwork = None,
    discriminator_weights: OwnWeights = None,
    discriminator_labels: OwnLabels = None,
) -> None:
    """The second network says what it sees; photographs of a class say which units fire on its picture alone."""
    check_empty(out)
    judge_config = validated(RunConfig, {**settings, "discriminator": by})
    moved = {"discriminator": discriminator, "weights": discriminator_weights, "labels": discriminator_labels}
    opened = Run.at(run)
    opened.info()
    log_to_stderr()
    from dgn.jobs.audits.page import render_page
    from dgn.jobs.audits.remarks import remarks_on
    from dgn.runs.audit import SCHEMA, VERSION, worst_first
    from dgn.runs.networks import load_network

    judge = load_network(judge_config)
    audit = _audit(opened, judge, moved, images)
    with bar("pictures", len(audit.rows)) as (progress, task):
        pictures = worst_first(list(audit.pictures(lambda count: progress.advance(task, count))))
    about = {
        "schema_version": VERSION, "dgn_version": dgn.__version__, "run": opened.store.url, "images": images,
        "by": judge.network.name, "by_weights_sha256": judge.sha256,
    }  # fmt: skip
    with whole_or_not_at_all(out) as folder:
        (folder / TABLE).write_bytes(schema.serialise(pictures, about, SCHEMA))
        (folder / PAGE).write_text(render_page(audit, pictures, top), "utf-8")
    _print_worst(pictures[:NUM_PRINTED], audit.own.layers.class_name)
    print(printable(f"{plural(len(pictures), 'picture')} of {opened.store.url}: {out / PAGE}"))
    for remark in remarks_on(audit, pictures):
        print(printable(f"  {remark}"))


def _audit(run: Run, judge: NetworkWeights, moved: dict[str, str | None], images: str | None) -> Audit:
    """Raises: DgnError for anything that does not fit."""
    from dgn.engine import engine_for
    from dgn.networks.frozen import FrozenNetwork
    from dgn.pictures.paths import path_layers
    from dgn.pictures.second_opinion import check_independent
    from dgn.runs.audit import Audit
    from dgn.runs.extensions import own_plan
    from dgn.runs.labelled import LabelledPhotographs
    from dgn.runs.origin import own_config, own_weights

    info = run.info()
    config = own_config(info, moved)
    weights = own_weights(info, config, "--discriminator-{}")
    own_plan(run, info, config, weights.network.layers)
    if remark := check_independent(judge, weights):
        log.warning("%s", remark)
    engine = engine_for()
    own = FrozenNetwork(weights, engine)
    photographs = LabelledPhotographs.at(images, own, path_layers(own.layers)) if images is not None else None
    return Audit(run, own, FrozenNetwork(judge, engine), photographs)


def _print_worst(pictures: list[dict[str, Any]], class_name: Callable[[int], str]) -> None:
    print_table(
        ("target", "label", "judge: class", "judge: beside it", "similarity", "unusual units"),
        (False, False, True, False, True, True),
        [
            [
                one["target_id"], one["label"] or "", percent(one["judge_probability"]),
                " ".join(f"{class_name(seen['unit'])} {percent(seen['probability'])}" for seen in one["seen"][:1]),
                "" if one.get("similarity") is None else f"{one['similarity']:.2f}", percent(one.get("unusual")),
            ]
            for one in pictures
        ],
    )  # fmt: skip
