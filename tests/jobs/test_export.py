"""What `dgn export` writes, read again by others: pyarrow, Pillow, tarfile and the system's tar."""

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile

import pyarrow.parquet as pq
import pytest
import webdataset
import yaml
from PIL import Image

from dgn.jobs.exports.hf import _size_category
from dgn.runs.index import update_index
from dgn.runs.run import Run
from dgn.runs.schema import QUERY_COLUMNS, SCHEMA
from dgn.runs.stores import open_store
from tests.helpers.fake_runs import write_fake_run
from tests.helpers.queried import best_first
from tests.helpers.rows import contents, edit_rows
from tests.helpers.rows import every_row as unsorted_rows

PACK_BYTES = 2 * 2**20
PNG_BYTES = 110_000  # of the fake runs' pictures, at most


def every_row(folder):
    """Sorted as the index is."""
    rows = best_first(unsorted_rows(folder), "activation")
    return sorted(rows, key=lambda row: (row["layer"], row["mode"]))


def write_run(folder):
    """140 rows in three groups: conv1_1, and fc8 in both modes. Not indexed. Class 5 has no picture."""
    write_fake_run(str(folder), seeds=2, targets=["filters:conv1_1:0-29", "classes:0-39"], shard_size=16)
    edit_rows(folder, lambda row: {**row, "mode": "pretrained"} if row["seed"] and row["label"] else None)
    none = dict.fromkeys(("activation", "rank", "file_name", "sha256", "bytes", "width", "height", "thumbnail"))
    edit_rows(folder, lambda row: row | none | {"status": "nonfinite"} if row["label"] and row["unit"] == 5 else None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fake") / "run"
    write_run(folder)
    return folder


@pytest.fixture
def own(folder, tmp_path):
    """One to change."""
    shutil.copytree(folder, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch):
    monkeypatch.setattr("dgn.jobs.exports.chosen.PACK_BYTES", PACK_BYTES)


def without_thumbnail(rows):
    return [{name: value for name, value in row.items() if name != "thumbnail"} for row in rows]


def test_hf_holds_every_row_with_its_picture(folder, dgn, tmp_path):
    code, out, err = dgn("export", folder, tmp_path / "hf", "--format", "hf")
    rows = every_row(folder)
    num_pictures = sum(row["file_name"] is not None for row in rows)
    assert (code, err) == (0, "")
    assert out.startswith(f"{num_pictures} pictures, 140 rows in ")
    names = sorted(path.name for path in (tmp_path / "hf" / "data").iterdir())
    assert len(names) > 4
    assert names == [f"train-{n:05d}-of-{len(names):05d}.parquet" for n in range(len(names))]
    found = []
    for name in names:
        path = tmp_path / "hf" / "data" / name
        assert path.stat().st_size <= PACK_BYTES + PNG_BYTES
        found += pq.read_table(path).to_pylist()
        schema = pq.read_schema(path)
        assert schema.names == ["image", *QUERY_COLUMNS]
        assert [schema.field(name).type for name in QUERY_COLUMNS] == [
            SCHEMA.field(name).type for name in QUERY_COLUMNS
        ]
        assert str(schema.field("image").type) == "struct<bytes: binary, path: string>"
        assert json.loads(schema.metadata[b"huggingface"]) == {"info": {"features": {"image": {"_type": "Image"}}}}
        assert json.loads(schema.metadata[b"dgn"])["fingerprint"]["discriminator"] == "vgg16"
    images = [row.pop("image") for row in found]
    assert found == without_thumbnail(rows)
    for image, row in zip(images, found, strict=True):
        if row["status"] == "nonfinite":
            assert image is None
            continue
        assert hashlib.sha256(image["bytes"]).hexdigest() == row["sha256"]
        assert image["path"] == f"{row['target_id']}.png"
    with Image.open(io.BytesIO(images[0]["bytes"])) as picture:
        assert (picture.format, picture.size, picture.mode) == ("PNG", (224, 224), "RGB")


def test_the_card(folder, dgn, tmp_path):
    assert dgn("export", folder, tmp_path / "hf", "--format", "hf", "--where", "seed=0")[0] == 0
    _, header, text = (tmp_path / "hf" / "README.md").read_text().split("---\n", 2)
    content = yaml.safe_load(header)
    assert content["size_categories"] == ["n<1K"]
    [config] = content["configs"]
    [files] = config["data_files"]
    assert (config["config_name"], files["split"]) == ("default", "train")
    assert sorted((tmp_path / "hf").glob(files["path"])) == sorted((tmp_path / "hf" / "data").iterdir())
    assert "What `vgg16` has learned" in text
    assert "70 rows of the run's 140 (seed=0)." in text
    assert re.search(r"high\s+`activation` alone proves little", text)
    rows = [row for row in every_row(folder) if row["seed"] == 0]
    for layer, mode in (("conv1_1", "untrained"), ("fc8", "untrained")):
        counts = [
            sum((row["layer"], row["mode"], row["status"]) == (layer, mode, status) for row in rows)
            for status in ("ok", "suppressed", "not_converged", "dead", "nonfinite")
        ]
        assert f"| `{layer}` | `{mode}` | {sum(counts)} | {' | '.join(map(str, counts))} |" in text


def test_sizes_as_the_hub_calls_them():
    called = {n: _size_category(n) for n in (1, 999, 1000, 9_999, 10_000, 6_224_000, 10**9)}
    assert called == {
        1: "n<1K", 999: "n<1K", 1000: "1K<n<10K", 9_999: "1K<n<10K", 10_000: "10K<n<100K", 6_224_000: "1M<n<10M",
        10**9: "1B<n<10B",
    }  # fmt: skip


def test_one_range_of_a_tar_pack_is_one_picture(folder, dgn, tmp_path):
    out = tmp_path / "tar"
    assert dgn("export", folder, out, "--format", "tar")[0] == 0
    packs = sorted(out.glob("pack-*.tar"))
    assert [path.name for path in packs] == [f"pack-{n:05d}.tar" for n in range(len(packs))]
    assert len(packs) > 4
    index = pq.read_table(out / "index.parquet")
    assert index.column_names == ["pack", "member", "offset", "length", *QUERY_COLUMNS]
    rows = index.to_pylist()
    assert [{name: row[name] for name in QUERY_COLUMNS} for row in rows] == without_thumbnail(every_row(folder))
    listed = {}
    for path in packs:
        assert path.stat().st_size <= PACK_BYTES + PNG_BYTES + tarfile.RECORDSIZE
        assert path.stat().st_size % tarfile.RECORDSIZE == 0
        with tarfile.open(path) as pack:
            for member in pack:
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                listed[path.name, member.name] = member.offset_data, member.size
        ended = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True)
        assert ended.stderr == ""
        assert ended.stdout.split() == [name for pack, name in listed if pack == path.name]
    expected = {}
    for row in rows:
        if row["file_name"] is None:
            assert row["pack"] is row["member"] is row["offset"] is row["length"] is None
            continue
        with (out / row["pack"]).open("rb") as pack:
            pack.seek(row["offset"])
            png = pack.read(row["length"])
        assert hashlib.sha256(png).hexdigest() == row["sha256"]
        assert png == (folder / row["file_name"]).read_bytes()
        assert row["member"] == f"{row['target_id']}.png"
        expected[row["pack"], row["member"]] = row["offset"], row["length"]
    assert list(listed.items()) == list(expected.items())
    subprocess.run(["tar", "-xf", packs[-1], "-C", tmp_path], check=True)
    last = next(row for row in reversed(rows) if row["pack"])
    assert (tmp_path / f"{last['target_id']}.png").read_bytes() == (folder / last["file_name"]).read_bytes()


