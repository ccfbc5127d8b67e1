"""Targets that are added to a run after it began.

    extensions/<n>.json    from 1, each created once

A run's plan is that of its settings, followed by the blocks of each extension, so shards keep their numbers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

from dgn.errors import DgnError
from dgn.networks.layers import Layers
from dgn.networks.specs import parse_targets
from dgn.runs.config import RunConfig
from dgn.runs.info import Again, Extension, RunInfo
from dgn.runs.layout import extension_key
from dgn.runs.plan import Plan, make_plan
from dgn.runs.run import Run
from dgn.statuses import Status
from dgn.targets import Directions, TargetBlock


def extended(plan: Plan, extension: Extension, layers: Layers) -> Plan:
    """The plan with the targets of an extension behind its own. Raises: TargetError."""
    blocks = (
        parse_targets(extension.targets, layers, extension.modes, extension.seed, extension.seeds)
        if extension.targets
        else ()
    )
    new = [piece for block in blocks for piece in _new_in(block, plan.blocks)]
    new += [_again(plan.blocks[again.block], again) for again in extension.again]
    return Plan((*plan.blocks, *new), plan.shard_size)


def with_extensions(plan: Plan, extensions: Iterable[Extension], layers: Layers) -> Plan:
    """A run's whole plan, from that of its settings.

    Raises: TargetError; DgnError if an extension gives other targets than it did when it was made.
    """
    for number, extension in enumerate(extensions, 1):
        is_there = all(_is_in(plan, again) for again in extension.again)
        whole = extended(plan, extension, layers) if is_there else plan
        if not is_there or _counted(plan, whole, extension) != extension:
            raise DgnError(
                f"{extension_key(number)} does not give the targets that it gave when it was made: it was edited, or a "
                "file of directions that it names has changed; put the file back as it was"
            )
        plan = whole
    return plan


def own_plan(run: Run, info: RunInfo, config: RunConfig, layers: Layers) -> Plan:
    """The run's targets. Raises: DgnError if its settings give other targets than it was started with."""
    plan = make_plan(config, layers)
    num_targets = info.num_targets - sum(one.num_targets for one in info.extensions)
    num_shards = info.num_shards - sum(one.num_shards for one in info.extensions)
    is_same_size = (plan.num_targets, plan.num_shards) == (num_targets, num_shards)
    if not is_same_size or plan.targets_sha256() != info.fingerprint["targets_sha256"]:
        why = (
            "it was edited" if "network" in info.fingerprint else "it was edited, or an earlier dgn drew these filters"
        )
        raise DgnError(f"{run.store.url}: the settings in run.json do not give its own target list; {why}")
    return with_extensions(plan, info.extensions, layers)


@dataclass(frozen=True)
class MoreTargets:
    """What `dgn render RUN --extend` adds: as the settings of the same names."""

    targets: tuple[str, ...]
    modes: tuple[str, ...] | None
    seed: int
    seeds: int

    def after(self, plan: Plan, run: Run, layers: Layers) -> Extension:
        """Raises: TargetError; DgnError if the run has them all."""
        extension = _new(plan, layers, targets=self.targets, modes=self.modes, seed=self.seed, seeds=self.seeds)
        if not extension.num_targets:
            raise DgnError(
                f"{run.store.url} has all of these targets already: to draw them with more seeds, give "
                "--seed FIRST --seeds N; to continue the run, leave out --extend"
            )
        return extension


@dataclass(frozen=True)
class FailedAgain:
    """What `dgn resume RUN --status STATUSES --seeds N` adds: for each target that ended so, one more picture, the best
    of N further seeds."""

    statuses: tuple[Status, ...]
    num_tries: int

    def after(self, plan: Plan, run: Run, layers: Layers) -> Extension:
        """Raises: DgnError if no target ended so, or all of them were drawn again with success."""
        failed = self._failed(plan, run)
        again = tuple(
            Again(n, tuple(sorted(groups)), _next_seed(plan, n), self.num_tries) for n, groups in sorted(failed.items())
        )
        if not again:
            raise DgnError(
                f"no target of {run.store.url} is {' or '.join(self.statuses)}, or a later try of it succeeded or is "
                "not drawn yet: there is nothing to draw again; to continue the run, leave out --status"
            )
        return _new(plan, layers, again=again)

    def _failed(self, plan: Plan, run: Run) -> dict[int, set[int]]:
        """Which groups failed: their numbers in the block that had them first, by that block's number."""
        numbers = {id(block): n for n, block in enumerate(plan.blocks)}
        names = cache(lambda number: _names(plan.blocks[number]))
        tries = _shards_of_tries(plan, run)
        first: dict[Hashable, tuple[int, int]] = {}
        settled: set[Hashable] = set()  # by a try that succeeded, or that an interrupted job has left to draw
        committed = run.committed(plan.num_shards)
        for index in tries:
            if index not in committed:
                shard = plan.shard(index)
                settled.update(names(numbers[id(shard.block)])[shard.start : shard.stop])
        whole = list(committed)
        for index, table in zip(whole, run.tables(whole, ["target_id", "status"]), strict=True):
            has_failed = {row["target_id"]: row["status"] in self.statuses for row in table.to_pylist()}
            if index not in tries and not any(has_failed.values()):
                continue
            shard = plan.shard(index)
            number = numbers[id(shard.block)]
            for place, target_id in enumerate(shard.target_ids, shard.start):
                which = place // shard.block.num_seeds
                if has_failed.get(target_id):
                    first.setdefault(names(number)[which], (number, which))
                elif index in tries:
                    settled.add(names(number)[which])
        failed: dict[int, set[int]] = {}
        for name, (number, which) in first.items():
            if name not in settled:
                failed.setdefault(number, set()).add(which)
        return failed


