"""Second opinions: what they say of a picture, recomputed by other means, and that each stays with its own row."""

import functools
import io
import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cluster import judgements
from cluster.index import read_index, update_index
from cluster.judgements import DISTORTED, JUDGED_SCHEMA, SCHEMA, Judge, write_judgements
from cluster.run import Run, metadata_key
from cluster.storage import open_store
from dgn import embedded
from dgn.discriminator import load_weights
from dgn.distort import DISTORTIONS, blur, crop, jpeg, turn
from dgn.errors import DgnError, StoreError
from dgn.opinion import check_independent
from tests.conftest import WIDTH
from tests.fake_runs import write_fake_run

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


# What harms do to pictures of which it is known.


def constant(*rgb):
    return torch.tensor(rgb, dtype=torch.uint8)[None, :, None, None].expand(1, 3, 224, 224).clone()


def test_the_schema_names_every_distortion():
    assert tuple(DISTORTIONS) == DISTORTED
    assert {field.name for field in SCHEMA} - {field.name for field in JUDGED_SCHEMA} == {"shard", "attempt"}


@pytest.mark.parametrize("name", DISTORTED)
def test_a_picture_of_one_colour_stays(name):
    for colour in ((128, 128, 128), (0, 0, 0), (255, 255, 255)):
        assert torch.equal(DISTORTIONS[name](constant(*colour)), constant(*colour))
    red = DISTORTIONS[name](constant(200, 30, 90)).int() - constant(200, 30, 90).int()
    assert red.abs().max() <= (3 if name == "jpeg" else 0)  # which keeps colours in steps
    assert DISTORTIONS[name](constant(1, 2, 3)).dtype == torch.uint8


@pytest.mark.parametrize("name", DISTORTED)
def test_pictures_of_a_batch_are_harmed_alone(name):
    pictures = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8)
    before = pictures.clone()
    together = DISTORTIONS[name](pictures)
    assert torch.equal(pictures, before)
    assert torch.equal(together, torch.cat([DISTORTIONS[name](one[None]) for one in pictures]))


def test_blur_spreads_an_edge_by_its_sigma():
    edge = constant(0, 0, 0)
    edge[..., 112:] = 255
    steps = blur(edge)[0, 0, 112].double().diff()
    places = torch.arange(len(steps)) - 111.0
    assert steps.sum() == 255
    mean = (steps * places).sum() / 255
    variance = (steps * (places - mean) ** 2).sum() / 255
    assert mean.abs() < 0.05
    assert variance.item() == pytest.approx(2.0**2, abs=0.1)
    assert torch.equal(blur(edge)[0, 0, 3], blur(edge)[0, 2, 220])


def test_blur_of_a_point_has_a_gaussians_height():
    point = constant(0, 0, 0)
    point[..., 100, 50] = 255
    found = blur(point)[0, 0].double()
    for y, x in ((100, 50), (102, 50), (100, 48), (102, 52)):
        expected = 255 / (2 * np.pi * 4) * np.exp(-((y - 100) ** 2 + (x - 50) ** 2) / 8)
        assert abs(found[y, x].item() - expected) <= 0.51


def test_crop_enlarges_the_middle():
    x = torch.arange(224.0)
    ramp = constant(0, 0, 0)
    ramp[:] = x.round().to(torch.uint8)  # brightness tells the column
    expected = 111.5 + 0.8 * (x - 111.5)
    assert (crop(ramp)[0, 1, 77] - expected).abs().max() <= 0.51
    assert (crop(ramp.transpose(2, 3))[0, 1, :, 9] - expected).abs().max() <= 0.51


def test_turn_takes_a_spot_ten_degrees_counter_clockwise():
    spot = constant(0, 0, 0)
    spot[..., 109:115, 190:194] = 255  # right of the centre, at its height
    found = turn(spot)[0, 0].double()
    y, x = torch.meshgrid(torch.arange(224.0), torch.arange(224.0), indexing="ij")
    at_y, at_x = (found * y).sum() / found.sum(), (found * x).sum() / found.sum()
    radius = 191.5 - 111.5
    assert at_x.item() == pytest.approx(111.5 + radius * np.cos(np.radians(10)), abs=0.1)
    assert at_y.item() == pytest.approx(111.5 - radius * np.sin(np.radians(10)), abs=0.1)  # up


def test_turn_mirrors_into_the_corners():
    ramp = constant(0, 0, 0)
    ramp[:] = torch.arange(224, dtype=torch.uint8)[:, None]  # brightness tells the row
    above = 111.5 * (
        np.cos(np.radians(10)) + np.sin(np.radians(10))
    )  # the centre, where the first corner's colour lies
    assert above > 112  # outside
    assert abs(turn(ramp)[0, 0, 0, 0].item() - (111.5 - (224 - above))) <= 0.51


def test_jpeg_is_a_jpeg_of_quality_50():
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 224, 224), np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(picture[0].permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=50)
    with Image.open(buffer) as image:
        assert max(image.quantization[0]) == 121  # the standard's own table, which is quality 50
        assert np.array_equal(np.asarray(image), jpeg(picture)[0].permute(1, 2, 0).numpy())


# Judgements of a rendered run.


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


# Alignment with the index's rows, with judgements of a random stream.


@pytest.fixture
def fake(tmp_path):
    """208 rows in 26 shards that nobody judged."""
    return write_fake_run(str(tmp_path / "fake"), seeds=2, targets=["filters:conv1_1", "classes:0-39"], shard_size=8)


def judge_at_random(run, shard, stream, judge, attempt="00000000", is_again=False):
    """The rows in another order than the shard's."""
    names = pq.read_table(Path(run.store.url) / metadata_key(shard))["target_id"].to_pylist()
    stream.shuffle(names)
    rows = [
        {
            "target_id": name, "shard": shard, "attempt": attempt, "judge_rank": stream.randrange(1000),
            **{f"{one}_rank": stream.randrange(1000) for one in DISTORTED},
        }
        for name in names
    ]  # fmt: skip
    write_judgements(run, judge, shard, rows, {}, is_again)


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


@pytest.mark.parametrize("flag", ["--weights", "--discriminator-weights"])
def test_a_summary_takes_no_weights(flag, original, dgn):
    ends_in_one_line(dgn("judge", original, "--summary", flag, "x.pth"), 2, "--summary", "leave the weights out")


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
