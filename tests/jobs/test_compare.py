"""`dgn compare`: which pictures are joined, and what is said of them, against a plain calculation."""

import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from dgn.networks.weights import load_weights
from dgn.runs.comparison import SCHEMA
from dgn.runs.schema import SCHEMA as ROWS
from tests.conftest import WIDTH
from tests.helpers.rows import assert_one_line, every_row

BY = ("--by", "efficientnet_lite0")


@pytest.fixture(scope="module")
def runs(rendered, tmp_path_factory):
    """The same targets by two networks; the first has two more."""
    from dgn.jobs.render import render
    from dgn.runs.config import RunConfig

    other = tmp_path_factory.mktemp("runs") / "other"
    config = RunConfig(
        targets=("classes:0-2", "filters:conv1_1:0-1", "group:conv5_1:3*0.5+17"), discriminator="vgg16-mini-b",
        width=WIDTH, updates=6, views=1, precision="float32", workers="1",
    )  # fmt: skip
    render(str(other), config)
    return rendered, other


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory):
    from dgn.jobs.compare import command

    out = tmp_path_factory.mktemp("compared") / "out"
    command(run_a=str(runs[0]), run_b=str(runs[1]), out=out, by=BY[1])
    return out


def picture_of(run, row):
    with Image.open(io.BytesIO((run / row["file_name"]).read_bytes())) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 255


def features_of(picture):
    """The means of EfficientNet-Lite0's last maps, by hand."""
    from dgn.networks.weights import filled

    weights = load_weights("efficientnet_lite0")
    model, kept = filled(weights.network, weights.state).eval(), []
    model.get_submodule("_bn1").register_forward_hook(lambda _m, _i, output: kept.append(output))
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (weights.network.means, weights.network.stds))
    with torch.no_grad():
        model((picture * weights.network.value_range - mean) / std)
    return kept[0].clamp_min(0).mean((2, 3))[0]


def test_pairs_are_joined_sorted_and_measured(runs, compared):
    table = pq.read_table(compared / "compare.parquet")
    assert table.schema.remove_metadata() == SCHEMA
    pairs = table.to_pylist()
    rows = [{row["target_id"]: row for row in every_row(run)} for run in runs]
    assert {pair["target_id_a"] for pair in pairs} == rows[0].keys() & rows[1].keys() == rows[1].keys()
    distances = [pair["distance"] for pair in pairs]
    assert distances == sorted(distances, reverse=True)
    for pair in (pairs[0], pairs[-1]):
        first, second = (
            features_of(picture_of(run, of[pair["target_id_a"]])) for run, of in zip(runs, rows, strict=True)
        )
        wanted = 1 - torch.cosine_similarity(first, second, dim=0).item()
        assert pair["distance"] == pytest.approx(wanted, abs=1e-4)
    for pair in pairs:
        for name, of in zip("ab", rows, strict=True):
            row = of[pair[f"target_id_{name}"]]
            for column in ("activation", "rank", "file_name"):
                assert pair[f"{column}_{name}"] == row[column]


def test_each_network_ranks_the_others_picture(runs, compared, mini):
    """Class 1: how many of vgg16-mini's classes are above it on run b's picture."""
    pairs = pq.read_table(compared / "compare.parquet").to_pylist()
    [pair] = [one for one in pairs if one["target_id_a"].startswith("fc8-00001")]
    row = next(row for row in every_row(runs[1]) if row["target_id"] == pair["target_id_b"])
    values = mini.scores(picture_of(runs[1], row), "fc8")[0][0]
    assert pair["rank_by_other_b"] == 1 + int((values > values[1]).sum())


def test_the_page_shows_pairs_most_changed_first(runs, compared, browser):
    page = browser.new_page()
    page.goto((compared / "index.html").as_uri())
    pairs = pq.read_table(compared / "compare.parquet").to_pylist()
    items = page.locator("li")
    assert items.count() == len(pairs)
    assert f"{pairs[0]['distance']:.3f}" in items.nth(0).inner_text()
    sizes = page.evaluate("[...document.images].map(one => one.naturalWidth)")
    assert sizes == [224] * (2 * len(pairs))
    assert page.locator("h1").inner_text() == "What changed"
    assert Axe().run(page).response["violations"] == []
    page.close()


def test_what_is_printed(runs, dgn, tmp_path):
    code, out, err = dgn("compare", *runs, tmp_path / "out", *BY, "--top", 2)
    assert code == 0, err
    assert out.endswith(f"6 pairs (2 only in a): {tmp_path / 'out' / 'index.html'}\n")
    html = (tmp_path / "out" / "index.html").read_text()
    assert html.count("<li>") == 2
    assert "6 pairs of pictures of the same target, the most changed first; the first 2 are shown" in html
    about = json.loads(pq.read_schema(tmp_path / "out" / "compare.parquet").metadata[b"dgn"])
    assert (about["run_a"], about["by"], about["schema_version"]) == (str(runs[0]), BY[1], 1)


def test_a_run_and_itself(runs, dgn, tmp_path):
    assert dgn("compare", runs[0], runs[0], tmp_path / "out", *BY)[0] == 0
    for pair in pq.read_table(tmp_path / "out" / "compare.parquet").to_pylist():
        assert pair["distance"] == pytest.approx(0, abs=1e-6)
        assert pair["rank_by_other_a"] == pair["rank_a"] == pair["rank_by_other_b"]


def test_bad_input_ends_in_one_line_before_anything_is_written(runs, dgn, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for arguments, says in (
        ((*runs, tmp_path / "full"), "exists and holds x: give a new or an empty folder"),
        ((runs[0], tmp_path / "none", out), "no run at"),
        ((*runs, out, "--by", "vgg16-mini"), "vgg16-mini made the pictures of"),
        ((*runs, out, "--by", "nonet"), "nonet"),
        ((*runs, out, "--weights-a", tmp_path / "missing.pth"), "missing.pth"),
        ((*runs, out, "--top", 0), "--top"),
    ):
        assert_one_line(dgn("compare", *arguments), 2, says)
    assert not out.exists()


def test_runs_without_a_common_target(runs, dgn, tmp_path):
    shutil.copytree(runs[1], tmp_path / "other")
    for path in (tmp_path / "other" / "metadata").iterdir():
        rows = [{**row, "seed": 9} for row in pq.read_table(path).to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=ROWS), path)
    shutil.rmtree(tmp_path / "other" / "index")
    answer = dgn("compare", runs[0], tmp_path / "other", tmp_path / "out", *BY)
    assert_one_line(answer, 2, "have no target in common: expected the same layers and units, or classes of the same")
    assert not (tmp_path / "out").exists()
