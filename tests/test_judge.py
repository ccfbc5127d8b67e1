"""Second opinions: what they say of a picture, recomputed by other means, and that each stays with its own row."""

import functools
import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cluster.judgements import DISTORTED, JUDGED_SCHEMA, SCHEMA, write_judgements
from cluster.storage import open_store
from dgn import embedded
from dgn.discriminator import load_weights
from dgn.errors import DgnError
from dgn.opinion import check_independent
from tests.conftest import WIDTH

TARGETS = ["filters:conv1_1:0-1", "group:conv5_1:3*0.5+17", "classes:0-3", "mix:classes:1+2"]
BY = ["--by", "vgg16-mini-b"]
FOLDER = f"vgg16-mini-b-{load_weights('vgg16-mini-b').sha256[:8]}"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory, local_ray):
    """Eight pictures in five shards, by the embedded classifier."""
    from jobs.render import load_config, render_command

    folder = tmp_path_factory.mktemp("rendered") / "run"
    settings = {
        "targets": TARGETS, "discriminator": "vgg16-mini", "width": WIDTH, "updates": 15, "views": 1,
        "precision": "float32", "shard_size": 2,
    }  # fmt: skip
    render_command(str(folder), load_config(None, settings), dry_run=False)
    return folder


@pytest.fixture(scope="module")
def original(rendered, tmp_path_factory):
    """The same, judged."""
    from jobs.judge import judge_command

    folder = tmp_path_factory.mktemp("judged") / "run"
    shutil.copytree(rendered, folder)
    judge_command(str(folder), "vgg16-mini-b", None, None, False, True)
    return folder


@pytest.fixture
def run(original, tmp_path):
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def table_of(folder, columns=None):
    return pa.concat_tables(pq.read_table(path, columns=columns) for path in sorted(folder.glob("*.parquet")))