def _shards_of_tries(plan: Plan, run: Run) -> set[int]:
    """The shards of targets that were drawn once more, or are to be."""
    shards: set[int] = set()
    stop = plan.num_shards
    for extension in reversed(run.info().extensions):
        start = stop - extension.num_shards
        if extension.again:
            shards.update(range(start, stop))
        stop = start
    return shards


def _new(plan: Plan, layers: Layers, **what: Any) -> Extension:
    """An extension of a plan."""
    added = Extension(created_at=datetime.now(UTC).isoformat(timespec="seconds"), **what)
    return _counted(plan, extended(plan, added, layers), added)


def _counted(plan: Plan, whole: Plan, extension: Extension) -> Extension:
    """The extension with what it makes of a plan."""
    return replace(
        extension,
        num_targets=whole.num_targets - plan.num_targets,
        num_shards=whole.num_shards - plan.num_shards,
        targets_sha256=whole.targets_sha256(),
    )


def _is_in(plan: Plan, again: Again) -> bool:
    """Whether a plan has the groups that are to be drawn once more."""
    return again.block < len(plan.blocks) and max(again.groups, default=0) < len(plan.blocks[again.block].groups)


def _again(block: TargetBlock, again: Again) -> TargetBlock:
    groups = _some(block, again.groups)
    return replace(block, groups=groups, first_seed=again.seed, num_seeds=1, num_tries=again.tries)


def _next_seed(plan: Plan, number: int) -> int:
    """The first seed that no target of a block's layer, mode and kind has."""
    kind = _kind(plan.blocks[number])
    return max(one.first_seed + one.num_seeds * one.num_tries for one in plan.blocks if _kind(one) == kind)


def _kind(block: TargetBlock) -> Hashable:
    return block.layer, block.mode, block.measure


def _new_in(block: TargetBlock, others: Sequence[TargetBlock]) -> list[TargetBlock]:
    """The targets of a block that no other has, as blocks."""
    pieces = [block]
    for other in others:
        if _kind(other) == _kind(block) and other.num_tries == block.num_tries:
            pieces = [rest for piece in pieces for rest in _rest(piece, other)]
    return pieces


def _rest(block: TargetBlock, other: TargetBlock) -> Iterator[TargetBlock]:
    """The targets of a block that another of its kind lacks: other groups, and other seeds of the same ones."""
    taken = set(_names(other))
    is_shared = [name in taken for name in _names(block)]
    stop, other_stop = block.first_seed + block.num_seeds, other.first_seed + other.num_seeds
    if not any(is_shared) or stop <= other.first_seed or other_stop <= block.first_seed:
        yield block
        return
    if not all(is_shared):
        yield replace(block, groups=_some(block, [n for n, shared in enumerate(is_shared) if not shared]))
    same = replace(block, groups=_some(block, [n for n, shared in enumerate(is_shared) if shared]))
    if block.first_seed < other.first_seed:
        yield replace(same, num_seeds=other.first_seed - block.first_seed)
    if other_stop < stop:
        yield replace(same, first_seed=other_stop, num_seeds=stop - other_stop)


def _names(block: TargetBlock) -> list[Hashable]:
    """Keys of the groups, as unique as the target_ids that are made of them."""
    return [(_kind(block), block.target(n * block.num_seeds).subject) for n in range(len(block.groups))]


def _some(block: TargetBlock, which: Sequence[int]) -> Any:
    """Some of a block's groups, by their numbers."""
    if isinstance(block.groups, Directions):
        names, vectors = block.groups.names, block.groups.vectors_DU
        return replace(block.groups, names=tuple(names[n] for n in which), vectors_DU=vectors[list(which)])
    return tuple(block.groups[n] for n in which)
