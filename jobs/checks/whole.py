"""Checks that every target of a run is present once, intact, and scored as its row says."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dgn.errors import DgnError, WeightsMissing
from dgn.jobs.common.progress import shards_done
from dgn.runs.config import RunConfig
from dgn.runs.extensions import own_plan
from dgn.runs.info import RunInfo
from dgn.runs.layout import VERIFIED_FILE
from dgn.runs.run import Run
from dgn.runs.shards import Committed
from dgn.runs.verified import Notes
from dgn.runs.verifying import IntactPicture, Reading, ShardRead, compare, read_here
from dgn.text import plural

if TYPE_CHECKING:
    from dgn.networks.frozen import FrozenNetwork
    from dgn.networks.network import Network
    from dgn.runs.plan import Plan

log = logging.getLogger("dgn")

RELATIVE_TOLERANCE = 1e-3  # float32 convolutions add in another order on another machine
NUM_SHOWN = 20


class Found:
    """What all shards together have. Of many problems, only the first are kept."""

    def __init__(self, num_targets: int, num_sampled: int):
        self.num_targets = num_targets  # expected
        self.num_found = self.num_extra = self.num_problems = self.num_scored = 0
        self.problems: list[str] = []
        self.sample: list[IntactPicture] = []
        self._num_sampled = num_sampled

    def add_sample(self, sample: Sequence[IntactPicture]) -> None:
        self.sample = heapq.nsmallest(self._num_sampled, [*self.sample, *sample])

    def add_problems(self, problems: Sequence[str]) -> None:
        self.num_problems += len(problems)
        self.problems += problems[: NUM_SHOWN - len(self.problems)]


def check(run: Run, moved: Mapping[str, str | None], num_sampled: int) -> Found:
    """Compares all shards with the plan, then scores some pictures again. Continues an interrupted check.

    Args:
        moved: where the run's weights, network and labels are now, if they moved.
        num_sampled: pictures to score again.

    Raises: DgnError if the run's plan or network is not to be had.
    """
    info = run.info()
    committed = run.committed(info.num_shards)
    with Notes(run, info.run_id) as notes, _begun(run, info, committed, notes, num_sampled) as read:
        network, plan = _network_and_plan(run, info, moved, num_sampled > 0)  # imports torch, while others read
        found = _check_shards(plan, committed, itertools.chain.from_iterable(read), notes, num_sampled)
    if not found.num_problems and network:
        found.add_problems(_score_again(run, plan, network, found.sample))
        found.num_scored = len(found.sample)
    return found


def _network_and_plan(
    run: Run, info: RunInfo, moved: Mapping[str, str | None], is_scored: bool
) -> tuple[FrozenNetwork | None, Plan]:
    """The run's network, unless nothing is scored again, and its targets. Raises: DgnError if either is another."""
    if info.layers and not is_scored:
        return None, own_plan(run, info, info.run_config, info.layers)
    from dgn.networks.frozen import FrozenNetwork
    from dgn.runs.origin import own_config, own_weights

    config = own_config(info, moved)
    if not is_scored:
        return None, own_plan(run, info, config, _described(config).layers)
    weights = own_weights(info, config)
    return FrozenNetwork(weights), own_plan(run, info, config, weights.network.layers)


def _described(config: RunConfig) -> Network:
    """The run's network for a look at its rows, also where its weights are not."""
    from dgn.runs.networks import describe_network

    try:
        return describe_network(config)
    except WeightsMissing:
        return describe_network(config.model_copy(update={"weights": None}))


@contextmanager
def _begun(
    run: Run, info: RunInfo, committed: Committed, notes: Notes, num_sampled: int
) -> Iterator[Iterable[list[ShardRead]]]:
    """Begins to read the committed shards, on the cluster if there is one, and gives the answers in order."""
    intact = dict(notes.verified.shards)
    if intact:
        log.info(
            "continues the check begun at %s: pictures of %s are not read again; to begin anew, delete %s",
            notes.verified.begun_at, plural(len(intact), "shard"), VERIFIED_FILE,
        )  # fmt: skip
    reading = Reading(run.store.url, info.run_id, list(committed), intact, num_sampled)
    if os.environ.get("RAY_ADDRESS"):
        from dgn.cluster.connection import until_done
        from dgn.cluster.verifying import read_on_cluster

        with until_done():
            yield read_on_cluster(reading)
    else:
        with read_here(reading) as read:
            yield read


def _check_shards(
    plan: Plan, committed: Committed, reads: Iterator[ShardRead], notes: Notes, num_sampled: int
) -> Found:
    """Compares what is read with the plan."""
    found = Found(plan.num_targets, num_sampled)
    with shards_done("shards checked", plan.num_shards) as observe:
        for index in range(plan.num_shards):
            shard = plan.shard(index)
            if index not in committed:
                found.add_problems([f"shard {index:06d} is missing ({len(shard)} targets)"])
                continue
            read = next(reads)
            check = compare(read, shard)
            found.num_found += check.num_found
            found.num_extra += check.num_extra
            found.add_problems(check.problems)
            found.add_sample(read.sample)
            if read.sha256 and not check.problems:
                notes.add(index, read.sha256)
            observe(index + 1, found.num_found)
    return found


def _score_again(run: Run, plan: Plan, network: FrozenNetwork, sample: list[IntactPicture]) -> list[str]:
    from dgn.pictures.scoring import read_pictures, score

    problems = []
    for one in sample:
        [target] = (target for target in plan.shard(one.shard).targets if target.target_id == one.target_id)
        try:
            picture = read_pictures([run.picture(one.file_name, one.sha256)], network.size_px)
        except DgnError as error:
            problems.append(f"{one.file_name}: {error}")
            continue
        [again] = score(picture, [target], network)
        theirs = math.nan if one.activation is None else one.activation
        # So written that NaN is a problem.
        if not abs(again.activation - theirs) <= RELATIVE_TOLERANCE * max(abs(theirs), 1e-6):
            problems.append(f"{one.target_id}: scored again as {again.activation:.6g}, but its row has {theirs:.6g}")
    return problems