def judged_rows(folder):
    """What judges wrote, as another program reads it, by target."""
    rows = table_of(folder / "judgements" / FOLDER).to_pylist()
    found = {row["target_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def compacted(folder):
    """Rows of the index with the judgements beside them, by their places alone."""
    pairs = []
    for part in json.loads((folder / "index/current.json").read_text())["parts"]:
        rows = pq.read_table(folder / "index" / part["id"] / "rows.parquet").to_pylist()
        for judged in part["judged"]:
            beside = pq.read_table(folder / "index" / part["id"] / judged["name"])
            assert beside.schema.equals(JUDGED_SCHEMA)
            assert len(beside) == len(rows)
            assert judged["num_rows"] == len(rows) - beside["by"].null_count
            pairs += zip(rows, beside.to_pylist(), strict=True)
    return pairs


def by_hand(image, distortion):
    """By Pillow and NumPy alone, what `distortion` is said to do."""
    if distortion == "jpeg":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=50)
        return Image.open(buffer)
    if distortion == "crop":
        return image.resize((224, 224), Image.Resampling.BILINEAR, box=(22.4, 22.4, 201.6, 201.6))
    if distortion == "turn":
        wide = np.pad(np.asarray(image, np.float32), ((50, 50), (50, 50), (0, 0)), "symmetric")
        channels = [
            Image.fromarray(channel).rotate(10, Image.Resampling.BILINEAR) for channel in np.moveaxis(wide, 2, 0)
        ]
        turned = np.stack([np.asarray(channel)[50:274, 50:274] for channel in channels], 2)
        return Image.fromarray(np.rint(turned).astype(np.uint8))
    kernel = np.exp(-(np.arange(-8, 9) ** 2) / (2 * 2.0**2))
    kernel /= kernel.sum()
    pixels = np.pad(np.asarray(image, np.float64), ((8, 8), (8, 8), (0, 0)), "reflect")
    pixels = sum(kernel[k] * pixels[k : k + 224] for k in range(17))
    pixels = sum(kernel[k] * pixels[:, k : k + 224] for k in range(17))
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


@functools.cache
def model_of(network):
    model = embedded.build()
    model.load_state_dict(load_weights(network).state)
    return model.eval()


def forward(network, image, layer):
    """One pass by hand: the layer's units, averaged over space after a ReLU, and the softmax of the output."""
    model = model_of(network)
    kept = []
    module = {"conv1_1": model.features[1], "conv5_1": model.features[25], "fc8": model.classifier[-1]}[layer]
    handle = module.register_forward_hook(lambda module, inputs, output: kept.append(output.clone()))
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        output = model((pixels - mean[:, None, None]) / std[:, None, None])
    handle.remove()
    response = kept[0][0]
    return response if response.ndim == 1 else response.relu().mean((1, 2)), output[0].softmax(0)


@pytest.mark.parametrize(
    ("target_id", "layer", "weights"),
    [
        ("fc8-00003-untrained-s0", "fc8", {3: 1.0}),
        ("fc8-1_2-untrained-s0", "fc8", {1: 1.0, 2: 1.0}),
        ("conv1_1-00001-untrained-s0", "conv1_1", {1: 1.0}),
        ("conv5_1-3x0.5_17-untrained-s0", "conv5_1", {3: 0.5, 17: 1.0}),
    ],
)
def test_a_judgement_equals_one_by_hand(original, target_id, layer, weights):
    [path] = original.glob(f"images/*/*/{target_id}.png")
    row = judged_rows(original)[target_id]
    image = Image.open(path).convert("RGB")
    assert row["by"] == "vgg16-mini-b"
    if layer == "fc8":
        logits, probabilities = forward("vgg16-mini-b", image, "fc8")
        lowest = min(logits[unit] for unit in weights)
        others = [value for unit, value in enumerate(logits) if unit not in weights]
        assert row["judge_rank"] == 1 + sum(value > lowest for value in others)
        assert row["judge_probability"] == pytest.approx(sum(probabilities[u].item() for u in weights), rel=1e-4)
        assert row["judge_top_unit"] == logits.argmax()
        assert row["judge_top_label"] == embedded.LABELS[row["judge_top_unit"]]
    else:
        assert [row[name] for name in SCHEMA.names if name.startswith("judge_")] == [None] * 4
    for name in DISTORTED:
        units, _ = forward("vgg16-mini", by_hand(image, name), layer)
        activation = sum(weight * max(units[unit].item(), 0) for unit, weight in weights.items())
        assert row[f"{name}_activation"] == pytest.approx(activation, rel=0.005, abs=0.001), name
        lowest, near = min(units[unit] for unit in weights), 0.005 * units.abs().max()
        others = [value for unit, value in enumerate(units) if unit not in weights]
        fewest, most = (1 + sum(value > lowest + sign * near for value in others) for sign in (1, -1))
        assert fewest <= row[f"{name}_rank"] <= most, name


def test_files_hold_every_row_and_whose_they_are(original, rendered):
    frozen = load_weights("vgg16-mini-b")
    found = judged_rows(original)
    rows = {row["target_id"]: row for row in table_of(rendered / "metadata").to_pylist()}
    assert found.keys() == rows.keys()
    assert len(found) == 8
    for path in (original / "judgements" / FOLDER).iterdir():
        file = pq.read_table(path)
        assert file.schema.equals(SCHEMA)
        about = json.loads(file.schema.metadata[b"dgn"])
        assert (about["schema_version"], about["by_weights_sha256"]) == (1, frozen.sha256)
        assert (about["jpeg_quality"], about["blur_sigma_px"], about["crop_share"], about["turn_deg"]) == (
            50,
            2,
            0.8,
            10,
        )
    for name, row in found.items():
        assert (row["shard"], row["attempt"]) == (rows[name]["shard"], rows[name]["attempt"])
        assert row["by_weights_sha256"] == frozen.sha256
        assert (row["judge_rank"] is None) == (rows[name]["layer"] != "fc8")


def check_compacted(folder, rows):
    """`rows`: the judgements that count, by target."""
    pairs = compacted(folder)
    assert len(pairs) == len(table_of(folder / "metadata", ["shard"]))
    for row, beside in pairs:
        judgement = rows.get(row["target_id"])
        expected = dict.fromkeys(JUDGED_SCHEMA.names) if judgement is None else judgement
        assert beside == {name: expected[name] for name in JUDGED_SCHEMA.names}


def test_the_index_holds_them_beside_the_rows(original):
    check_compacted(original, judged_rows(original))


def test_the_summary_counts(original, dgn):
    code, out, _ = dgn("judge", original, "--summary", "--json")
    assert code == 0
    found = {one["layer"]: one for one in json.loads(out)}
    assert list(found) == ["conv1_1", "conv5_1", "fc8"]
    rows = {row["target_id"]: row for row in table_of(original / "metadata").to_pylist()}
    judgements = judged_rows(original).values()
    for layer, one in found.items():
        ours = [row for row in judgements if rows[row["target_id"]]["layer"] == layer]
        n = len(ours)
        assert (one["num_pictures"], one["mode"], one["by"]) == (n, "untrained", "vgg16-mini-b")
        assert one["saved_first"] == sum(rows[row["target_id"]]["rank"] == 1 for row in ours) / n
        for name in DISTORTED:
            assert one[f"{name}_first"] == sum(row[f"{name}_rank"] == 1 for row in ours) / n
        is_class = layer == "fc8"
        assert one["judge_first"] == (sum(row["judge_rank"] == 1 for row in ours) / n if is_class else None)
        assert one["judge_top5"] == (sum(row["judge_rank"] <= 5 for row in ours) / n if is_class else None)
    code, out, _ = dgn("judge", original, "--summary")
    [line] = [line for line in out.splitlines() if " fc8 " in line]
    assert line.split()[:4] == ["vgg16-mini-b", "fc8", "untrained", "5"]
    assert f"{found['fc8']['judge_top5']:.0%}" in line


def test_sql_joins_them(original, dgn):
    pytest.importorskip("duckdb")
    sql = (
        """SELECT target_id, judge_rank, turn_rank, rank FROM rows JOIN judged USING (target_id) WHERE "by" LIKE 'v%'"""
    )
    found = json.loads(dgn("query", original, "--sql", sql, "--format", "json")[1])
    expected = judged_rows(original)
    assert {one["target_id"]: one["judge_rank"] for one in found} == {
        name: row["judge_rank"] for name, row in expected.items()
    }
    assert {one["target_id"]: one["turn_rank"] for one in found} == {
        name: row["turn_rank"] for name, row in expected.items()
    }


def test_sql_sees_no_table_where_nothing_is_judged(rendered, dgn):
    pytest.importorskip("duckdb")
    code, _, err = dgn("query", rendered, "--sql", "SELECT * FROM judged")
    assert (code, err.count("\n")) == (2, 1)
    assert "there are no judgements yet: dgn judge RUN --by NETWORK makes them" in err


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "judgements" / FOLDER).iterdir()}