def test_webdataset_reads_a_sample_per_picture_of_a_layer_with_dots(own, dgn, tmp_path):
    edit_rows(own, lambda row: {**row, "target_id": f"features.1.{row['target_id']}"})
    rows = [row for row in every_row(own) if row["file_name"]]
    assert dgn("export", own, tmp_path / "tar", "--format", "tar")[0] == 0
    packs = sorted(str(path) for path in (tmp_path / "tar").glob("pack-*.tar"))
    samples = {sample["__key__"]: sample["png"] for sample in webdataset.WebDataset(packs, shardshuffle=False)}
    index = pq.read_table(tmp_path / "tar" / "index.parquet").to_pylist()
    keys = {row["target_id"]: row["member"].removesuffix(".png") for row in index if row["member"]}
    assert len(samples) == len(rows) > 8
    for row in rows:
        assert hashlib.sha256(samples[keys[row["target_id"]]]).hexdigest() == row["sha256"]


def test_long_target_ids_are_read_by_tar(own, dgn, tmp_path):
    """The longest that there can be: more than the hundred bytes of the old format."""
    stem = "x" * 99
    edit_rows(own, lambda row: {**row, "target_id": f"{stem}{row['target_id']}"})
    assert dgn("export", own, tmp_path / "tar", "--format", "tar")[0] == 0
    first = tmp_path / "tar" / "pack-00000.tar"
    names = subprocess.run(["tar", "-tf", first], capture_output=True, text=True, check=True).stdout.split()
    assert all(re.fullmatch(rf"{stem}conv1_1-\d{{5}}-untrained-s[01]\.png", name) for name in names)
    index = pq.read_table(tmp_path / "tar" / "index.parquet").to_pylist()
    row = index[0]
    data = first.read_bytes()[row["offset"] : row["offset"] + row["length"]]
    assert hashlib.sha256(data).hexdigest() == row["sha256"]


