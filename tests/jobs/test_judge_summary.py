"""`dgn judge --summary`, of judgements that are random numbers."""

import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dgn.runs.index import update_index
from dgn.runs.judgements import Judge
from dgn.runs.layout import metadata_key
from tests.helpers.fake_runs import judge_at_random, write_fake_run
from tests.helpers.rows import assert_one_line


@pytest.fixture
def run(tmp_path):
    """Eight filters in a shard that nobody judged."""
    return write_fake_run(str(tmp_path / "run"), targets=["filters:conv1_1:0-7"], shard_size=8, has_pictures=False)


def test_judges_of_one_network_stay_apart(run, dgn):
    stream = random.Random(9)
    for judge in (Judge("vgg11", "a" * 64), Judge("vgg11", "b" * 64), Judge("vgg13", "c" * 64)):
        judge_at_random(run, 0, stream, judge)
    update_index(run)
    code, out, _ = dgn("judge", run.store.url, "--summary")
    assert code == 0
    assert re.findall(r"vgg\S*", out) == ["vgg11-aaaaaaaa", "vgg11-bbbbbbbb", "vgg13"]


def test_a_layer_that_looks_like_markup_is_text(run, dgn):
    path = Path(run.store.url) / metadata_key(0)
    table = pq.read_table(path)
    layers = pa.array(["[/red]"] * table.num_rows)
    pq.write_table(table.set_column(table.column_names.index("layer"), "layer", layers), path)
    judge_at_random(run, 0, random.Random(9), Judge("vgg11", "a" * 64))
    update_index(run)
    code, out, _ = dgn("judge", run.store.url, "--summary")
    assert code == 0
    assert "[/red]" in out


def test_without_judgements_there_is_nothing_to_sum_up(run, dgn):
    assert_one_line(
        dgn("judge", run.store.url, "--summary"), 2, "has no judgements yet: make them with dgn judge RUN --by NETWORK"
    )
    (Path(run.store.url) / metadata_key(0)).unlink()
    assert_one_line(
        dgn("judge", run.store.url, "--summary"), 2, "has no judgements yet: make them with dgn judge RUN --by NETWORK"
    )
