"""Judgements stay with the index's rows, however it grows; here they are random numbers."""

import random
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dgn.errors import RunDamaged
from dgn.runs import judgements
from dgn.runs.index import update_index
from dgn.runs.index_file import read_index
from dgn.runs.judgements import JUDGED_SCHEMA, Judge
from dgn.runs.query import Rows
from dgn.runs.summaries import summaries
from tests.helpers.fake_runs import judge_at_random, write_fake_run
from tests.helpers.rows import times


@pytest.fixture
def fake(tmp_path):
    """208 rows in 26 shards that nobody judged."""
    return write_fake_run(str(tmp_path / "fake"), seeds=2, targets=["filters:conv1_1", "classes:0-39"], shard_size=8)


def check_judged(run, judges):
    """Every part holds every judge's judgements of its rows, and nothing else."""
    folder = Path(run.store.url)
    index = read_index(run)
    for part in index.parts:
        rows = pq.read_table(folder / part.rows_key).to_pylist()
        expected = {}
        for judge in judges:
            files = [folder / judgements.judgements_key(judge.folder, shard) for shard in part.shard_numbers()]
            found = [row for path in files if path.exists() for row in pq.read_table(path).to_pylist()]
            right = {row["target_id"]: row["attempt"] for row in rows}
            of_judge = {r["target_id"]: r for r in found if right[r["target_id"]] == r["attempt"]}
            if of_judge:
                expected[judge] = of_judge
        assert {judged.judge for judged in part.judged} == expected.keys()
        for judged in part.judged:
            beside = pq.read_table(folder / "index" / part.id / judged.name).to_pylist()
            of_judge = expected[judged.judge]
            assert judged.num_rows == len(of_judge)
            assert judged.bytes == (folder / "index" / part.id / judged.name).stat().st_size
            assert judged.shard_numbers() == {row["shard"] for row in of_judge.values()}
            for row, one in zip(rows, beside, strict=True):
                expected_row = of_judge.get(row["target_id"], dict.fromkeys(JUDGED_SCHEMA.names))
                assert one == {name: expected_row[name] for name in JUDGED_SCHEMA.names}
    return index


def test_judgements_stay_with_their_rows_however_the_index_grows(fake):
    folder = Path(fake.store.url)
    stream = random.Random(5)
    judges = [Judge("vgg11", "a" * 64), Judge("mobilenet_v2", "b" * 64)]
    away = sorted((folder / "metadata").iterdir())
    for path in away:
        path.rename(path.with_suffix(".away"))
    steps = [("shard", number) for number in range(26)] + [(judge, number) for judge in judges for number in range(26)]
    stream.shuffle(steps)
    waiting = []
    for n, (what, number) in enumerate(steps):
        if what == "shard":
            away[number].with_suffix(".away").rename(away[number])
        elif away[number].exists():
            judge_at_random(fake, number, stream, what)
        else:
            waiting.append((what, number))
        if n % 4 == 0:
            update_index(fake)
            check_judged(fake, judges)
    for what, number in waiting:
        judge_at_random(fake, number, stream, what)
    update_index(fake)
    index = check_judged(fake, judges)
    assert index.is_whole
    assert [judged.num_rows for part in index.parts for judged in part.judged].count(0) == 0
    assert sum(judged.num_rows for part in index.parts for judged in part.judged) == 2 * 208
    before = times(folder)
    update_index(fake)
    assert times(folder) == before
    update_index(fake, rebuild=True)
    check_judged(fake, judges)


def test_judgements_of_another_rendering_do_not_count(fake):
    stream, judge = random.Random(6), Judge("vgg11", "a" * 64)
    judge_at_random(fake, 3, stream, judge, attempt="ffffffff")
    judge_at_random(fake, 4, stream, judge)
    update_index(fake)
    [part] = check_judged(fake, [judge]).parts
    assert part.judged[0].shards == [(4, 5)]
    index = read_index(fake)
    assert update_index(fake) == index
    judge_at_random(fake, 3, stream, judge, is_again=True)
    update_index(fake)
    [part] = check_judged(fake, [judge]).parts
    assert part.judged[0].shards == [(3, 5)]


def test_old_files_are_deleted_after_a_day(fake):
    stream, judge = random.Random(7), Judge("vgg11", "a" * 64)
    folder = Path(fake.store.url)
    judge_at_random(fake, 0, stream, judge)
    [part] = update_index(fake).parts
    first = folder / "index" / part.id / part.judged[0].name
    aged = first.with_name(f"judged-vgg11-{'a' * 8}-20200101T000000Z-00000000.parquet")
    shutil.copy(first, aged)
    judge_at_random(fake, 1, stream, judge)
    [again] = update_index(fake).parts
    assert again.id == part.id
    assert again.judged[0].name != first.name
    assert (first.exists(), aged.exists()) == (True, False)  # somebody may still be reading the first
    (folder / judgements.judgements_key(judge.folder, 0)).unlink()
    (folder / judgements.judgements_key(judge.folder, 1)).unlink()
    assert update_index(fake).parts[0].judged == []


def test_a_damaged_compacted_file_is_named(fake):
    stream, judge = random.Random(8), Judge("vgg11", "a" * 64)
    judge_at_random(fake, 0, stream, judge)
    [part] = update_index(fake).parts
    path = Path(fake.store.url) / "index" / part.id / part.judged[0].name
    pq.write_table(pq.read_table(path).slice(1), path)
    for says in ("it has 207 rows for 208", "it is gone"):
        with pytest.raises(RunDamaged, match=f"{path.name} is not what was written: {says}; dgn index --rebuild"):
            summaries(fake, Rows(fake))
        path.unlink(missing_ok=True)
    update_index(fake, rebuild=True)
    [one] = summaries(fake, Rows(fake))
    assert one["num_pictures"] == 8
