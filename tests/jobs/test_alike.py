"""`dgn alike` and `dgn query --like`: against cosines computed from the run's own files, one picture at a time."""

import csv
import hashlib
import io
import json
import shutil

import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import dgn as api
from dgn.pictures import likeness
from dgn.pictures.scoring import read_pictures
from dgn.runs.alike import EMBEDDING_SCHEMA, SCHEMA, Alike, as_halves, write_alike
from tests.helpers.fake_runs import write_fake_run
from tests.helpers.rows import assert_one_line, edit_rows, every_row, times

ALIKE = ("--by", "vgg16-mini", "--no-map")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Ten classes and six filters, two pictures each, in eight shards. One has no picture."""
    from dgn.jobs.alike import command

    folder = tmp_path_factory.mktemp("alike") / "run"
    write_fake_run(str(folder), targets=["classes:0-9", "filters:conv5_1:0-5"], seeds=2, shard_size=4)
    command(run=str(folder), by=ALIKE[1], has_map=False)
    return folder


@pytest.fixture(scope="module")
def current(compared):
    return json.loads((compared / "alike" / "current.json").read_text())


@pytest.fixture(scope="module")
def rows(compared):
    """Of alike.parquet, by target_id, with the picture's features."""
    return [row for row in every_row(compared) if row["file_name"]]


@pytest.fixture(scope="module")
def cosines(compared, rows, mini):
    """Of all channels, by two target_ids."""
    pngs = [(compared / row["file_name"]).read_bytes() for row in rows]
    features = np.concatenate([likeness.features(read_pictures([png], 224), mini) for png in pngs])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    names = [row["target_id"] for row in rows]
    assert unit.shape[1] <= 256, "so nothing is lost to fewer values"
    return {(a, b): float(unit[i] @ unit[k]) for i, a in enumerate(names) for k, b in enumerate(names)}


def of_unit(target_id):
    return target_id.rpartition("-s")[0]


def test_every_picture_has_its_row(compared, current, rows, cosines):
    table = pq.read_table(compared / current["table"])
    assert table.schema.remove_metadata() == SCHEMA
    found = {row["target_id"]: row for row in table.to_pylist()}
    names = table["target_id"].to_pylist()
    assert found.keys() == {row["target_id"] for row in rows}
    assert current["num_rows"] == len(found) < len(every_row(compared)), "some have no picture"
    for row in rows:
        name, one = row["target_id"], found[row["target_id"]]
        assert (one["x"], one["y"], one["attempt"]) == (None, None, row["attempt"])
        assert len(one["similar"]) == 12
        for number, similarity in zip(one["similar"], one["similarity"], strict=True):
            assert similarity == pytest.approx(cosines[name, names[number]], abs=2e-3)
        others = [cosines[name, other] for other in names if other != name]
        assert np.allclose(one["similarity"], sorted(others, reverse=True)[:12], atol=2e-3)
        rivals = [
            other["target_id"] for other in rows
            if (other["layer"], other["mode"]) == (row["layer"], row["mode"]) and other["unit"] != row["unit"]
        ]  # fmt: skip
        assert one["redundancy"] == pytest.approx(max(cosines[name, other] for other in rivals), abs=2e-3)
        own = [other for other in names if of_unit(other) == of_unit(name)]
        spread = 1 - cosines[own[0], own[1]] if len(own) == 2 else None
        assert one["spread"] == (None if spread is None else pytest.approx(spread, abs=4e-3))


def test_like_asks_for_the_most_similar(compared, rows, cosines, dgn):
    name = rows[3]["target_id"]
    command = ["query", compared, "--like", name, "--columns", "target_id,similarity,redundancy", "--format", "csv"]
    found = list(csv.DictReader(io.StringIO(dgn(*command, "--top", 6)[1])))
    expected = sorted(rows, key=lambda row: -cosines[name, row["target_id"]])[:6]
    assert found[0]["target_id"] == name
    assert float(found[0]["similarity"]) == pytest.approx(1, abs=1e-6)
    similarities = [cosines[name, row["target_id"]] for row in expected]
    assert [float(row["similarity"]) for row in found] == pytest.approx(similarities, abs=2e-3)
    for row in found:  # ids, too: each has the cosine that is said
        assert float(row["similarity"]) == pytest.approx(cosines[name, row["target_id"]], abs=2e-3)
    classes = list(csv.DictReader(io.StringIO(dgn(*command, "--where", "layer=fc8")[1])))
    assert {row["target_id"] for row in classes} == {row["target_id"] for row in rows if row["layer"] == "fc8"}
    assert len(classes) > 15
    falling = [float(row["similarity"]) for row in classes]
    assert falling == sorted(falling, reverse=True)
    pictures = api.open_run(compared).like(name, "layer=fc8", top=3)
    assert [picture.target_id for picture in pictures] == [row["target_id"] for row in classes[:3]]


