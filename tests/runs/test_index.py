"""The index holds every committed row once, sorted, with its thumbnail, however it grew; nobody sees half of one."""

import json
import random
import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dgn.errors import RunDamaged, StoreError
from dgn.runs import index as indexer
from dgn.runs.conditions import condition
from dgn.runs.index import forget_missing, update_index
from dgn.runs.index_file import read_index
from dgn.runs.index_parts import INDEX_SCHEMA, PAGE_ROWS
from dgn.runs.info import Extension
from dgn.runs.layout import INDEX_FILE, metadata_key
from dgn.runs.query import Rows
from dgn.runs.run import Run
from dgn.runs.stores import open_store
from tests.helpers.fake_runs import write_fake_run

TARGETS = ["filters:conv1_1", "classes:0-39"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """208 rows in 26 shards."""
    folder = tmp_path_factory.mktemp("fake") / "run"
    write_fake_run(str(folder), seeds=2, targets=TARGETS, shard_size=8)
    return folder


@pytest.fixture
def run(original, tmp_path):
    shutil.copytree(original, tmp_path / "run")
    return Run(open_store(str(tmp_path / "run")))


def files_of(run, folder):
    return sorted((Path(run.store.url) / folder).glob("*.parquet"))


def committed_rows(run):
    """Read from the shards, in the index's order by Python's own sort."""
    rows = [row for path in files_of(run, "metadata") for row in pq.read_table(path).to_pylist()]
    return sorted(rows, key=lambda row: (row["layer"], row["mode"], sort_key(row), row["target_id"]))


def sort_key(row):
    return (row["activation"] is None, -(row["activation"] or 0))


def check(run, index):
    """Every part holds its shards' rows, each with its thumbnail; all parts together hold every committed one once."""
    rows = {row["target_id"]: row for row in committed_rows(run)}
    seen = []
    for part in index.parts:
        table = pq.read_table(Path(run.store.url) / part.rows_key)
        assert table.schema.equals(INDEX_SCHEMA)
        found = table.to_pylist()
        thumbs = run.store.read(part.thumbs_key)
        in_file = pq.read_table(Path(run.store.url) / part.thumbs_key).to_pylist()
        assert [one["target_id"] for one in in_file] == [row["target_id"] for row in found]
        for row, one in zip(found, in_file, strict=True):
            expected = dict(rows[row["target_id"]])
            thumbnail = expected.pop("thumbnail") or b""
            start = row.pop("thumb_offset")
            assert thumbs[start : start + row.pop("thumb_bytes")] == one["thumbnail"] == thumbnail
            assert row == expected
        order = [(row["layer"], row["mode"], sort_key(row), row["target_id"]) for row in found]
        assert order == sorted(order)
        assert {row["shard"] for row in found} == set(part.shard_numbers())
        assert part.num_rows == len(found)
        assert sum(group.num_rows for group in part.groups) == part.num_rows
        seen += [row["target_id"] for row in found]
    assert sorted(seen) == sorted(rows)
    assert index.num_rows == len(rows)
    assert index == read_index(run)


@pytest.mark.parametrize("where", ["local", "s3"])
def test_rows_and_thumbnails_are_those_of_the_shards(original, run, where, request):
    if where == "s3":
        there = Run(open_store(f"s3://{request.getfixturevalue('bucket')}/run"))
        for path in original.rglob("*"):
            if path.is_file() and path.suffix != ".png":
                there.store.write(str(path.relative_to(original)), path.read_bytes())
        index = update_index(there)
        for key in there.store.list("index"):
            run.store.write(key, there.store.read(key))
        assert read_index(there) == index
    else:
        index = update_index(run)
    check(run, index)
    assert len(index.parts) == 1
    assert index.is_whole
    assert index.files == [index.parts[0].rows_key]


def test_readers_can_skip_pages(run):
    [part] = update_index(run).parts
    metadata = pq.ParquetFile(Path(run.store.url) / part.rows_key).metadata
    columns = [metadata.row_group(0).column(i) for i in range(metadata.num_columns)]
    assert all(column.has_column_index and column.has_offset_index for column in columns)
    assert [key.column_index for key in metadata.row_group(0).sorting_columns] == [
        INDEX_SCHEMA.names.index(name) for name in ("layer", "mode", "activation", "target_id")
    ]
    assert metadata.num_rows > PAGE_ROWS  # else there would be one page


def test_an_index_grows_shard_by_shard_in_any_order(run):
    metadata = files_of(run, "metadata")
    away = Path(run.store.url).parent / "away"
    away.mkdir()
    for path in metadata:
        path.rename(away / path.name)
    assert update_index(run).parts == []
    order = random.Random(1).sample(metadata, len(metadata))
    num_written, before = 0, set()
    for path in order:
        (away / path.name).rename(path)
        index = update_index(run)
        check(run, index)
        new = [part for part in index.parts if part.id not in before]
        num_written += sum(part.num_rows for part in new)
        before |= {part.id for part in new}
        assert len(index.parts) <= 4
    assert index.is_whole
    assert num_written <= 4 * index.num_rows  # all of 26 shards each time it would be 13 times


def test_nothing_new_writes_nothing(run):
    update_index(run)
    before = {path: path.stat().st_mtime_ns for path in Path(run.store.url).rglob("*") if path.is_file()}
    update_index(run)
    assert {path: path.stat().st_mtime_ns for path in Path(run.store.url).rglob("*") if path.is_file()} == before


def test_large_parts_are_not_made_again(run, monkeypatch):
    monkeypatch.setattr("dgn.runs.index.PART_ROWS", 32)  # four shards a part
    index = update_index(run)
    check(run, index)
    assert [part.shards for part in index.parts] == [[(at, min(at + 4, 26))] for at in range(0, 26, 4)]
    [*_, last] = files_of(run, "metadata")
    content = last.read_bytes()
    last.unlink()
    forget_missing(run)
    last.write_bytes(content)
    again = update_index(run)
    check(run, again)
    assert again.parts[:6] == index.parts[:6]


def test_a_writer_that_dies_leaves_the_old_index(run, monkeypatch):
    old = update_index(run)
    path = files_of(run, "metadata")[0]
    content = path.read_bytes()
    path.unlink()
    forget_missing(run)
    assert read_index(run).parts == []
    path.write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setattr(run.store, "write", lambda key, data: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            update_index(run)
    assert read_index(run).parts == []  # whole parts lie there, and nothing names them
    assert Rows(run).select().num_rows == old.num_rows
    check(run, update_index(run))


def test_indexers_at_the_same_time_leave_a_whole_index(run):
    indexers = [threading.Thread(target=update_index, args=(run,)) for _ in range(4)]
    for one in indexers:
        one.start()
    for one in indexers:
        one.join()
    check(run, read_index(run))


def render_again(run, shard):
    """What `dgn resume` does where a shard's file is gone: the index first, then other rows."""
    path = files_of(run, "metadata")[shard]
    table = pq.read_table(path)
    path.unlink()
    forget_missing(run)
    again = table.set_column(
        table.schema.get_field_index("attempt"), table.schema.field("attempt"), [["11111111"] * table.num_rows]
    )
    pq.write_table(again, path)


def test_a_shard_that_is_rendered_again_is_indexed_again(run):
    update_index(run)
    render_again(run, 3)
    check(run, update_index(run))


@pytest.mark.parametrize("is_indexed", [False, True])
def test_an_indexer_that_was_overtaken_starts_over(run, monkeypatch, is_indexed):
    """Shard 3 is rendered again between an indexer's reading and its writing."""
    if is_indexed:
        last = files_of(run, "metadata")[-1]
        kept = last.read_bytes()
        last.unlink()
        update_index(run)
        last.write_bytes(kept)
    build, overtakers = indexer.build_part, [render_again]

    def build_slowly(run, shards):
        part = build(run, shards)
        if overtakers:
            overtakers.pop()(run, 3)
        return part

    monkeypatch.setattr(indexer, "build_part", build_slowly)
    check(run, update_index(run))
    assert not overtakers


def test_an_index_that_cannot_be_read_does_not_stop_a_job(run, caplog):
    update_index(run)
    (Path(run.store.url) / INDEX_FILE).write_text("{bad")
    forget_missing(run)
    assert "is not JSON" in caplog.text
    assert read_index(run).parts == []
    check(run, update_index(run))


@pytest.mark.parametrize("name", ["rows.parquet", "thumbs.parquet"])
def test_a_part_whose_files_are_gone_is_made_again(run, name):
    [part] = update_index(run).parts
    (Path(run.store.url) / "index" / part.id / name).unlink()
    check(run, update_index(run))


def test_readers_have_a_day_however_old_a_part_is(run):
    index = update_index(run)
    folder = Path(run.store.url) / "index"
    old_id = "20260101T000000Z-00000000"
    (folder / index.parts[0].id).rename(folder / old_id)
    (folder / "current.json").write_text((folder / "current.json").read_text().replace(index.parts[0].id, old_id))
    reader = Rows(run)
    rebuilt = update_index(run, rebuild=True)
    assert reader.select().num_rows == index.num_rows
    assert update_index(run, rebuild=True).former.keys() == {old_id, rebuilt.parts[0].id}
    now = datetime.now(UTC).timestamp()
    content = json.loads((folder / "current.json").read_text())
    content["former"] = dict.fromkeys(content["former"], now - timedelta(days=1).total_seconds())
    (folder / "current.json").write_text(json.dumps(content))
    last = update_index(run, rebuild=True)
    assert last.former.keys() == {content["parts"][0]["id"]}
    # The first of them is old by its name as well; the other, made just now, might be one that is about to be named.
    assert {path.name for path in folder.iterdir()} - {"current.json"} == {
        *last.former, last.parts[0].id, rebuilt.parts[0].id
    }  # fmt: skip


def test_parts_without_a_name_go_after_a_day(run):
    index = update_index(run)
    folder = Path(run.store.url) / "index"
    for days, other in ((2, "old"), (0, "young")):
        made = datetime.now(UTC) - timedelta(days=days)
        shutil.copytree(folder / index.parts[0].id, folder / f"{made:%Y%m%dT%H%M%SZ}-{other:0>8}")
    (folder / "notes.txt").write_text("somebody's own")
    update_index(run, rebuild=True)
    names = {path.name.rpartition("-")[2] for path in folder.iterdir()}
    assert "00000old" not in names
    assert {"000young", "notes.txt", "current.json"} <= names


def with_part(content, **changes):
    return json.dumps({**content, "parts": [{**content["parts"][0], **changes}]})


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda content: "{", "is not JSON"),
        (lambda content: "[]", "has version None, expected 1"),
        (lambda content: json.dumps({**content, "version": 2}), "has version 2, expected 1"),
        (lambda content: json.dumps({**content, "num_rows": "many"}), "num_rows: Input should be a valid integer"),
        (lambda content: with_part(content, id="../../x"), "parts.0.id"),
        (lambda content: with_part(content, shards=[[0, 10**18]]), "expected ranges of shards in order"),
        (lambda content: with_part(content, shards=[[5, 3]]), "expected ranges of shards in order"),
        (lambda content: with_part(content, rows_bytes=10), "its footer would be larger than the file"),
        (lambda content: with_part(content, footer_bytes=100), "rows.parquet is not what was written"),
        (lambda content: with_part(content, id="20260101T000000Z-00000000"), "rows.parquet is not what was written"),
    ],
)
def test_an_edited_index_is_one_line(run, edit, says):
    update_index(run)
    path = Path(run.store.url) / INDEX_FILE
    path.write_text(edit(json.loads(path.read_text())))
    with pytest.raises(StoreError) as caught:
        Rows(run).select()
    assert isinstance(caught.value, RunDamaged) == ("version" not in says)
    assert says in str(caught.value)
    assert str(caught.value).endswith("dgn index --rebuild makes it again")
    assert "\n" not in str(caught.value)
    check(run, update_index(run, rebuild=True))


