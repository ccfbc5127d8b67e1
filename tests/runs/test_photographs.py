"""People's folders of photographs: what counts, what is left out, and how a job over them is cut."""

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dgn.errors import DgnError, StoreError
from dgn.pictures.photographs import load_photograph
from dgn.runs import photographs
from dgn.runs.photographs import list_photographs, make_photograph_plan, photograph_store


def picture(colour, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, kind)
    return buffer.getvalue()


def read_shard(store, plan, index):
    return [(name, read()) for name, read in photographs.read_shard(store, plan, index)]


def listing(folder):
    return list_photographs(photograph_store(str(folder)))


def test_every_kind_of_picture_counts_and_the_rest_is_counted(tmp_path):
    kinds = {"a.JPG": "JPEG", "b.jfif": "JPEG", "c.tif": "TIFF", "d.tiff": "TIFF", "e.bmp": "BMP", "f.webp": "WEBP"}
    for name, kind in kinds.items():
        (tmp_path / name).write_bytes(picture("red", kind))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "g.png").write_bytes(picture("blue"))
    for name in ("._a.JPG", "deep/._g.png", "notes.txt", "list.txt", "README", "movie.mp4"):
        (tmp_path / name).write_bytes(b"\0")
    found = listing(tmp_path)
    assert found.photographs == tuple(sorted((*kinds, "deep/er/g.png")))
    assert found.left_out == {"._*": 2, ".txt": 2, "without an ending": 1, ".mp4": 1}
    assert found.remark == "2 ._*, 2 .txt, 1 .mp4, 1 without an ending"
    for name in kinds:
        assert (load_photograph((tmp_path / name).read_bytes())[..., 0] > 250).all()


def test_links_to_folders_and_files_are_followed_and_circles_end(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes(picture("red"))
    folder = tmp_path / "photographs"
    folder.mkdir()
    os.symlink(elsewhere, folder / "linked")
    os.symlink(elsewhere / "a.png", folder / "b.png")
    os.symlink(folder, folder / "round")
    os.symlink("self.png", folder / "self.png")
    os.symlink(elsewhere, folder / "once more")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "c.png").write_bytes(picture("red"))
    (folder / os.fsdecode(b"b\xff.png")).write_bytes(picture("red"))
    os.mkfifo(folder / "pipe.png")
    found = listing(folder)
    assert found.photographs == ("b.png", "linked/a.png"), "each folder once"
    assert found.left_out == {"not a file": 2, ".*": 1, "with a name that is not UTF-8": 1}
    store = photograph_store(str(folder))
    plan = make_photograph_plan(store, found, "image")
    assert {data for _, data in read_shard(store, plan, 0)} == {picture("red")}


def test_huggings_faces_metadata_beside_pictures_is_left_out(tmp_path):
    (tmp_path / "a.png").write_bytes(picture("red"))
    pq.write_table(pa.table({"file_name": ["a.png"]}), tmp_path / "metadata.parquet")
    found = listing(tmp_path)
    assert (found.photographs, found.tables, found.left_out) == (("a.png",), (), {".parquet": 1})
    pq.write_table(pa.table({"image": [picture("red")]}), tmp_path / "train.parquet")
    with pytest.raises(DgnError, match=r"holds 1 pictures and 2 \.parquet files: give a folder of one kind"):
        listing(tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing", "is not there: expected a folder of photographs"), ("file", "is a file: expected"),
        ("empty", "no pictures in"),
    ],
)  # fmt: skip
def test_what_is_no_folder_of_photographs(tmp_path, name, says):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    with pytest.raises((DgnError, StoreError), match=says):
        listing(tmp_path / name)


def test_files_are_cut_in_order_of_their_names(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "SHARD_PHOTOGRAPHS", 3)
    for n in range(7):
        (tmp_path / f"{n}.png").write_bytes(picture((n, 0, 0)))
    store = photograph_store(str(tmp_path))
    plan = make_photograph_plan(store, list_photographs(store), "image")
    assert (plan.num_shards, plan.num_targets, plan.what) == (3, 7, "photograph")
    assert [(plan.shard(i).first, len(plan.shard(i))) for i in range(3)] == [(0, 3), (3, 3), (6, 1)]
    assert [name for i in range(3) for name, _ in read_shard(store, plan, i)] == [f"{n}.png" for n in range(7)]
    (tmp_path / "6.png").unlink()
    assert list(read_shard(store, plan, 2)) == [("6.png", b"")], "gone since"
    again = make_photograph_plan(store, list_photographs(store), "image")
    assert again.sha256 != plan.sha256


@pytest.mark.parametrize("is_struct", [True, False])
def test_row_groups_of_parquet_files_are_cut(tmp_path, monkeypatch, is_struct):
    monkeypatch.setattr(photographs, "SHARD_PHOTOGRAPHS", 4)
    pictures = [picture((n, 0, 0)) for n in range(11)]
    for name, some in (("a", pictures[:7]), ("b", pictures[7:])):
        column = [{"bytes": data, "path": None} for data in some] if is_struct else some
        pq.write_table(
            pa.table({"photo": column, "label": range(len(some))}), tmp_path / f"{name}.parquet", row_group_size=2
        )
    store = photograph_store(str(tmp_path))
    plan = make_photograph_plan(store, list_photographs(store), "photo")
    assert [(shard.first, len(shard)) for shard in plan.shards] == [(0, 4), (4, 3), (7, 4)]
    found = [one for i in range(plan.num_shards) for one in read_shard(store, plan, i)]
    assert [data for _, data in found] == pictures
    assert [name for name, _ in found] == [f"a.parquet row {n}" for n in range(7)] + [
        f"b.parquet row {n}" for n in range(4)
    ]
    with pytest.raises(DgnError, match=r"has no column 'image': give --column, one of photo, label"):
        make_photograph_plan(store, list_photographs(store), "image")
    with pytest.raises(DgnError, match=r"column 'label' of .* holds int64: expected the bytes of picture files"):
        make_photograph_plan(store, list_photographs(store), "label")
    (tmp_path / "c.parquet").write_bytes(b"no table")
    with pytest.raises(DgnError, match=r"c\.parquet is not a Parquet file"):
        make_photograph_plan(store, list_photographs(store), "photo")


def test_photographs_in_a_bucket(bucket, monkeypatch):
    monkeypatch.setattr(photographs, "SHARD_PHOTOGRAPHS", 2)
    from dgn.runs.stores import open_store

    there = open_store(f"s3://{bucket}/photographs")
    for n in range(3):
        there.write(f"{n}.png", picture((n, 0, 0)))
    store = photograph_store(f"s3://{bucket}/photographs")
    plan = make_photograph_plan(store, list_photographs(store), "image")
    assert [data for i in range(2) for _, data in read_shard(store, plan, i)] == [picture((n, 0, 0)) for n in range(3)]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [picture("red")] * 3}), buffer, row_group_size=2)
    there = open_store(f"s3://{bucket}/tables")
    there.write("a.parquet", buffer.getvalue())
    store = photograph_store(f"s3://{bucket}/tables")
    plan = make_photograph_plan(store, list_photographs(store), "image")
    assert [data for i in range(plan.num_shards) for _, data in read_shard(store, plan, i)] == [picture("red")] * 3


def test_squares_of_another_side():
    square = load_photograph(picture("red"), 64)
    assert square.shape == (64, 64, 3)
    assert square.dtype == np.uint8