def test_what_is_judged_stays_and_what_is_missing_is_made_again(run, dgn):
    before, expected = times(run), judged_rows(run)
    index = (run / "index/current.json").read_bytes()
    assert dgn("judge", run, *BY)[0] == 0
    assert times(run) == before
    assert (run / "index/current.json").read_bytes() == index
    (run / "judgements" / FOLDER / "000003.parquet").unlink()
    code, out, _ = dgn("judge", run, *BY)
    assert code == 0
    assert out.startswith("2 pictures in ")
    assert {name: time for name, time in times(run).items() if before[name] != time}.keys() == {"000003.parquet"}
    assert judged_rows(run) == expected
    check_compacted(run, expected)


def test_an_interrupted_judge_leaves_whole_files_and_goes_on(run, dgn, monkeypatch):
    expected = judged_rows(run)
    shutil.rmtree(run / "judgements")
    shutil.rmtree(run / "index")
    written = []

    def write(*arguments, **options):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments)
        write_judgements(*arguments, **options)

    monkeypatch.setattr("jobs.judge.write_judgements", write)
    code, _, err = dgn("judge", run, *BY)
    assert code == 130
    assert "dgn judge go on with the same line" in err
    assert {path.name for path in (run / "judgements" / FOLDER).iterdir()} == {"000000.parquet", "000001.parquet"}
    monkeypatch.undo()
    before = times(run)
    assert dgn("judge", run, *BY)[0] == 0
    assert times(run).items() > before.items()
    assert judged_rows(run) == expected
    check_compacted(run, expected)


