"""The photographs of `dgn examples` on a sheet: one more picture for each unit, after its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dgn.jobs.sheets.captions import EXAMPLES
from dgn.runs.examples import FOLDER, KINDS, Examples, sheet_key
from dgn.runs.run import Run


def with_examples(run: Run, table: pa.Table, groups: Sequence[Sequence[int]]) -> tuple[pa.Table, list[list[int]]]:
    """The table with a row for each unit's photographs, and the groups with its number at their end.

    Raises: DgnError if the run has no examples yet; RunDamaged.
    """
    lists = Examples.of(run).lists()
    has_photographs = set(lists.filter(pc.equal(lists["kind"], KINDS[0]))["subject"].to_pylist())
    rows, extended = list[dict[str, Any]](), list[list[int]]()
    for group in groups:
        [first] = table.slice(group[0], 1).to_pylist()
        subject = first["target_id"].rsplit("-", 2)[0]
        file_name = f"{FOLDER}/{sheet_key(subject)}" if subject in has_photographs else None
        extended.append([*group, table.num_rows + len(rows)])
        rows.append(
            {
                **first, "mode": EXAMPLES, "file_name": file_name, "status": "ok", "activation": None, "rank": None,
                "reason": "no photograph excites it",
            }
        )  # fmt: skip
    return pa.concat_tables([table, pa.Table.from_pylist(rows, table.schema)]), extended
