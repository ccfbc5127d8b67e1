"""Other programs read the index as the documentation shows it, and find what dgn finds."""

import re
from pathlib import Path

import pyarrow as pa
import pytest

from dgn.runs.index import update_index
from dgn.runs.run import Run
from dgn.runs.stores import open_store
from tests.helpers.queried import best_first, write_queried
from tests.helpers.rows import every_row

ROOT = Path(__file__).parent.parent.parent
PAGES = [path for path in (ROOT / "docs" / "read-a-run.md", ROOT / "README.md") if path.exists()]
SNIPPETS = [code for path in PAGES for code in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)]
FILES = next(code for code in SNIPPETS if "index/current.json" in code)
PROGRAMS = {re.search(r"import (\w+)", code)[1]: code for code in SNIPPETS if re.search("^best = ", code, re.M)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose rows are all in its index."""
    folder = write_queried(tmp_path_factory.mktemp("queried") / "run", are_flat=True)
    update_index(Run(open_store(str(folder))))
    return folder


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_documented_queries_agree(program, folder):
    """Each asks for the ten best of fc8, untrained, and leaves them in `best`."""
    names = {}
    exec(FILES.replace("RUN", str(folder)) + PROGRAMS[program], names)
    best = names["best"]
    if not isinstance(best, pa.Table):
        best = pa.Table.from_pandas(best) if hasattr(best, "iloc") else best.to_arrow()
    rows = [row for row in every_row(folder) if (row["layer"], row["mode"]) == ("fc8", "untrained")]
    expected = [row["target_id"] for row in best_first(rows, "activation")]
    assert best["target_id"].to_pylist() == expected[:10]


def test_the_documentation_shows_four_programs():
    assert PROGRAMS.keys() == {"pyarrow", "duckdb", "pandas", "polars"}
