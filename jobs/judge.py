"""`dgn judge`: a second opinion on a run's pictures.

An independent network judges them, and the run's own network scores them again after distortions.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer

from dgn.errors import DgnError, Incomplete, RunDamaged
from dgn.jobs.common.arguments import OwnLabels, OwnNetwork, OwnWeights, RunArgument
from dgn.jobs.common.flags import with_settings
from dgn.jobs.common.printing import percent, print_json, print_table
from dgn.jobs.common.progress import log_to_stderr, shards_done
from dgn.runs.config import NETWORK_SETTINGS, RunConfig, shown_name
from dgn.runs.index import update_index
from dgn.runs.judgements import DISTORTION_NAMES, Judge, judged_shards, write_judgements
from dgn.runs.query import Rows
from dgn.runs.run import Run
from dgn.runs.summaries import SHARES, judge_names, summaries
from dgn.runs.validation import validated
from dgn.text import plural, printable

log = logging.getLogger("dgn")

JUDGE_SETTINGS = NETWORK_SETTINGS[1:]  # --by names it


@with_settings(RunConfig, *JUDGE_SETTINGS)
def command(
    run: RunArgument,
    settings: dict[str, Any],
    by: Annotated[
        str | None,
        typer.Option(
            metavar="NETWORK",
            help="The independent network that judges. The flags below that describe a network are its.",
        ),
    ] = None,
    discriminator: OwnNetwork = None,
    discriminator_weights: OwnWeights = None,
    discriminator_labels: OwnLabels = None,
    summary: Annotated[bool, typer.Option("--summary", help="Only print the existing judgements' summary.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Judges what was not judged before, then prints the summary.

    Raises: Incomplete if pictures are damaged, after judging all others.
    """
    if by is None and not summary:
        raise DgnError("--by NETWORK is missing: name the independent network that judges, or give --summary alone")
    moved = {"discriminator": discriminator, "weights": discriminator_weights, "labels": discriminator_labels}
    if summary and (settings or any(moved.values())):
        raise DgnError("--summary loads no network: leave out the flags that describe one")
    opened = Run.at(run)
    problems: list[str] = []
    if by is not None and not summary:
        num_judged, problems = _judge_run(opened, validated(RunConfig, {**settings, "discriminator": by}), moved)
        if not as_json:
            print(printable(f"{plural(num_judged, 'picture')} in {opened.store.url} judged by {by}"))
    found = [one for one in summaries(opened, Rows(opened)) if by is None or one["by"] == shown_name(by)]
    if not found and summary:
        raise DgnError(
            f"{run} has no judgements{f' by {by}' if by else ''} yet: make them with dgn judge RUN --by NETWORK"
        )
    if as_json:
        print_json(found)
    else:
        _print_summaries(found)
    if problems:
        raise Incomplete(
            f"{plural(len(problems), 'shard')} could not be judged: {problems[0]}; dgn verify {run} lists the damage"
        )


def _judge_run(run: Run, by: RunConfig, moved: dict[str, str | None]) -> tuple[int, list[str]]:
    """Judges what was not judged before. Returns the number of pictures, and the problems with others."""
    from dgn.engine import engine_for
    from dgn.networks.frozen import FrozenNetwork
    from dgn.pictures import distortions
    from dgn.pictures.second_opinion import check_independent
    from dgn.runs.extensions import own_plan
    from dgn.runs.judging import judge_shards
    from dgn.runs.networks import load_network
    from dgn.runs.origin import own_config, own_weights

    info = run.info()
    config = own_config(info, moved)
    frozen = load_network(by)
    own_frozen = own_weights(info, config, "--discriminator-{}")
    plan = own_plan(run, info, config, own_frozen.network.layers)
    remark = check_independent(frozen, own_frozen)
    if not run.committed(info.num_shards).count:
        raise DgnError(f"{run.store.url} has no pictures yet")
    log_to_stderr()
    if remark:
        log.warning("%s", remark)
    index = update_index(run)
    identity = Judge(frozen.network.name, frozen.sha256)
    judged = (one for part in index.parts for one in part.judged if one.judge == identity)
    done = {shard for one in judged for shard in one.shard_numbers()}  # except shards rendered again since
    todo = [shard for part in index.parts for shard in part.shard_numbers() if shard not in done]
    out_of_date = judged_shards(run).get(identity.folder, set()) - done
    about = {
        "run_id": info.run_id, "discriminator": own_frozen.network.name,
        "discriminator_weights_sha256": own_frozen.sha256,
    } | distortions.PARAMETERS  # fmt: skip
    num_pictures, problems = 0, []
    engine = engine_for()
    own, judge = FrozenNetwork(own_frozen, engine), FrozenNetwork(frozen, engine)
    with shards_done("shards judged", len(todo)) as observe:
        for n, (shard, rows) in enumerate(judge_shards(run, todo, plan, own, judge)):
            if isinstance(rows, RunDamaged):
                problems.append(rows.problem)
            else:
                write_judgements(run, identity, shard, rows, about, is_again=shard in out_of_date)
                num_pictures += sum(f"{DISTORTION_NAMES[0]}_rank" in row for row in rows)
            observe(n + 1, num_pictures)
    update_index(run)
    return num_pictures, problems


def _print_summaries(found: list[dict[str, Any]]) -> None:
    texts, numbers = (
        ("judge", "layer", "mode"),
        ("pictures", "judge: first", "top 5", "itself: saved", *DISTORTION_NAMES),
    )
    rows = [
        [judge, one["layer"], one["mode"], f"{one['num_pictures']:,}", *(percent(one[name]) for name in SHARES)]
        for judge, one in zip(judge_names(found), found, strict=True)
    ]
    print_table([*texts, *numbers], [False] * len(texts) + [True] * len(numbers), rows)