def test_figures_filter_rank_and_join(compared, current, dgn):
    table = pq.read_table(compared / current["table"]).to_pylist()
    least = sorted(row["redundancy"] for row in table)[-8]
    expected = [row for row in table if row["redundancy"] >= least]
    ordered = sorted(expected, key=lambda row: -row["redundancy"])
    asked = dgn("query", compared, "--where", f"redundancy>={least!r}", "--by", "redundancy", "--format", "json")
    found = [row["target_id"] for row in json.loads(asked[1])]
    assert len(found) >= 8
    assert set(found) == {row["target_id"] for row in expected}
    by_id = {row["target_id"]: row["redundancy"] for row in table}
    assert [by_id[name] for name in found] == [row["redundancy"] for row in ordered]
    sql = "SELECT mode, count(*) AS n FROM rows JOIN alike USING (target_id) GROUP BY mode"
    counted = json.loads(dgn("query", compared, "--sql", sql, "--format", "json")[1])
    assert sum(row["n"] for row in counted) == len(table)


def test_other_programs_read_the_halves(compared, current):
    path = str(compared / current["embeddings"])
    expected = api.open_run(compared).embeddings()[1]
    assert expected.dtype == np.float16
    assert np.linalg.norm(expected.astype(np.float32), axis=1) == pytest.approx(1, abs=1e-3)
    read = {
        "duckdb": [row[0] for row in duckdb.sql(f"SELECT embedding FROM '{path}'").fetchall()],
        "polars": polars.read_parquet(path)["embedding"].to_list(),
        "pandas": pandas.read_parquet(path)["embedding"].tolist(),
    }
    for program, values in read.items():
        assert np.array_equal(np.array(values, np.float16), expected), program
    assert current["embeddings_bytes"] / len(expected) < 600


def test_a_second_time_only_what_is_new_is_looked_at(compared, dgn, tmp_path):
    run = shutil.copytree(compared, tmp_path / "run")
    features = next((run / "alike").glob("vgg16-mini-*"))
    before = times(features)
    (features / "000002.parquet").unlink()

    def rendered_again(row):
        return row | {"attempt": "00000001"} if row["shard"] == 5 else None

    edit_rows(run, rendered_again)
    shutil.rmtree(run / "index")  # as a job does before it renders a shard again
    stale = [row["target_id"] for row in every_row(run) if row["shard"] == 5 and row["file_name"]]
    assert_one_line(dgn("query", run, "--like", stale[0]), 2, "rendered again since")
    fresh = next(row["target_id"] for row in every_row(run) if row["shard"] != 5 and row["file_name"])
    liked = json.loads(dgn("query", run, "--like", fresh, "--top", 20, "--format", "json")[1])
    assert len(liked) == 20, "whoever is out of date takes nobody's place"
    assert not {row["target_id"] for row in liked} & set(stale)
    asked = ["query", run, "--where", "redundancy>=-1", "--columns", "target_id", "--format", "json"]
    known = [row["target_id"] for row in json.loads(dgn(*asked)[1])]
    assert stale
    assert not set(stale) & set(known), "other pictures than those that were compared"
    (features / "000003.parquet").write_bytes(b"PAR1")
    assert dgn("alike", run, *ALIKE)[0] == 0
    changed = {path.name for path, when in times(features).items() if before.get(path) != when and path.is_file()}
    assert changed == {"000002.parquet", "000003.parquet", "000005.parquet"}
    assert set(stale) <= {row["target_id"] for row in json.loads(dgn(*asked)[1])}
    assert len(list((run / "alike").glob("2*"))) == 2, "an open page may still read the former"


def test_damaged_pictures_are_left_out_and_named(compared, dgn, tmp_path):
    run = shutil.copytree(compared, tmp_path / "run", ignore=shutil.ignore_patterns("alike"))
    row = next(row for row in every_row(run) if row["file_name"])
    (run / row["file_name"]).write_bytes(b"nothing")
    sharing = {one["shard"] for one in every_row(run) if one["file_name"] == row["file_name"]}
    code, out, err = dgn("alike", run, *ALIKE)
    assert code == 1
    assert "could not be looked at" in err
    left = {one["target_id"] for one in every_row(run) if one["file_name"] and one["shard"] not in sharing}
    assert set(api.open_run(run).embeddings()[0]) == left
    assert f"{len(left)} pictures compared" in out


def test_if_every_picture_is_damaged_that_is_what_is_said(compared, dgn, tmp_path):
    run = shutil.copytree(compared, tmp_path / "run", ignore=shutil.ignore_patterns("alike"))
    for path in (run / "images").rglob("*.png"):
        path.write_bytes(b"nothing")
    code, _, err = dgn("alike", run, *ALIKE)
    assert code == 1
    assert "shards could not be looked at" in err
    assert not (run / "alike" / "current.json").exists()


