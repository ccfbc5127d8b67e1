"""The table of docs/reliability.md: each test that injects a fault notes what came of it.

DGN_RELIABILITY=build/faults.jsonl pytest ...            # notes one line per fault
python -m tests.helpers.reliability build/faults.jsonl   # prints the table
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

HEADER = """| fault | injected | what happened | noticed after | made good after | lost | twice |
| --- | --- | --- | --- | --- | --- | --- |"""


@dataclass(frozen=True)
class Fault:
    """One row. Seconds run from the injection; `test` is the test that measured them."""

    fault: str
    injected: str
    happened: str
    noticed_s: float | None  # None: nothing says so, or there is nothing to notice
    fixed_s: float
    lost: int
    twice: int
    test: str

    def __post_init__(self) -> None:
        assert 0 <= (self.noticed_s or 0) <= self.fixed_s

    @property
    def line(self) -> str:
        cells = (self.fault, self.injected, self.happened, _seconds(self.noticed_s), _seconds(self.fixed_s))
        return "| " + " | ".join([*cells, str(self.lost), str(self.twice)]) + " |"


def lost_and_twice(verified: str) -> tuple[int, int]:
    """Targets, as `dgn verify` has counted them."""
    found = re.search(r"([\d,]+) targets? expected, ([\d,]+) found, ([\d,]+) duplicate or stray", verified)
    assert found, verified
    expected, whole, extra = (int(count.replace(",", "")) for count in found.groups())
    return expected - whole, extra


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def note(fault: Fault) -> None:
    """Appends the row to the file that DGN_RELIABILITY names, if it does."""
    if path := os.environ.get("DGN_RELIABILITY"):
        with Path(path).open("a") as file:
            file.write(json.dumps(asdict(fault)) + "\n")


if __name__ == "__main__":
    rows = {}
    for line in Path(sys.argv[1]).read_text().splitlines():
        row = Fault(**json.loads(line))
        rows[row.fault] = row  # the latest of each
    print(HEADER)
    for row in rows.values():
        print(row.line)
