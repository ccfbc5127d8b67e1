"""A run's statistics: progress, speed, failures, activations per layer, best and worst pictures.

One pass over a few columns of the rows. Memory grows by four bytes per picture and one line per shard.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dgn.runs.query import Rows
from dgn.targets import mode_rank

NUM_BINS = 24  # of a histogram
NUM_EXAMPLES = 3  # of a reason
SHOWN = ("target_id", "layer", "unit", "label", "status", "activation", "rank", "file_name", "sha256")  # of a picture
COLUMNS = (*SHOWN, "mode", "reason", "seconds", "shard", "device", "host", "rendered_at")
MOST_CHARS = 300  # of a reason or an error
MOST_S = 1e8  # per picture; a row outside this range, or of other years, was edited and is not counted
YEARS = tuple(int(datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1e6) for year in (1970, 9999))


@dataclass
class Pace:
    """How fast pictures were made: all of them, or those from one host's devices of one name."""

    num_pictures: int = 0
    device_s: float = 0.0  # the sum of their seconds
    begun_us: int | None = None  # since 1970: when the first shard's last picture was saved, minus its seconds
    ended_us: int | None = None  # when the last picture was saved

    def add(self, num_pictures: int, device_s: float | None, begun_us: int | None, ended_us: int | None) -> None:
        self.num_pictures += num_pictures
        self.device_s += device_s or 0.0
        self.begun_us = min((at for at in (self.begun_us, begun_us) if at is not None), default=None)
        self.ended_us = max((at for at in (self.ended_us, ended_us) if at is not None), default=None)

    @property
    def clock_s(self) -> float | None:
        """From the first shard's beginning to the last picture's end, including pauses of the run."""
        return None if self.begun_us is None or self.ended_us is None else (self.ended_us - self.begun_us) / 1e6

    @property
    def per_hour(self) -> float | None:
        """Pictures per hour of clock time."""
        return 3600 * self.num_pictures / self.clock_s if self.clock_s else None

    @property
    def per_device_hour(self) -> float | None:
        return 3600 * self.num_pictures / self.device_s if self.device_s else None


@dataclass(frozen=True)
class Histogram:
    """The activations of one layer's pictures in one mode; `counts` are of equal bins from `least` to `highest`."""

    layer: str
    mode: str
    num_pictures: int
    num_silent: int  # whose activation is not above 0
    median: float
    least: float
    highest: float
    counts: tuple[int, ...]


@dataclass
class Reason:
    """Why pictures are not ok. `text` is their reason if all share one, otherwise what their reasons have in common."""

    status: str
    text: str
    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)  # target_id, label, reason


@dataclass
class Statistics:
    """The statistics of all committed shards."""

    statuses: Counter[str] = field(default_factory=Counter)
    overall: Pace = field(default_factory=Pace)
    devices: dict[tuple[str, str], Pace] = field(default_factory=dict)  # by host and device
    histograms: list[Histogram] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)  # most frequent first
    best: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by mode, best first
    worst: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by mode, worst first, without the best


def statistics_of(rows: Rows, num_shown: int) -> Statistics:
    """Statistics with `num_shown` of the best and of the worst pictures of each mode. Raises: StoreError."""
    found = Statistics()
    activations: dict[tuple[str, str], list[NDArray[np.float32]]] = {}
    reasons: dict[tuple[str, str], Reason] = {}
    best: dict[str, pa.Table] = {}
    worst: dict[str, pa.Table] = {}
    paces: list[pa.Table] = []
    for table in rows.tables(COLUMNS):
        found.statuses.update({one["values"]: one["counts"] for one in pc.value_counts(table["status"]).to_pylist()})
        paces.append(_by_shard(table))
        _add_reasons(reasons, table.filter(pc.field("status") != "ok"))
        pictures = table.filter(pc.is_finite(pc.field("activation")) & pc.field("file_name").is_valid())
        for one in pictures.group_by(["layer", "mode"]).aggregate([("activation", "list")]).to_batches():
            for layer, mode, values in zip(one["layer"], one["mode"], one["activation_list"], strict=True):
                kept = activations.setdefault((layer.as_py(), mode.as_py()), [])
                kept.append(values.values.to_numpy(zero_copy_only=False).copy())
        for mode in pc.unique(pictures["mode"]).to_pylist():
            of_mode = pictures.filter(pc.field("mode") == mode).select(SHOWN)
            for kept_of, order in ((best, "descending"), (worst, "ascending")):
                kept_of[mode] = _first(kept_of.get(mode), of_mode, order, num_shown)
    _add_paces(found, paces)
    depth = {layer: n for n, layer in enumerate(rows.layers())}
    in_order = sorted(activations, key=lambda key: (mode_rank(key[1]), depth[key[0]]))
    found.histograms = [_histogram(*key, np.concatenate(activations[key])) for key in in_order]
    found.reasons = sorted(reasons.values(), key=lambda reason: -reason.count)
    for mode in sorted(best, key=mode_rank):
        found.best[mode] = best[mode].to_pylist()
        is_best = pc.is_in(worst[mode]["target_id"], best[mode]["target_id"])
        found.worst[mode] = worst[mode].filter(pc.invert(is_best)).to_pylist()
    return found


