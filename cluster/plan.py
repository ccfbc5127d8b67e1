"""A run's plan: configuration -> targets -> shards, the same on every machine and at every start.

Nothing here grows with the number of targets: blocks describe them, a shard's targets are made when it is rendered.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

import dgn
from dgn.recipes import RenderConfig
from dgn.targets import Layout, Target, TargetBlock, parse_targets

SCHEMA_VERSION = 1  # of run.json and of the rows; a change that old readers cannot take raises it


def _fewest_and_most(workers: str) -> tuple[int, int]:
    fewest, _, most = workers.rpartition("-")
    return int(fewest or most), int(most)


def _check_workers(workers: str) -> str:
    fewest, most = _fewest_and_most(workers)
    if fewest > most:
        raise ValueError("expected MIN-MAX with MIN at most MAX")
    return workers


class RunConfig(BaseModel):
    """What a person can set for a run, by flags or in one YAML file. Paths stay as given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    targets: tuple[str, ...] = ("all",)
    modes: tuple[str, ...] | None = None
    preset: str = "standard"
    discriminator: str = "vgg16"
    weights: str | None = None
    decoder: str | None = None
    seed: int = Field(default=0, ge=0)
    seeds: int = Field(default=1, ge=1)
    updates: int | None = Field(default=None, ge=1)  # None: the preset's
    views: int | None = Field(default=None, ge=0)
    stop_early: float | None = Field(default=None, gt=0, lt=1)  # the least share of rise in 20 updates to go on for
    tone_mapping: Literal["none", "notebook"] = "none"
    width: float | None = Field(default=None, gt=0, le=4)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    shard_size: int = Field(default=32, ge=1, le=4096)
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    # N or MIN-MAX; None: one per GPU, or one per machine without, those that join later included
    workers: (
        Annotated[
            str,
            BeforeValidator(str),
            StringConstraints(pattern=r"^(\d+-)?[1-9]\d*$"),
            AfterValidator(_check_workers),
        ]
        | None
    ) = None
    gpus_per_worker: float | None = Field(default=None, ge=0)  # None: 1 where the cluster has GPUs
    log_format: Literal["text", "json"] = "text"

    @property
    def workers_range(self) -> tuple[int, int] | None:
        """The fewest and the most workers."""
        return None if self.workers is None else _fewest_and_most(self.workers)

    def render_config(
        self, precision: Literal["float32", "bfloat16"], decoder_width: float | None = None
    ) -> RenderConfig:
        """The preset with this run's own settings; the pretrained G is as wide as its decoder."""
        own = {"num_updates": self.updates, "num_views": self.views, "width": self.width, "min_rise": self.stop_early}
        given = {name: value for name, value in own.items() if value is not None}
        config = RenderConfig.from_preset(self.preset, precision, tone_mapping=self.tone_mapping, **given)
        if decoder_width is None:
            return config
        return replace(config, pretrained=replace(config.pretrained, width=decoder_width))


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

    def __len__(self) -> int:
        return self.stop - self.start


class Plan:
    """Blocks cut into shards. Shards are numbered through; each is computed from its number."""

    def __init__(self, blocks: Sequence[TargetBlock], shard_size: int):
        self.blocks = tuple(blocks)
        self.shard_size = shard_size
        self._first_shard = [0]
        for block in self.blocks:
            self._first_shard.append(self._first_shard[-1] + -(-len(block) // shard_size))

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
        lines = [json.dumps(asdict(block), sort_keys=True) for block in self.blocks]
        return hashlib.sha256("\n".join([*lines, str(self.shard_size)]).encode()).hexdigest()


def make_plan(config: RunConfig, layout: Layout) -> Plan:
    """Raises: TargetError for targets that the network does not have."""
    blocks = parse_targets(config.targets, layout, config.modes, config.seed, config.seeds)
    return Plan(blocks, config.shard_size)


def fingerprint(
    plan: Plan, render: RenderConfig, discriminator: str, weights_sha256: str, decoder_sha256: str | None
) -> dict[str, Any]:
    """Everything that decides a run's pictures. Two runs with the same one make the same targets alike."""
    return {
        "schema_version": SCHEMA_VERSION,
        "dgn_version": dgn.__version__,
        "discriminator": discriminator,
        "weights_sha256": weights_sha256,
        "decoder_sha256": decoder_sha256,
        "render": json.loads(json.dumps(asdict(render))),
        "targets_sha256": plan.targets_sha256(),
    }
