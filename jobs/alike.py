"""`dgn alike`: which pictures of a run look alike, by the features of a second network."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer

from dgn.errors import DgnError, Incomplete, RunDamaged
from dgn.jobs.common.arguments import RunArgument
from dgn.jobs.common.flags import with_settings
from dgn.jobs.common.printing import print_table
from dgn.jobs.common.progress import bar, log_to_stderr
from dgn.runs.alike import Alike, write_alike
from dgn.runs.config import NETWORK_SETTINGS, RunConfig
from dgn.runs.index import update_index
from dgn.runs.index_file import Index
from dgn.runs.judgements import Judge
from dgn.runs.run import Run
from dgn.runs.validation import validated
from dgn.text import plural, printable

log = logging.getLogger("dgn")

NUM_PRINTED = 10


@with_settings(RunConfig, *NETWORK_SETTINGS[1:])
def command(
    run: RunArgument,
    settings: dict[str, Any],
    by: Annotated[
        str,
        typer.Option(
            metavar="NETWORK",
            help="The second network, whose features say what is alike. The flags below that describe a network are "
            "its.",
        ),
    ] = "efficientnet_lite0",
    has_map: Annotated[bool, typer.Option("--map/--no-map", help="Whether to make a map too.")] = True,
) -> None:
    """Looks at what was not looked at before, and compares all pictures again.

    Raises: Incomplete if pictures are damaged, after looking at all others.
    """
    config = validated(RunConfig, {**settings, "discriminator": by})
    opened = Run.at(run)
    info = opened.info()
    from dgn.networks.frozen import FrozenNetwork
    from dgn.pictures.likeness import check_map_library
    from dgn.runs.likening import Features, likened
    from dgn.runs.networks import load_network

    weights = load_network(config)
    if not weights.network.layers.filter_layers:
        raise DgnError(
            f"{weights.network.name} has no convolutions whose maps could be compared: name another with --by"
        )
    if not opened.committed(info.num_shards).count:
        raise DgnError(f"{opened.store.url} has no pictures yet")
    log_to_stderr()
    if has_map:
        check_map_library()
    if weights.sha256 == info.fingerprint["weights_sha256"]:
        log.warning("%s made these pictures: what fools it may look alike to it; better another with --by", by)
    index = update_index(opened)
    features = Features(opened, Judge(weights.network.name, weights.sha256))
    problems = _look(features, index, FrozenNetwork(weights))
    with bar("compared", index.num_rows) as (progress, task):
        tables = likened(features, index, has_map, lambda done: progress.update(task, completed=done))
    if tables:
        current = write_alike(opened, *tables, weights.network.name, weights.sha256)
        _print(Alike(opened, current), index.num_rows, has_map)
    if problems:
        raise Incomplete(
            f"{plural(len(problems), 'shard')} could not be looked at: {problems[0]}; dgn verify {run} lists the damage"
        )
    if not tables:
        raise DgnError(f"{opened.store.url} has no picture that {by} responds to: dgn failed {run} says why")


def _look(features: Any, index: Index, network: Any) -> list[str]:
    """Returns what is wrong with pictures."""
    todo = features.missing([shard for part in index.parts for shard in part.shard_numbers()])
    with bar("shards looked at", len(todo)) as (progress, task):
        problems = []
        for found in features.look(todo, network):
            if isinstance(found, RunDamaged):
                problems.append(found.problem)
            progress.advance(task)
    return problems


def _print(alike: Alike, num_rows: int, has_map: bool) -> None:
    current = alike.current
    if current.num_rows < num_rows:
        log.info("%d rows are left out: without a picture, or with one that %s does not respond to",
                 num_rows - current.num_rows, current.by)  # fmt: skip
    if has_map and not current.has_map:
        from dgn.pictures.likeness import FEWEST_ON_MAP

        log.info("no map: it takes at least %d pictures", FEWEST_ON_MAP)
    table = alike.table(["target_id", "redundancy", "similar"])
    most = table.filter(table["redundancy"].is_valid()).sort_by(
        [("redundancy", "descending"), ("target_id", "ascending")]
    )
    print_table(
        ("target", "redundancy"),
        (False, True),
        [[row["target_id"], f"{row['redundancy']:.3f}"] for row in most.slice(0, NUM_PRINTED).to_pylist()],
    )
    where = f"{alike.run.store.url}/{current.table}"
    print(printable(f"{plural(current.num_rows, 'picture')} compared in the features of {current.by}: {where}"))