def test_damaged_rows_are_one_line(run):
    [part] = update_index(run).parts
    path = Path(run.store.url) / part.rows_key
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)
    with pytest.raises(RunDamaged, match=r"^.*rows\.parquet is not what was written: .*; dgn index --rebuild.*$"):
        Rows(run).select()


def rewrite_rows(run, change):
    """Another rows.parquet for the only part; current.json fits it."""
    [part] = update_index(run).parts
    path = Path(run.store.url) / part.rows_key
    pq.write_table(change(pq.read_table(path)), path, row_group_size=64)
    data = path.read_bytes()
    index = Path(run.store.url) / INDEX_FILE
    sizes = {"rows_bytes": len(data), "footer_bytes": int.from_bytes(data[-8:-4], "little") + 8}
    index.write_text(with_part(json.loads(index.read_text()), **sizes))


def test_columns_of_a_part_may_stand_in_another_order(run):
    """Versions of dgn write them in different orders."""
    update_index(run)
    asked = [condition("layer", "=", "fc8"), condition("rank", "<=", 2)]
    before, few = Rows(run).select(), Rows(run).select(asked, ["label", "top5", "activation"], "probability", 5)
    rewrite_rows(run, lambda table: table.select(sorted(table.column_names, reverse=True)))
    assert update_index(run).is_whole
    (Path(run.store.url) / "metadata").rename(Path(run.store.url) / "away")  # so that rows can only come from the part
    rows = Rows(run)
    assert rows.select().equals(before)
    assert rows.select(asked, ["label", "top5", "activation"], "probability", 5).equals(few)
    assert rows.dataset().to_table().num_rows == before.num_rows


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop_columns(["rank"]),
        lambda table: table.append_column("colour", pa.array(["red"] * table.num_rows)),
        lambda table: table.set_column(0, table.column_names[0], pa.array([1.5] * table.num_rows)),
    ],
)
def test_a_part_of_other_columns_is_not_what_was_written(run, change):
    rewrite_rows(run, change)
    with pytest.raises(RunDamaged, match="it has other columns"):
        Rows(run).select()