@pytest.mark.parametrize("form", ["hf", "tar"])
def test_the_same_rows_give_the_same_bytes(form, own, dgn, tmp_path):
    """Not indexed, half indexed, all indexed."""
    exported = []
    away = sorted((own / "metadata").iterdir())[::2]
    for step in ("none", "half", "all"):
        if step == "half":
            for path in away:
                path.rename(path.with_suffix(".away"))
            update_index(Run(open_store(str(own))))
            for path in away:
                path.with_suffix(".away").rename(path)
        elif step == "all":
            update_index(Run(open_store(str(own))))
        assert dgn("export", own, tmp_path / step, "--format", form)[0] == 0
        exported.append(contents(tmp_path / step))
    assert exported[0] == exported[1] == exported[2]


def test_conditions(folder, dgn, tmp_path):
    line = ("export", folder, tmp_path / "tar", "--format", "tar", "--where", "layer=fc8", "--where", "status=ok")
    assert dgn(*line)[0] == 0
    rows = pq.read_table(tmp_path / "tar" / "index.parquet", columns=["target_id"]).to_pylist()
    expected = [row["target_id"] for row in every_row(folder) if (row["layer"], row["status"]) == ("fc8", "ok")]
    assert [row["target_id"] for row in rows] == expected
    for where, says in (
        ("layer=fc9", "has no rows that satisfy --where yet"),
        ("colour=red", "unknown column"),
        ("x", "not a condition"),
    ):
        code, _, err = dgn("export", folder, tmp_path / "none", "--format", "hf", "--where", where)
        assert (code, err.count("\n")) == (2, 1)
        assert says in err
        assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("form", ["hf", "tar"])
def test_a_picture_that_is_not_its_rows_ends_it(form, own, dgn, tmp_path):
    """The last row's: all packs but one are written by then, and none is left behind."""
    last = [row for row in every_row(own) if row["file_name"]][-1]
    broken = {
        "sha256": ({"sha256": "0" * 64}, "have another sha256"),
        "bytes": ({"bytes": last["bytes"] + 1}, "bytes"),
        "missing": ({"file_name": "images/none.png"}, "images/none.png is missing"),
        "outside": ({"file_name": "../outside.png"}, "leads out of the run"),
        "no hash": ({"sha256": None}, "have another sha256"),
    }
    for changes, says in broken.values():
        edit_rows(own, lambda row, changes=changes: row | changes if row["target_id"] == last["target_id"] else None)
        code, out, err = dgn("export", own, tmp_path / "out", "--format", form)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert says in err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
        edit_rows(own, lambda row: last if row["target_id"] == last["target_id"] else None)
    (tmp_path / "mine").mkdir()
    edit_rows(own, lambda row: {**row, "sha256": "0" * 64} if row["target_id"] == last["target_id"] else None)
    assert dgn("export", own, tmp_path / "mine", "--format", form)[0] == 1
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("name", ["../up", "/root", "a/b", ".hidden", "a\nb", "ü", ""])
def test_a_target_id_that_leads_elsewhere_is_not_a_name_in_a_tar(name, own, dgn, tmp_path):
    last = [row for row in every_row(own) if row["file_name"]][-1]["target_id"]
    edit_rows(own, lambda row: {**row, "target_id": name} if row["target_id"] == last else None)
    code, _, err = dgn("export", own, tmp_path / "tar", "--format", "tar")
    assert (code, err.count("\n")) == (2, 1)
    assert "is not a file name" in err
    assert not (tmp_path / "tar").exists()