def _by_shard(table: pa.Table) -> pa.Table:
    """One row per shard, host and device: pictures, seconds, begin and end."""
    seconds = _between(table["seconds"], 0, MOST_S)
    ended = _between(table["rendered_at"].cast(pa.int64()), *YEARS)
    begun = pc.subtract(ended, _microseconds(seconds))
    columns = {name: pc.fill_null(table[name], "") for name in ("host", "device")} | {"shard": table["shard"]}
    measured = {"num": table["target_id"], "seconds": seconds, "begun": begun, "ended": ended}
    sums = [("num", "count"), ("seconds", "sum"), ("begun", "min"), ("ended", "max")]
    return pa.table(columns | measured).group_by(list(columns)).aggregate(sums)


def _add_paces(found: Statistics, paces: Sequence[pa.Table]) -> None:
    if not paces:
        return
    sums = [("num_count", "sum"), ("seconds_sum", "sum"), ("begun_min", "min"), ("ended_max", "max")]
    shards = pa.concat_tables(paces).group_by(["host", "device", "shard"]).aggregate(sums)
    # A batch's pictures are saved together, each with its share of the time, so only whole shards show when they began.
    begun = pc.subtract(shards["ended_max_max"], _microseconds(shards["seconds_sum_sum"]))
    shards = shards.append_column("begun", pc.min_element_wise(begun, shards["begun_min_min"]))
    sums = [("num_count_sum", "sum"), ("seconds_sum_sum", "sum"), ("begun", "min"), ("ended_max_max", "max")]
    for one in shards.group_by(["host", "device"]).aggregate(sums).to_pylist():
        measured = one["num_count_sum_sum"], one["seconds_sum_sum_sum"], one["begun_min"], one["ended_max_max_max"]
        found.devices.setdefault((one["host"], one["device"]), Pace()).add(*measured)
        found.overall.add(*measured)


def _microseconds(seconds: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.multiply(pc.cast(seconds, pa.float64()), 1e6).cast(pa.int64(), safe=False)


def _between(column: pa.ChunkedArray, least: float, most: float) -> pa.ChunkedArray:
    """`column` with null for what lies outside `least` to `most`, NaN included."""
    is_between = pc.and_(pc.greater_equal(column, least), pc.less_equal(column, most))
    return pc.if_else(is_between, column, pa.scalar(None, column.type))


def _add_reasons(reasons: dict[tuple[str, str], Reason], table: pa.Table) -> None:
    for row in table.select(["status", "reason", "target_id", "label"]).to_pylist():
        row["reason"] = row["reason"] and row["reason"][:MOST_CHARS]
        status, text = row.pop("status"), row["reason"] or "no reason given"
        common = pattern(text)
        reason = reasons.setdefault((status, common), Reason(status, text))
        reason.count += 1
        if text != reason.text:
            reason.text = common
        if len(reason.examples) < NUM_EXAMPLES:
            reason.examples.append(row)


def pattern(reason: str) -> str:
    """A reason without its own numbers and class, which is what reasons of one kind share."""
    text = re.sub(r"(?<=: ).+ is first$", "another is first", reason)
    return re.sub(r"(?<![\w.])\d+(\.\d+)?(e[+-]?\d+)?(?![\w.]*\w)", "N", text)


def _first(kept: pa.Table | None, more: pa.Table, order: str, num: int) -> pa.Table:
    table = more if kept is None else pa.concat_tables([kept, more])
    places = pc.sort_indices(table, [("activation", order), ("target_id", "ascending")])
    return table.take(places.slice(0, num)).combine_chunks()


def _histogram(layer: str, mode: str, activations: NDArray[np.float32]) -> Histogram:
    least, highest = min(0.0, float(activations.min())), float(activations.max())
    if highest <= least:
        highest = least + 1
    counts, _ = np.histogram(activations.astype(np.float64), NUM_BINS, (least, highest))
    num_silent = int((activations <= 0).sum())
    median = float(np.median(activations))
    return Histogram(layer, mode, len(activations), num_silent, median, least, highest, tuple(counts.tolist()))
