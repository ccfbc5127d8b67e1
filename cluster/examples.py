"""The examples of a run: from settings to a job over photographs, and from its shards to lists and sheets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from dgn.cluster import connection, fleet
from dgn.cluster.context import ExamplesContext
from dgn.cluster.driver import Driver
from dgn.cluster.examples_worker import ExamplesWorker
from dgn.cluster.progress import Progress
from dgn.errors import DgnError, PlanMismatch
from dgn.networks.layers import Layers
from dgn.pictures.accuracy import folders_of_classes
from dgn.pictures.example_sheets import draw_example_sheet
from dgn.runs import examples as files
from dgn.runs.config import RunConfig
from dgn.runs.examples import Done, Examples, Merger
from dgn.runs.extensions import own_plan
from dgn.runs.info import EXAMPLES_VERSION, RunInfo
from dgn.runs.origin import own_config, own_weights
from dgn.runs.photographs import PhotographPlan, list_photographs, make_photograph_plan, photograph_store
from dgn.runs.plan import Plan
from dgn.runs.run import NUM_READERS, Run
from dgn.runs.stores import LocalStore
from dgn.targets import Target
from dgn.text import plural, printable

log = logging.getLogger("dgn")


@dataclass(frozen=True)
class Job:
    """What a job over photographs came to.

    Args:
        done: None if shards are missing.
    """

    progress: Progress | None
    done: Done | None


@connection.until_done()
def find_examples(
    run: Run,
    images: str,
    column: str,
    moved: Mapping[str, str | None],
    workers: tuple[int, int] | None,
    gpus_per_worker: float | None,
    observe: Callable[[Progress], None],
) -> Job:
    """Looks at every photograph that was not looked at before, and makes the lists.

    Args:
        moved: settings of the run's network by name, see `own_config`.

    Raises: DgnError for bad input, before anything is written. Incomplete if the job could not finish.
    """
    info = run.info()
    config = own_config(info, moved)
    weights = own_weights(info, config, "--discriminator-{}")
    layers = weights.network.layers
    subjects = subjects_of(own_plan(run, info, config, weights.network.layers))
    store = photograph_store(images)
    listing = list_photographs(store)
    if listing.left_out:
        log.info("left out of %s: %s", store.url, printable(listing.remark))
    plan = make_photograph_plan(store, listing, column)
    found = Examples.of(run)
    identity = _identity({**info.fingerprint, "targets_sha256": info.targets_sha256}, plan)
    if (done := found.done()) and found.has_lists:
        _start(run, found, identity, config, plan)
        return Job(None, done)
    found.store.check(must_write=True)
    true_classes = folders_of_classes(listing.photographs, layers)
    log.info(
        "%s, %s of the run, %s", plural(plan.num_targets, "photograph"), plural(len(subjects), "unit"),
        f"{plural(len(true_classes), 'folder')} named as classes" if true_classes else "no folder named as a class",
    )  # fmt: skip
    connection.connect(config.log_format)
    chosen = fleet.choose_workers(workers, gpus_per_worker, fleet.worker_bytes(weights.state), plan.num_shards)
    if isinstance(found.store, LocalStore):
        fleet.check_shared(found.store)
    if isinstance(store, LocalStore):
        fleet.check_seen(store, (listing.photographs or listing.tables)[0])
    started = _start(run, found, identity, config, plan)
    context = ExamplesContext(found.store.url, started.run_id, plan, subjects, true_classes)
    progress = Driver(found, started, context, weights, None, chosen, observe, ExamplesWorker).loop()
    if progress.shards_done < progress.num_shards:
        return Job(progress, None)
    return Job(progress, _make_lists(found, plan, listing.remark, subjects, layers))


def _start(run: Run, found: Examples, identity: dict[str, Any], config: RunConfig, plan: PhotographPlan) -> RunInfo:
    """Raises: DgnError if the run has examples of other photographs."""
    try:
        return found.start(identity, config, plan.num_targets, plan.num_shards)
    except PlanMismatch as error:
        raise DgnError(
            f"{run.store.url} has examples of other photographs than those in {plan.url} now, of fewer targets, or by "
            "another dgn: delete its folder examples to make them again, or give the photographs that they were begun "
            "with"
        ) from error


def subjects_of(plan: Plan) -> tuple[Target, ...]:
    """What a run's targets seek, each once, in order of the plan."""
    subjects: dict[str, Target] = {}
    for block in plan.blocks:
        for first in range(0, len(block), block.num_seeds):
            target = block.target(first)
            subjects.setdefault(target.subject, target)
    return tuple(subjects.values())


def _identity(fingerprint: Mapping[str, Any], plan: PhotographPlan) -> dict[str, Any]:
    """What decides the examples: the run's network and targets, and the photographs."""
    return {**fingerprint, "photographs_sha256": plan.sha256, "column": plan.column, EXAMPLES_VERSION: files.VERSION}


def _make_lists(
    found: Examples, plan: PhotographPlan, left_out: str, subjects: tuple[Target, ...], layers: Layers
) -> Done:
    """Writes lists, photographs and sheets from the shards."""
    log.info("making lists of %s", plural(plan.num_shards, "shard"))
    merger, unreadable, num_with_class = Merger(), list[str](), 0
    for table, about in found.shards(plan.num_shards):
        merger.add(table, about["digests"])
        unreadable += about["unreadable"]
        num_with_class += about["num_with_class"]
    if len(unreadable) == plan.num_targets:
        raise DgnError(
            f"none of {plural(plan.num_targets, 'photograph')} in {plan.url} can be read, such as {unreadable[0]}; "
            f"delete {found.store.url}, and give others"
        )
    merged = merger.result()
    named = [
        {"subject": one.subject, "layer": one.layer, "unit": one.unit, "label": layers.label(one)} for one in subjects
    ]
    lists = files.as_lists(merged, named)
    found.write(files.LISTS, lists)
    found.write(files.PHOTOGRAPHS, merged.photographs.drop_columns(["number"]))
    _draw_sheets(found, merged, named)
    done = Done(
        files.VERSION, plan.url, plan.column, left_out, plan.num_targets, len(unreadable), tuple(unreadable[:10]),
        merger.num_copies, num_with_class, len(subjects), len(lists),
    )  # fmt: skip
    found.finish(done)
    return done


def _draw_sheets(found: Examples, merged: files.Merged, subjects: list[dict[str, Any]]) -> None:
    """One for each subject that has a strongest photograph."""
    rows = merged.lists.select(["subject", "kind", "number", *files.SIDES]).to_pylist()
    numbers = merged.photographs["number"].to_numpy()
    thumbnails = merged.photographs["thumbnail"]
    by_subject: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] == files.KINDS[0]:
            by_subject.setdefault(row["subject"], []).append(row)

    def draw(subject: int) -> None:
        photographs = [
            (
                thumbnails[int(np.searchsorted(numbers, row["number"]))].as_py(),
                (row["box_left"], row["box_top"], row["box_right"], row["box_bottom"]),
            )
            for row in by_subject[subject]
        ]
        found.store.write(files.sheet_key(subjects[subject]["subject"]), draw_example_sheet(photographs))

    with ThreadPoolExecutor(NUM_READERS) as writers:
        list(writers.map(draw, by_subject))
