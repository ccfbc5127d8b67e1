"""`dgn compare`: two checkpoints, networks or presets on the same targets, the most changed first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dgn.errors import DgnError
from dgn.jobs.common.files import check_empty, whole_or_not_at_all
from dgn.jobs.common.flags import with_settings
from dgn.jobs.common.printing import print_table
from dgn.jobs.common.progress import bar
from dgn.runs.config import NETWORK_SETTINGS, RunConfig
from dgn.runs.run import Run
from dgn.runs.validation import validated
from dgn.text import A_BUCKET, plural, printable

JUDGE_SETTINGS = NETWORK_SETTINGS[1:]  # --by names it
PAGE, TABLE = "index.html", "compare.parquet"
NUM_PRINTED = 10


@with_settings(RunConfig, *JUDGE_SETTINGS)
def command(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help=f"A folder, or {A_BUCKET}.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="Another run of the same targets.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder, for the page and the Parquet file.")],
    settings: dict[str, Any],
    by: Annotated[
        str,
        typer.Option(
            metavar="NETWORK",
            help="The independent network in whose features pictures are compared. The flags below that describe a "
            "network are its.",
        ),
    ] = "efficientnet_lite0",
    top: Annotated[int, typer.Option(min=1, help="Pairs on the page, the most changed.")] = 200,
    discriminator_a: Annotated[
        str | None, typer.Option(metavar="FUNCTION", help="RUN_A's network again, if it is code: this runs it.")
    ] = None,
    weights_a: Annotated[str | None, typer.Option(metavar="FILE", help="RUN_A's weights, if they moved.")] = None,
    labels_a: Annotated[str | None, typer.Option(metavar="FILE", help="RUN_A's labels, if they moved.")] = None,
    discriminator_b: Annotated[
        str | None, typer.Option(metavar="FUNCTION", help="RUN_B's network again, if it is code: this runs it.")
    ] = None,
    weights_b: Annotated[str | None, typer.Option(metavar="FILE", help="RUN_B's weights, if they moved.")] = None,
    labels_b: Annotated[str | None, typer.Option(metavar="FILE", help="RUN_B's labels, if they moved.")] = None,
) -> None:
    """Classes are joined by their labels, everything else by layer and unit; modes and seeds have to be the same."""
    check_empty(out)
    judge_config = validated(RunConfig, {**settings, "discriminator": by})
    moved_a = {"discriminator": discriminator_a, "weights": weights_a, "labels": labels_a}
    moved_b = {"discriminator": discriminator_b, "weights": weights_b, "labels": labels_b}
    runs = {"a": (Run.at(run_a), moved_a), "b": (Run.at(run_b), moved_b)}
    for run, _ in runs.values():
        run.info()
    from dgn.jobs.comparisons.page import render_page
    from dgn.networks.frozen import FrozenNetwork
    from dgn.runs.comparison import as_table, compare, serialise
    from dgn.runs.networks import load_network

    judge = load_network(judge_config)
    sides = {name: _side(run, moved, name, judge.sha256) for name, (run, moved) in runs.items()}
    if not judge.network.layers.filter_layers:
        raise DgnError(f"{judge.network.name} has no convolutions whose maps could be compared: name another with --by")
    names = {name: side.run.store.url for name, side in sides.items()}
    with bar("pairs", min(len(side.rows) for side in sides.values())) as (progress, task):
        pairs = list(compare(sides["a"], sides["b"], FrozenNetwork(judge), lambda count: progress.advance(task, count)))
    table = as_table(pairs)
    about = {"run_a": names["a"], "run_b": names["b"], "by": judge.network.name, "by_weights_sha256": judge.sha256}
    with whole_or_not_at_all(out) as folder:
        (folder / TABLE).write_bytes(serialise(table, about))
        (folder / PAGE).write_text(render_page(table, sides, names, judge.network.name, top), "utf-8")
    shown = table.slice(0, NUM_PRINTED).to_pylist()
    print_table(
        ("target", "label", "distance", "activation a", "b", "rank of a by b", "of b by a"),
        (False, False, True, True, True, True, True),
        [
            [
                one["target_id_a"], one["label"] or "", f"{one['distance']:.3f}",
                *("" if one[f"activation_{side}"] is None else f"{one[f'activation_{side}']:.3g}" for side in sides),
                *("" if one[f"rank_by_other_{side}"] is None else str(one[f"rank_by_other_{side}"]) for side in sides),
            ]
            for one in shown
        ],
    )  # fmt: skip
    lone = ", ".join(
        f"{len(side.rows) - len(pairs):,} only in {name}" for name, side in sides.items() if len(side.rows) > len(pairs)
    )
    print(printable(f"{plural(len(pairs), 'pair')}{f' ({lone})' if lone else ''}: {out / PAGE}"))


def _side(run: Run, moved: dict[str, str | None], name: str, judge_sha256: str) -> Any:
    """Raises: DgnError if the judge is the run's own network."""
    from dgn.networks.frozen import FrozenNetwork
    from dgn.runs.comparison import Side
    from dgn.runs.extensions import own_plan
    from dgn.runs.origin import own_config, own_weights

    info = run.info()
    config = own_config(info, moved)
    weights = own_weights(info, config, f"--{{}}-{name}")
    if weights.sha256 == judge_sha256:
        raise DgnError(
            f"{weights.network.name} made the pictures of {run.store.url}: name another network with --by, one that "
            "took no part"
        )
    return Side.of(run, own_plan(run, info, config, weights.network.layers), FrozenNetwork(weights))