def test_a_shard_that_was_rendered_again_is_judged_again(run, dgn):
    before, old = times(run), judged_rows(run)
    (run / "metadata/000002.parquet").unlink()
    assert dgn("resume", run)[0] == 0
    again = pq.read_table(run / "metadata/000002.parquet").to_pylist()
    names = {row["target_id"] for row in again}
    assert old[again[0]["target_id"]]["attempt"] != again[0]["attempt"]
    check_compacted(run, {name: row for name, row in old.items() if name not in names})
    assert dgn("judge", run, *BY)[0] == 0
    assert {name for name, time in times(run).items() if before[name] != time} == {"000002.parquet"}
    found = judged_rows(run)
    assert {found[name]["attempt"] for name in names} == {again[0]["attempt"]}
    check_compacted(run, found)


def ends_in_one_line(result, code, *words):
    assert result[0] == code
    assert result[2].count("\n") == 1, result[2]
    assert all(word in result[2] for word in words), result[2]


def files_in(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_judges_that_prove_nothing_are_refused(rendered, dgn, tmp_path):
    from torchvision.models import squeezenet1_0

    save_file(squeezenet1_0().state_dict(), tmp_path / "squeeze.safetensors")
    torch.save(load_weights("vgg16-mini").state, tmp_path / "same.pth")
    before = files_in(rendered)
    for line, words in (
        (["--by", "vgg16-mini"], ["the network that made these pictures"]),
        (["--by", "vgg16-mini", "--weights", tmp_path / "same.pth"], ["the network that made these pictures"]),
        (["--by", "squeezenet1_0", "--weights", tmp_path / "squeeze.safetensors"], ["other classes", "1000", "24"]),
        (["--by", "vgg16-mini-b", "--weights", tmp_path / "squeeze.safetensors"], ["does not fit vgg16-mini-b"]),
        (["--by", "nonsense"], ["nonsense"]),
        (["--by", "vgg16-mini-b", "--discriminator-weights", tmp_path / "none.pth"], ["--discriminator-weights FILE"]),
        (
            ["--by", "vgg16-mini-b", "--discriminator-weights", embedded.weights_path("vgg16-mini-b")],
            ["not the weights file of this run", "--discriminator-weights FILE"],
        ),
        ([], ["--by NETWORK"]),
        (["--summary"], ["no judgements"]),
    ):
        ends_in_one_line(dgn("judge", rendered, *line), 2, *words)
    assert files_in(rendered) == before


def test_other_labels_are_told_by_the_first_that_differs():
    judge, own = load_weights("vgg16-mini-b"), load_weights("vgg16-mini")
    check_independent(judge, own)
    with pytest.raises(DgnError, match="class 0 is tench there"):
        check_independent(type(judge)("squeezenet1_0", {}, "0" * 64, "x.pth"), own)


def test_weights_that_moved(run, dgn, tmp_path):
    shutil.rmtree(run / "judgements")
    moved = tmp_path / "moved.safetensors"
    shutil.copy(embedded.weights_path("vgg16-mini"), moved)
    info = json.loads((run / "run.json").read_text())
    info["config"]["weights"] = "/nowhere/gone.safetensors"
    (run / "run.json").write_text(json.dumps(info))
    ends_in_one_line(dgn("judge", run, *BY), 2, "--discriminator-weights FILE", "gone.safetensors")
    assert dgn("judge", run, *BY, "--discriminator-weights", moved)[0] == 0
    assert len(judged_rows(run)) == 8


@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
def test_a_damaged_picture_is_one_line_and_the_others_are_judged(run, dgn, damage):
    shutil.rmtree(run / "judgements")
    [picture] = run.glob("images/*/*/fc8-00001-*.png")
    match damage:
        case "missing":
            picture.unlink()
        case "cut":
            picture.write_bytes(picture.read_bytes()[:-100])
        case "another":
            [other] = run.glob("images/*/*/fc8-00002-*.png")
            shutil.copy(other, picture)
    result = dgn("judge", run, *BY)
    ends_in_one_line(result, 1, "1 shards could not be judged", picture.name, "dgn verify")
    assert len(times(run)) == 4
    expected = judged_rows(run)
    assert len(expected) == 6
    check_compacted(run, expected)


@pytest.mark.parametrize(
    ("forge", "says"),
    [
        (lambda table: table.drop_columns(["turn_rank"]), "no column turn_rank"),
        (lambda table: table.set_column(3, "by", pa.array(["mallory"] * len(table))), "not all of the judge"),
        (
            lambda table: table.set_column(4, "by_weights_sha256", pa.array([FOLDER[-8:] + "/../../x"] * len(table))),
            "not all of the judge",
        ),
    ],
)
def test_a_file_that_was_edited_is_named(run, dgn, forge, says):
    path = run / "judgements" / FOLDER / "000001.parquet"
    pq.write_table(forge(pq.read_table(path)), path)
    shutil.rmtree(run / "index")
    ends_in_one_line(dgn("index", run), 1, "000001.parquet", says, "dgn judge")
    path.write_bytes(b"PAR1")
    ends_in_one_line(dgn("index", run), 1, "000001.parquet", "no whole Parquet file")


@pytest.mark.parametrize(
    ("field", "value"), [("name", "../../../etc/passwd"), ("by", "a/b"), ("weights_sha256", "x"), ("shards", [[5, 1]])]
)
def test_an_index_that_was_edited_leads_nowhere(run, dgn, field, value):
    path = run / "index/current.json"
    content = json.loads(path.read_text())
    content["parts"][0]["judged"][0][field] = value
    path.write_text(json.dumps(content))
    ends_in_one_line(dgn("judge", run, "--summary"), 1, "not as it was written", "dgn index --rebuild")


def test_in_a_bucket(original, bucket, dgn):
    pytest.importorskip("duckdb")
    url = f"s3://{bucket}/run"
    store = open_store(url)
    for path in original.rglob("*"):
        if path.is_file() and path.relative_to(original).parts[0] not in ("judgements", "index"):
            store.write(str(path.relative_to(original)), path.read_bytes())
    code, out, _ = dgn("judge", url, *BY)
    assert code == 0
    assert out.startswith("8 pictures in s3://")
    sql = "SELECT target_id, judge_rank, blur_rank FROM judged"
    found = json.loads(dgn("query", url, "--sql", sql, "--format", "json")[1])
    expected = judged_rows(original)
    assert {one["target_id"]: (one["judge_rank"], one["blur_rank"]) for one in found} == {
        name: (row["judge_rank"], row["blur_rank"]) for name, row in expected.items()
    }


@pytest.mark.parametrize("flag", ["--weights", "--discriminator-weights"])
def test_a_summary_takes_no_weights(flag, original, dgn):
    ends_in_one_line(dgn("judge", original, "--summary", flag, "x.pth"), 2, "--summary", "leave the weights out")