def test_what_was_compared_last_stays_for_pages_that_read_it(compared, current, dgn, tmp_path):
    run = shutil.copytree(compared, tmp_path / "run")
    (name,) = (path.name for path in (run / "alike").glob("2*"))
    for old in ("20200101T000000Z-00000000", "20200102T000000Z-00000000"):  # the second counts until now
        shutil.copytree(run / "alike" / name, run / "alike" / old)
    changed = json.dumps(current).replace(name, "20200102T000000Z-00000000")
    (run / "alike" / "current.json").write_text(changed)
    assert dgn("alike", run, *ALIKE)[0] == 0
    left = {path.name for path in (run / "alike").glob("2*")}
    assert "20200102T000000Z-00000000" in left
    assert "20200101T000000Z-00000000" not in left
    assert len(left) == 3


def test_many_equal_pictures_come_in_order_after_the_one_asked_for(tmp_path):
    """Halves cannot tell cosines near 1 apart."""
    stream = np.random.default_rng(0)
    values = np.ones((400, 64)) + 0.02 * stream.standard_normal((400, 64))
    values[100:300] = values[100]
    halves = likeness.normalised(values).astype(np.float16)
    run = write_fake_run(str(tmp_path / "run"), targets=["classes:0"], has_pictures=False)
    keys = [pa.array([f"t{n}" for n in range(400)]), pa.repeat("00000000", 400)]
    nothing = [pa.nulls(400, field.type) for field in SCHEMA][2:]
    table = pa.table([*keys, *nothing], schema=SCHEMA)
    write_alike(run, table, pa.table([*keys, as_halves(halves)], schema=EMBEDDING_SCHEMA), "none", "0" * 64)
    exact = halves.astype(np.float64) / np.linalg.norm(halves.astype(np.float64), axis=1, keepdims=True)
    alike = Alike.of(run)
    for number in (0, 150, 399):
        found = alike.like(number, 20)
        order = sorted(range(400), key=lambda n, to=exact @ exact[number], own=number: (n != own, -to[n].round(7), n))
        assert found["target_id"].to_pylist()[0] == f"t{number}"
        assert set(found["target_id"].to_pylist()) == {f"t{n}" for n in order[:20]}
    assert alike.like(150, 4)["target_id"].to_pylist() == ["t150", "t100", "t101", "t102"]


def test_pictures_that_the_network_does_not_respond_to_are_left_out(compared, dgn, tmp_path, monkeypatch):
    run = shutil.copytree(compared, tmp_path / "run", ignore=shutil.ignore_patterns("alike"))
    silent = next(row for row in every_row(run) if row["file_name"])
    plain = likeness.features

    def features(pictures, network):
        """As of a network whose last ReLUs are all zero for one picture, which is black here."""
        return plain(pictures, network) * (pictures.amax((1, 2, 3)) > 0).numpy()[:, None]

    monkeypatch.setattr(likeness, "features", features)
    black = io.BytesIO()
    Image.new("RGB", (224, 224)).save(black, "png")
    (run / silent["file_name"]).write_bytes(black.getvalue())
    digest = hashlib.sha256(black.getvalue()).hexdigest()
    same = silent["file_name"]
    edit_rows(run, lambda row: row | {"sha256": digest} if row["file_name"] == same else None)
    shutil.rmtree(run / "index")
    assert dgn("alike", run, *ALIKE)[0] == 0
    left = {row["target_id"] for row in every_row(run) if row["file_name"] not in (None, same)}
    assert set(api.open_run(run).embeddings()[0]) == left


def test_what_was_not_compared_is_said(compared, rows, dgn, tmp_path):
    assert_one_line(
        dgn("query", compared, "--like", "fc8-77777-untrained-s0"), 2, "fc8-77777-untrained-s0", "dgn alike"
    )
    assert_one_line(dgn("query", compared, "--like", rows[0]["target_id"], "--by", "rank"), 2, "--by")
    run = shutil.copytree(compared, tmp_path / "run", ignore=shutil.ignore_patterns("alike"))
    for asked in (["--like", rows[0]["target_id"]], ["--where", "spread>0"], ["--by", "redundancy"]):
        assert_one_line(dgn("query", run, *asked), 2, "dgn alike")
    assert_one_line(dgn("query", run, "--sql", "SELECT * FROM alike"), 2, "dgn alike RUN makes it")
    shutil.copytree(compared / "alike", run / "alike")
    current = json.loads((run / "alike" / "current.json").read_text())
    (run / current["table"]).write_bytes(b"PAR1")
    assert_one_line(dgn("query", run, "--by", "redundancy"), 1, current["table"], "dgn alike makes it again")
    (run / "alike" / "current.json").write_text("{}")
    assert_one_line(dgn("query", run, "--by", "redundancy"), 1, "current.json", "dgn alike makes it again")


def test_a_run_without_pictures_has_nothing_to_compare(dgn, tmp_path):
    write_fake_run(str(tmp_path / "run"), targets=["classes:0"])
    edit_rows(tmp_path / "run", lambda row: row | {"file_name": None, "sha256": None})
    assert_one_line(dgn("alike", tmp_path / "run", *ALIKE), 2, "no picture that vgg16-mini responds to")
    assert not (tmp_path / "run" / "alike" / "current.json").exists()
