"""What the judgements of a run say in all: shares of pictures that the judge, and the network itself, put first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dgn.runs.index_file import Part
from dgn.runs.index_parts import open_part, read_groups
from dgn.runs.judgements import DISTORTION_NAMES, Judge, Judged, read_judged
from dgn.runs.query import Rows
from dgn.runs.run import Run
from dgn.targets import mode_rank

SHARES = {  # of a summary, and the number that each is a share of
    "judge_first": "num_classes", "judge_top5": "num_classes",
    **{f"{name}_first": "num_pictures" for name in ("saved", *DISTORTION_NAMES)},
}  # fmt: skip


def summaries(run: Run, rows: Rows) -> list[dict[str, Any]]:
    """For each judge, layer and mode: how many pictures were judged, and which shares of them are ranked first.

    Shares are in [0, 1]. `judge_first` and `judge_top5` are the judge's, of targets that are classes; None if there
    are none. `saved_first` and one for each distortion are the network's own. Only indexed judgements count.
    """
    counts: dict[tuple[str, str, str, str], Counter[str]] = {}
    for part in rows.index.parts if rows.index else ():
        if part.judged:
            file = open_part(run, part)
            own = read_groups(run, part, file, range(file.num_row_groups), ["layer", "mode", "rank"])
        for judged in part.judged:
            for counted in _counted(run, part, judged, own):
                key = (judged.by, judged.weights_sha256, counted.pop("mode"), counted.pop("layer"))
                counts.setdefault(key, Counter()).update({name.removesuffix("_sum"): n for name, n in counted.items()})
    if not counts:
        return []
    depth = {layer: n for n, layer in enumerate(rows.layers())}
    keys = sorted(counts, key=lambda key: (*key[:2], mode_rank(key[2]), depth[key[3]]))
    return [
        {
            "by": by, "by_weights_sha256": digest, "layer": layer, "mode": mode,
            "num_pictures": counts[by, digest, mode, layer]["num_pictures"],
            **_shares(counts[by, digest, mode, layer]),
        }
        for by, digest, mode, layer in keys
    ]  # fmt: skip


def _shares(counts: Counter[str]) -> dict[str, float | None]:
    return {name: counts[name] / counts[of] if counts[of] else None for name, of in SHARES.items()}


def _counted(run: Run, part: Part, judged: Judged, own: pa.Table) -> list[dict[str, Any]]:
    """Counts of a part by layer and mode; `own` has its rows' layer, mode and rank."""
    names = ["judge_rank", *(f"{name}_rank" for name in DISTORTION_NAMES)]
    found = read_judged(run, part.id, part.num_rows, judged, names)
    is_first = {f"{name.removesuffix('_rank')}_first": pc.equal(found[name], 1) for name in names}
    columns = {
        "num_pictures": pc.is_valid(found[names[1]]), "num_classes": pc.is_valid(found["judge_rank"]),
        "judge_top5": pc.less_equal(found["judge_rank"], 5), "saved_first": pc.equal(own["rank"], 1), **is_first,
    }  # fmt: skip
    sums = {name: pc.fill_null(column, False).cast(pa.int32()) for name, column in columns.items()}
    table = pa.table({"layer": own["layer"], "mode": own["mode"], **sums}).filter(columns["num_pictures"])
    return table.group_by(["layer", "mode"]).aggregate([(name, "sum") for name in sums]).to_pylist()


def judge_names(found: Sequence[dict[str, Any]]) -> list[str]:
    """The name of each summary's judge: its network, with eight hex digits of its weights if several share the name."""
    judges = [Judge(one["by"], one["by_weights_sha256"]) for one in found]
    num_of_name = Counter(judge.network for judge in set(judges))
    return [judge.folder if num_of_name[judge.network] > 1 else judge.network for judge in judges]
