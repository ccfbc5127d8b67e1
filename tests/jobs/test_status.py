"""`dgn status` and `dgn failed`: how far a run is, and what went wrong in it."""

import json
import shutil

from dgn.runs.run import Run
from tests.helpers.rows import edit_rows


def test_status(rendered, dgn):
    code, out, _ = dgn("status", rendered, "--json")
    content = json.loads(out)
    assert code == 0
    assert (content["pictures_done"], content["pictures"], content["is_whole"]) == (8, 8, True)
    assert sum(content["statuses"].values()) == 8
    assert dgn("status", rendered, "--watch")[1].count("8 of 8 pictures") == 1


def test_failed_lists_what_is_not_ok_and_what_is_missing(rendered, dgn, tmp_path):
    shutil.copytree(rendered, tmp_path / "run")
    edit_rows(tmp_path / "run", lambda row: row | {"status": "ok", "reason": None})
    code, out, _ = dgn("failed", tmp_path / "run")
    assert (code, out) == (0, "0 shards missing after 0 failed attempts, 0 pictures not ok\n")
    edit_rows(tmp_path / "run", lambda row: row | {"status": "dead", "reason": "silent"} if row["unit"] == 7 else None)
    (tmp_path / "run" / "metadata" / "000001.parquet").unlink()
    Run.at(str(tmp_path / "run")).note_failure(1, "0123abcd", "OSError: no\x1b luck", {})
    code, out, _ = dgn("failed", tmp_path / "run")
    first, second, last = out.splitlines()
    assert code == 0
    assert first.startswith("shard 000001 attempt 0123abcd ")
    assert first.endswith(r": OSError: no\x1b luck")
    assert second == "fc8-00007-untrained-s0: dead, silent"
    assert last == "1 shard missing after 1 failed attempt, 1 picture not ok"