def test_edited_rows_are_one_line(own, dgn, tmp_path):
    edit_rows(own, lambda row: {**row, "layer": None})
    code, _, err = dgn("export", own, tmp_path / "out", "--format", "hf")
    assert (code, err.count("\n")) == (1, 1)
    assert "rows without a layer" in err


def test_nothing_is_written_over(folder, dgn, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").write_text("dear")
    (tmp_path / "file").touch()
    for out, says in (
        ("used", "is not empty, it holds letter.txt"),
        ("file", "or an empty folder for the export"),
        ("", "is empty"),
    ):
        code, _, err = dgn("export", folder, tmp_path / out if out else "", "--format", "tar")
        assert (code, err.count("\n")) == (2, 1)
        assert says in err
    assert sorted(contents(tmp_path)) == ["file", "used/letter.txt"]
    for line in (("export", folder, tmp_path / "x"), ("export", folder, tmp_path / "x", "--format", "zip")):
        assert dgn(*line)[0] == 2
    assert dgn("export", tmp_path / "nowhere", tmp_path / "x", "--format", "hf")[0] == 2
    assert not (tmp_path / "x").exists()


def test_from_s3_to_s3(folder, bucket, dgn, tmp_path):
    store = open_store(f"s3://{bucket}/run")
    for key, data in contents(folder).items():
        store.write(key, data)
    out = f"s3://{bucket}/packs"
    code, said, err = dgn("export", store.url, out, "--format", "tar")
    assert (code, err) == (0, "")
    assert said.endswith(f"packs: {out}\n")
    exported = open_store(out)
    index = pq.read_table(io.BytesIO(exported.read("index.parquet"))).to_pylist()
    for row in [row for row in index if row["pack"]][::9]:
        png = exported.read_range(row["pack"], row["offset"], row["offset"] + row["length"])
        assert hashlib.sha256(png).hexdigest() == row["sha256"]
    assert dgn("export", folder, tmp_path / "local", "--format", "tar")[0] == 0
    assert {key: exported.read(key) for key in sorted(exported.list(""))} == contents(tmp_path / "local")
    code, _, err = dgn("export", store.url, out, "--format", "hf")
    assert (code, err.count("\n")) == (2, 1)
    assert "is not empty" in err


MEASURED = """
import sys, tracemalloc
from dgn.jobs import cli
from dgn.jobs.exports import chosen
chosen.PACK_BYTES, sys.argv = int(sys.argv[1]), ["dgn", *sys.argv[2:]]
cli.build_app("export")  # imports what it needs
tracemalloc.start()
try:
    cli.main()
except SystemExit as end:
    assert not end.code
print(tracemalloc.get_traced_memory()[1])
"""


def test_memory_is_that_of_a_pack(tmp_path):
    """60 MB of pictures in packs of 2. Twice a hundred pictures are in memory, 20 MB.

    In processes of their own: in this one, a table of the interpreter may happen to grow by 8 MB meanwhile.
    """
    write_fake_run(str(tmp_path / "run"), seeds=10, targets=["classes:0-59"], shard_size=50)
    for form in ("hf", "tar"):
        command = ["export", tmp_path / "run", tmp_path / form, "--format", form]
        line = [sys.executable, "-c", MEASURED, str(PACK_BYTES), *map(str, command)]
        peak = int(subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()[-1])
        assert sum(len(data) for data in contents(tmp_path / form).values()) > 55e6
        assert peak < 28e6
