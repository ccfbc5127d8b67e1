"""A run's plan: settings -> targets -> shards, the same on every machine and at every start.

Nothing here grows with the number of targets: blocks describe them, and a shard's targets are created when it is
rendered.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import dgn
from dgn.errors import TargetError
from dgn.method.recipes import METHOD_VERSION, RenderConfig
from dgn.networks.layers import Layers
from dgn.networks.specs import parse_targets
from dgn.runs import schema
from dgn.runs.config import RunConfig
from dgn.runs.shards import MAX_SHARDS
from dgn.targets import Directions, Target, TargetBlock

if TYPE_CHECKING:
    from dgn.networks.network import Network

LAST_SEED = 2**63 - 1  # of the column's type
SMALLEST_SHARD = 2
FEW_SHARDS = 32  # so that several workers finish at about the same time


@dataclass(frozen=True)
class Shard:
    """The unit of scheduling, retry and storage: targets of one layer and mode."""

    index: int
    block: TargetBlock
    start: int
    stop: int

    @property
    def targets(self) -> list[Target]:
        return [self.block.target(i) for i in range(self.start, self.stop)]

    @property
    def target_ids(self) -> list[str]:
        return list(self.block.target_ids(self.start, self.stop))

    @property
    def kind(self) -> tuple[str, str]:
        """Mode and layer: shards of one kind take about as long."""
        return self.block.mode, self.block.layer

    def __len__(self) -> int:
        return self.stop - self.start


class Plan:
    """Blocks cut into shards. Shards are numbered consecutively, and each is computed from its number.

    Raises: TargetError for more shards or higher seeds than a run can have.
    """

    what = "picture"  # that a target becomes

    def __init__(self, blocks: Sequence[TargetBlock], shard_size: int):
        self.blocks = tuple(blocks)
        self.shard_size = shard_size
        self._first_shard = [0]
        for block in self.blocks:
            self._first_shard.append(self._first_shard[-1] + -(-len(block) // shard_size))
            last_seed = block.first_seed + block.num_seeds * block.num_tries - 1
            if last_seed > LAST_SEED:
                raise TargetError(f"seeds up to {last_seed}: expected at most {LAST_SEED}, the last that rows can hold")
        if self.num_shards > MAX_SHARDS:
            raise TargetError(
                f"{self.num_shards:,} shards: expected at most {MAX_SHARDS:,}; give fewer targets or seeds, or "
                "a larger shard size"
            )

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of the targets, each once."""
        return tuple(dict.fromkeys(block.layer for block in self.blocks))

    @property
    def num_shards(self) -> int:
        return self._first_shard[-1]

    @property
    def num_targets(self) -> int:
        return sum(len(block) for block in self.blocks)

    def shard(self, index: int) -> Shard:
        if not 0 <= index < self.num_shards:
            raise IndexError(f"shard {index} of {self.num_shards}")
        which = bisect_right(self._first_shard, index) - 1
        start = (index - self._first_shard[which]) * self.shard_size
        block = self.blocks[which]
        return Shard(index, block, start, min(start + self.shard_size, len(block)))

    def targets_sha256(self) -> str:
        """Hash of the target list: of its blocks, which determine every target and its shard."""
        lines = [json.dumps(_content(block), sort_keys=True) for block in self.blocks]
        return hashlib.sha256("\n".join([*lines, str(self.shard_size)]).encode()).hexdigest()


def _content(block: TargetBlock) -> dict[str, Any]:
    """What determines the block's targets; without what did not exist when earlier runs began."""
    if isinstance(block.groups, Directions):
        content = asdict(replace(block, groups=())) | {"groups": block.groups.sha256}
    else:
        content = asdict(block)
        del content["measure"]
    if block.num_tries == 1:
        del content["num_tries"]
    return content


def make_plan(config: RunConfig, layers: Layers) -> Plan:
    """Raises: TargetError for targets that the network does not have."""
    blocks = parse_targets(config.targets, layers, config.modes, config.seed, config.seeds)
    size = config.largest_shard
    if config.shard_size == "auto":  # for CPUs
        size = min(max(SMALLEST_SHARD, sum(map(len, blocks)) // FEW_SHARDS), size)
    return Plan(blocks, size)


def fingerprint(
    plan: Plan,
    render: RenderConfig,
    network: Network,
    weights_sha256: str,
    decoder_sha256: str | None,
    labels_sha256: str | None = None,
) -> dict[str, Any]:
    """Everything that decides a run's pictures and their labels. Two runs with the same fingerprint make the same.

    Args:
        labels_sha256: of labels that were given; None for the network's own.
    """
    return {
        "schema_version": schema.VERSION,
        "dgn_version": dgn.__version__,  # for people
        "method_version": METHOD_VERSION,
        "discriminator": network.name,
        "weights_sha256": weights_sha256,
        "decoder_sha256": decoder_sha256,
        "labels_sha256": labels_sha256,
        "render": render.as_json(),
        "targets_sha256": plan.targets_sha256(),
        "network": network.description(),
    }
