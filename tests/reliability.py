"""The table of docs/reliability.md: each test that injects a fault says what came of it.

DGN_RELIABILITY=build/faults.jsonl pytest ...    # notes a line per fault
python -m tests.reliability build/faults.jsonl   # prints the table
"""

from __future__ import annotations

import json
import os
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
    noticed_s: float
    mended_s: float
    lost: int
    twice: int
    test: str

    def __post_init__(self) -> None:
        assert 0 <= self.noticed_s <= self.mended_s

    @property
    def line(self) -> str:
        cells = (self.fault, self.injected, self.happened, f"{self.noticed_s:.1f} s", f"{self.mended_s:.1f} s")
        return "| " + " | ".join([*cells, str(self.lost), str(self.twice)]) + " |"


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
