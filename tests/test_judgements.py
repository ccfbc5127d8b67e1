"""Judgements stay with the index's rows; here they are of a random stream."""

import random
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import judgements
from cluster.index import read_index, update_index
from cluster.judgements import JUDGED_SCHEMA, Judge
from cluster.run import Run, metadata_key
from cluster.storage import open_store
from dgn.errors import StoreError
from tests.fake_runs import judge_at_random, write_fake_run
from tests.test_judge import ends_in_one_line, files_in


@pytest.fixture
def fake(tmp_path):
    """208 rows in 26 shards that nobody judged."""
    return write_fake_run(str(tmp_path / "fake"), seeds=2, targets=["filters:conv1_1", "classes:0-39"], shard_size=8)


def check_both(run, judges, is_whole=True):
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
            check_both(fake, judges)
    for what, number in waiting:
        judge_at_random(fake, number, stream, what)
    update_index(fake)
    index = check_both(fake, judges)
    assert index.is_whole
    assert [judged.num_rows for part in index.parts for judged in part.judged].count(0) == 0
    assert sum(judged.num_rows for part in index.parts for judged in part.judged) == 2 * 208
    before = files_in(folder)
    update_index(fake)
    assert files_in(folder) == before
    update_index(fake, rebuild=True)
    check_both(fake, judges)


def test_of_another_rendering_they_count_for_nothing(fake):
    stream, judge = random.Random(6), Judge("vgg11", "a" * 64)
    judge_at_random(fake, 3, stream, judge, attempt="ffffffff")
    judge_at_random(fake, 4, stream, judge)
    update_index(fake)
    [part] = check_both(fake, [judge]).parts
    assert part.judged[0].shards == [(4, 5)]
    index = read_index(fake)
    assert update_index(fake) == index
    judge_at_random(fake, 3, stream, judge, is_again=True)
    update_index(fake)
    [part] = check_both(fake, [judge]).parts
    assert part.judged[0].shards == [(3, 5)]


def test_old_ones_are_deleted_after_a_day(fake):
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


def test_judges_of_one_name_are_told_apart(fake, dgn):
    stream = random.Random(9)
    for judge in (Judge("vgg11", "a" * 64), Judge("vgg11", "b" * 64), Judge("vgg13", "c" * 64)):
        judge_at_random(fake, 0, stream, judge)
    update_index(fake)
    code, out, _ = dgn("judge", fake.store.url, "--summary")
    assert code == 0
    assert re.findall(r"vgg\S*", out) == ["vgg11-aaaaaaaa", "vgg11-bbbbbbbb", "vgg13"]


def test_layers_that_would_be_markup_are_text(fake, dgn):
    path = Path(fake.store.url) / metadata_key(0)
    table = pq.read_table(path)
    layers = pa.array(["[/red]"] * table.num_rows)
    pq.write_table(table.set_column(table.column_names.index("layer"), "layer", layers), path)
    judge_at_random(fake, 0, random.Random(9), Judge("vgg11", "a" * 64))
    update_index(fake)
    code, out, _ = dgn("judge", fake.store.url, "--summary")
    assert code == 0
    assert "[/red]" in out


def test_a_damaged_compacted_file_is_named(fake, dgn):
    stream, judge = random.Random(8), Judge("vgg11", "a" * 64)
    judge_at_random(fake, 0, stream, judge)
    [part] = update_index(fake).parts
    path = Path(fake.store.url) / "index" / part.id / part.judged[0].name
    pq.write_table(pq.read_table(path).slice(1), path)
    ends_in_one_line(dgn("judge", fake.store.url, "--summary"), 1, "has 207 rows for 208", "dgn index --rebuild")
    path.unlink()
    ends_in_one_line(dgn("judge", fake.store.url, "--summary"), 1, "it is gone", "dgn index --rebuild")
    assert dgn("index", fake.store.url, "--rebuild")[0] == 0
    assert dgn("judge", fake.store.url, "--summary")[0] == 0


def test_a_run_without_pictures(tmp_path, dgn):
    run = write_fake_run(str(tmp_path / "fake"), targets=["classes:0-7"], shard_size=8, has_pictures=False)
    (Path(run.store.url) / metadata_key(0)).unlink()
    with pytest.raises(StoreError):
        Run(open_store(str(tmp_path))).info()
    ends_in_one_line(dgn("judge", run.store.url, "--summary"), 2, "no judgements")