def test_rows_from_before_a_column_existed_have_null_in_it(run):
    for path in files_of(run, "metadata"):
        pq.write_table(pq.read_table(path).drop_columns(["others_sum"]), path)
    assert [table["others_sum"].null_count for table in run.tables([0])] == [8]
    update_index(run, rebuild=True)
    rows = Rows(run).select(columns=["target_id", "others_sum", "rank"])
    assert (rows.num_rows, rows["others_sum"].null_count) == (208, 208)
    assert rows["rank"].null_count < 208
    assert Rows(run).dataset().to_table(columns=["others_sum"])["others_sum"].null_count == 208


def test_an_index_of_another_run_is_not_believed(run, tmp_path):
    update_index(run)
    other = write_fake_run(str(tmp_path / "other"), targets=["classes:0-7"], shard_size=8, seed=5)
    shutil.copytree(Path(run.store.url) / "index", tmp_path / "other" / "index")
    assert Rows(other).select().num_rows == 8
    check(other, update_index(other))


def test_a_damaged_shard_stops_the_indexer(run):
    path = files_of(run, "metadata")[0]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StoreError, match=f"{metadata_key(0)} is not what was committed"):
        update_index(run)


def test_a_row_without_a_layer_stops_the_indexer(run):
    path = files_of(run, "metadata")[0]
    rows = pq.read_table(path)
    at = rows.schema.get_field_index("layer")
    pq.write_table(rows.set_column(at, rows.schema.field("layer"), pa.nulls(rows.num_rows, pa.string())), path)
    with pytest.raises(StoreError, match=f"{metadata_key(0)} is not what was committed: it has rows without a layer"):
        update_index(run)


def test_it_counts_targets_that_were_added_and_are_not_drawn_yet(run):
    before = update_index(run)
    run.extend(run.info(), Extension("", num_targets=8, num_shards=1))
    after = update_index(run)
    assert (after.parts, after.num_rows) == (before.parts, before.num_rows)
    assert (after.num_targets, after.num_shards) == (before.num_targets + 8, before.num_shards + 1)
    assert update_index(run) == after == read_index(run)
