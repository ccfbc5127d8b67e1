"""The lists of examples, merged from shards: against a plain sort, however photographs lie in shards."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dgn.errors import DgnError, RunDamaged
from dgn.runs.examples import COLUMNS, KINDS, SCHEMA, SHARD_SCHEMA, Done, Examples, Merger, as_lists
from dgn.runs.stores import open_store

NUM_PHOTOGRAPHS, NUM_SUBJECTS = 60, 4
NAMED = [{"subject": f"fc8-{s:05d}", "layer": "fc8", "unit": s, "label": f"class {s}"} for s in range(NUM_SUBJECTS)]


@pytest.fixture(scope="module")
def values():
    """(photographs, subjects): few different ones, so that some are equal."""
    values = np.random.default_rng(1).integers(0, 30, (NUM_PHOTOGRAPHS, NUM_SUBJECTS)).astype(np.float32)
    values[20:30] = values[:10]
    return values


def sha(number):
    """Photographs 20 to 29 are copies of 0 to 9."""
    return f"{1 + (number - 20 if 20 <= number < 30 else number):064x}"


def digests(numbers):
    return "".join(sha(number)[-16:] for number in numbers)


def shard_of(values, numbers):
    """A shard's table with its nine best of each subject, as a worker makes it."""
    excites = {number: [] for number in numbers}
    distinct = [number for number in numbers if sha(number) not in {sha(one) for one in numbers if one < number}]
    for subject in range(NUM_SUBJECTS):
        best = sorted(distinct, key=lambda number: (-values[number, subject], number))[:9]
        for number in best:
            value = float(values[number, subject])
            excites[number].append({"subject": subject, "kind": "strongest", "activation": value, "probability": 0.5})
            if number % 4 == subject:
                wrong = {"subject": subject, "kind": "wrong", "activation": None, "probability": value / 100}
                excites[number].append(wrong)
    rows = [
        {
            "number": number, "photograph": f"{number}.jpg", "sha256": sha(number), "thumbnail": b"%d" % number,
            "true_class": None, "attempt": "00000000", "excites": found,
        }
        for number, found in excites.items() if found
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, SHARD_SCHEMA)


@pytest.mark.parametrize("size", [7, 13, NUM_PHOTOGRAPHS])
def test_lists_are_those_of_a_plain_sort(size, values):
    merger = Merger()
    for at in range(0, NUM_PHOTOGRAPHS, size):
        numbers = range(at, min(at + size, NUM_PHOTOGRAPHS))
        merger.add(shard_of(values, numbers), digests(numbers))
    merged = merger.result()
    assert (merger.num_copies, merger.num_photographs) == (10, NUM_PHOTOGRAPHS)
    lists = as_lists(merged, NAMED)
    assert lists.schema == SCHEMA
    distinct = [number for number in range(NUM_PHOTOGRAPHS) if not 20 <= number < 30]
    for subject in range(NUM_SUBJECTS):
        rows = [row for row in lists.to_pylist() if row["unit"] == subject and row["kind"] == "strongest"]
        best = sorted(distinct, key=lambda number: (-values[number, subject], number))[:9]
        assert [row["photograph"] for row in rows] == [f"{number}.jpg" for number in best]
        assert [row["activation"] for row in rows] == [values[number, subject] for number in best]
        assert [row["place"] for row in rows] == list(range(1, 10))
        assert {row["label"] for row in rows} == {f"class {subject}"}
        wrong = [row for row in lists.to_pylist() if row["unit"] == subject and row["kind"] == "wrong"]
        probabilities = [row["probability"] for row in wrong]
        assert probabilities == sorted(probabilities, reverse=True)
        assert [row["place"] for row in wrong] == list(range(1, len(wrong) + 1))
    kept = merged.photographs
    assert set(kept["photograph"].to_pylist()) == set(lists["photograph"].to_pylist())
    assert kept["number"].to_pylist() == sorted(kept["number"].to_pylist())


def test_nothing_that_excites_anything():
    with pytest.raises(DgnError, match="no photograph excites any of the run's units"):
        Merger().result()


def test_files_are_read_by_others_and_damage_is_told(tmp_path, values):
    examples = Examples(open_store(str(tmp_path)))
    with pytest.raises(DgnError, match="has no examples yet: dgn examples RUN IMAGES makes them"):
        examples.lists()
    assert examples.done() is None
    merger = Merger()
    merger.add(shard_of(values, range(NUM_PHOTOGRAPHS)), digests(range(NUM_PHOTOGRAPHS)))
    lists = as_lists(merger.result(), NAMED)
    examples.write("examples.parquet", lists)
    done = Done(1, "photographs", "image", "", 60, 1, ("x.jpg: gone",), 10, 0, NUM_SUBJECTS, len(lists))
    examples.finish(done)
    assert examples.done() == done
    assert examples.lists().equals(lists)
    read = pq.read_table(tmp_path / "examples.parquet")
    assert read.column_names == [column.name for column in COLUMNS]
    assert json.loads(read.schema.metadata[b"dgn"]) == {"schema_version": 1}
    assert set(read["kind"].to_pylist()) == set(KINDS)
    (tmp_path / "done.json").write_text("{}")
    with pytest.raises(RunDamaged, match=r"done\.json is not what was written; delete the folder examples"):
        examples.done()
    (tmp_path / "examples.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunDamaged, match=r"examples\.parquet is not what was written"):
        examples.lists()


def test_shards_are_committed_once(tmp_path, values):
    examples = Examples(open_store(str(tmp_path)))
    rows = shard_of(values, range(9)).to_pylist()
    examples.commit(0, "a", rows, {"unreadable": ["a.jpg: broken"]})
    before = (tmp_path / "metadata" / "000000.parquet").read_bytes()
    examples.commit(0, "b", rows[:2], {"unreadable": []})
    assert (tmp_path / "metadata" / "000000.parquet").read_bytes() == before
    [(table, about)] = examples.shards(1)
    assert (table.to_pylist(), about["unreadable"]) == (rows, ["a.jpg: broken"])
    buffer = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}), buffer)
    (tmp_path / "metadata" / "000000.parquet").write_bytes(buffer.getvalue())
    with pytest.raises(RunDamaged, match="is not what was committed"):
        list(examples.shards(1))
