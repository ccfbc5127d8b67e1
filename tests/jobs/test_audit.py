"""`dgn audit`: what it says of pictures, against plain calculations, and what it refuses."""

import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from dgn.networks.embedded.drawings import LABELS
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.weights import load_weights
from dgn.pictures.paths import Paths, Reference, path_layers
from dgn.runs.audit import SCHEMA
from dgn.runs.run import Run
from tests.conftest import WIDTH
from tests.helpers.judged import BY
from tests.helpers.photographs import write_drawings
from tests.helpers.rows import assert_one_line, every_row

PER_CLASS = 6
FEW = "heart"  # has three photographs


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Six drawings of each class but one, one of them twice, one that is broken, one of another class than its folder,
    and others of no class."""
    folder = write_drawings(tmp_path_factory.mktemp("photographs"), PER_CLASS * len(LABELS))
    for path in sorted((folder / FEW).iterdir())[3:]:
        path.unlink()
    shutil.copy(folder / LABELS[1] / "0001.png", folder / LABELS[1] / "again.png")
    (folder / LABELS[0] / "broken.png").write_bytes(b"\x89PNG")
    (folder / "holiday").mkdir()
    shutil.copy(folder / LABELS[2] / "0002.png", folder / "holiday" / "beach.png")
    (folder / "notes.txt").touch()
    with Image.open(folder / LABELS[0] / "0000.png") as image:  # in a folder of another class, and no copy
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / LABELS[5] / "strange.png")
    return folder


@pytest.fixture(scope="module")
def looked(rendered, photographs, tmp_path_factory):
    """The rendered run, with examples."""
    from dgn.cluster.examples import find_examples

    folder = tmp_path_factory.mktemp("looked") / "run"
    shutil.copytree(rendered, folder)
    assert find_examples(Run.at(str(folder)), str(photographs), "image", {}, None, None, lambda _: None).done
    return folder


@pytest.fixture(scope="module")
def audited(looked, photographs, tmp_path_factory):
    from dgn.jobs.audit import command

    out = tmp_path_factory.mktemp("audited") / "out"
    command(run=str(looked), out=out, images=str(photographs), by=BY[1])
    return out


def rows_of(out):
    return pq.read_table(out / "audit.parquet").to_pylist()


def tensor_of(path):
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]


def seen(path):
    """The square that a network of 224 px sees of a photograph."""
    with Image.open(path) as image:
        square = np.array(image.convert("RGB").resize((256, 256), Image.Resampling.LANCZOS))
    return torch.from_numpy(square[16:-16, 16:-16]).permute(2, 0, 1)[None] / 255


def test_every_class_is_there_with_what_the_second_network_sees(looked, audited):
    table = pq.read_table(audited / "audit.parquet")
    assert table.schema.remove_metadata() == SCHEMA
    rows = {row["target_id"]: row for row in every_row(looked)}
    classes = {name for name, row in rows.items() if row["layer"] == "fc8" and row["unit"] is not None}
    audit = table.to_pylist()
    assert {one["target_id"] for one in audit} == classes
    assert [one["beside"] for one in audit] == sorted((one["beside"] for one in audit), reverse=True)
    judge = FrozenNetwork(load_weights("vgg16-mini-b"), dtype=torch.float64)
    for one in audit:
        row = rows[one["target_id"]]
        for name in ("unit", "label", "mode", "seed", "activation", "rank", "probability", "file_name"):
            assert one[name] == row[name]
        values = judge.scores(tensor_of(looked / row["file_name"]) / 255, "fc8")[1][0].double()
        probabilities = torch.softmax(values, 0)
        assert one["judge_probability"] == pytest.approx(probabilities[row["unit"]].item(), rel=1e-2, abs=1e-6)
        assert one["beside"] == pytest.approx(1 - one["judge_probability"], abs=1e-6)
        assert one["judge_rank"] == 1 + int((values > values[row["unit"]]).sum())
        others = [unit for unit in values.argsort(descending=True).tolist() if unit != row["unit"]][:5]
        assert [(other["unit"], other["label"]) for other in one["seen"]] == [(n, LABELS[n]) for n in others]


def test_paths_and_units_are_those_of_the_photographs_in_the_folders(looked, audited, photographs, mini):
    """Class 1, with everything read and looked at again, one photograph at a time."""
    layers = path_layers(mini.layers)
    of_class = sorted(path for path in (photographs / LABELS[1]).iterdir() if path.name != "again.png")
    others = sorted(
        (n, path) for n, label in enumerate(LABELS) if n != 1 for path in (photographs / label).glob("[0s]*")
    )
    [one] = [row for row in rows_of(audited) if row["unit"] == 1]
    assert one["num_photographs"] == len(of_class) == PER_CLASS
    own, rest = (
        Paths.joined([Paths.of(seen(path), mini, layers) for path in some])
        for some in (of_class, [path for _, path in others])
    )
    reference = Reference(own, rest)
    picture = Paths.of(tensor_of(looked / one["file_name"]) / 255, mini, layers)
    similarity = reference.similarity(picture)
    assert [step["layer"] for step in one["path"]] == list(layers)
    for name in ("picture", "same", "other"):
        assert [step[name] for step in one["path"]] == pytest.approx(getattr(similarity, name), abs=1e-3)
    assert one["similarity"] == pytest.approx(similarity.normalised, abs=0.01)
    assert (one["unusual"], one["usual"]) == pytest.approx((reference.unusual(picture), reference.usual), abs=2e-3)
    units = reference.units(picture)
    assert units
    assert [(unit["layer"], unit["unit"]) for unit in one["units"]] == [(unit.layer, unit.unit) for unit in units]
    for unit, expected in zip(one["units"], units, strict=True):
        assert unit["share"] == expected.share
        assert unit["photographs"] == [str(others[n][1].relative_to(photographs)) for n in expected.photographs]


def test_classes_without_enough_photographs_are_left_out_of_that_part(audited):
    [one] = [row for row in rows_of(audited) if row["label"] == FEW]
    assert one["num_photographs"] == 0
    for name in ("similarity", "path", "unusual", "usual", "units"):
        assert one[name] is None
    assert one["seen"]


def test_the_page_shows_the_worst_first_with_pictures(audited, browser):
    for width in (1280, 390):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto((audited / "index.html").as_uri())
        rows = rows_of(audited)
        items = page.locator("ol > li")
        assert [text.splitlines()[0] for text in items.all_inner_texts()] == [row["label"] for row in rows]
        page.evaluate("for (const one of document.images) one.loading = 'eager'")
        page.wait_for_function("[...document.images].every(one => one.complete)")
        assert page.evaluate("[...document.images].every(one => one.naturalWidth)")
        assert page.locator("svg.plot").count() == sum(row["num_photographs"] > 0 for row in rows) == len(rows) - 1
        num_photographs = sum(len(unit["photographs"]) for row in rows for unit in row["units"] or ())
        assert page.locator(".units figure:not(.drawn)").count() == num_photographs > 0
        assert page.locator("img.sheet").count() == len(rows)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert Axe().run(page).response["violations"] == []
        page.close()


def test_examples_that_are_surest_and_wrong_are_shown(looked, dgn, tmp_path, browser):
    lists = pq.read_table(looked / "examples" / "examples.parquet").to_pylist()
    wrong = [row for row in lists if row["kind"] == "wrong" and row["layer"] == "fc8" and row["unit"] is not None]
    code, _, err = dgn("audit", looked, tmp_path / "out", *BY)
    assert code == 0, err
    page = browser.new_page()
    page.goto((tmp_path / "out" / "index.html").as_uri())
    assert page.locator(".row img").count() == len(wrong) > 0
    assert f"{LABELS[5]}" in page.locator(".row").first.inner_text()
    page.close()


def test_what_is_printed(rendered, photographs, dgn, tmp_path):
    code, out, err = dgn("audit", rendered, tmp_path / "out", "--images", photographs, *BY, "--top", 1)
    assert code == 0, err
    lines = out.splitlines()[-5:]
    assert lines[0] == f"4 pictures of {rendered}: {tmp_path / 'out' / 'index.html'}"
    assert lines[1] == (
        f"  3 of 4 classes compared with {3 * PER_CLASS} photographs of them in {photographs}, and with "
        f"{PER_CLASS * len(LABELS) - 2} of all classes there."
    )
    assert lines[2] == f"  Not compared, for want of 5 readable photographs: {FEW}."
    assert lines[3].startswith(
        "  Left out: 1 photograph in folders not named as classes; 1 .txt; 1 unreadable, such as "
    )
    assert lines[4] == f"  No examples yet: dgn examples {rendered} IMAGES finds them."
    html = (tmp_path / "out" / "index.html").read_text()
    assert html.count("<li>\n  <h2>") == 1
    assert "the worst first; 1 shown" in html
    for line in lines[1:]:
        assert line.strip() in html
    about = json.loads(pq.read_schema(tmp_path / "out" / "audit.parquet").metadata[b"dgn"])
    assert (about["run"], about["by"], about["images"]) == (str(rendered), BY[1], str(photographs))
    assert about["schema_version"] == 1


def test_without_photographs_the_part_that_needs_them_is_left_out(rendered, dgn, tmp_path):
    code, out, _ = dgn("audit", rendered, tmp_path / "out", *BY)
    assert code == 0
    said = "Not compared with photographs: give them with --images, in folders named as the classes."
    assert f"  {said}\n" in out
    assert said in (tmp_path / "out" / "index.html").read_text()
    assert all(row["num_photographs"] == 0 and row["units"] is None for row in rows_of(tmp_path / "out"))


def test_names_that_are_markup_are_text(rendered, photographs, dgn, tmp_path):
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    for label in LABELS[:2]:
        shutil.copytree(photographs / label, folder / label)
        for path in (folder / label).iterdir():
            path.rename(path.with_name(f"<script>{path.name}"))
    assert dgn("audit", rendered, tmp_path / "out", "--images", folder, *BY)[0] == 0
    html = (tmp_path / "out" / "index.html").read_text()
    assert "&lt;img src=x" in html
    assert "&lt;script&gt;0" in html
    assert "<img src=x" not in html
    assert "<script" not in html


@pytest.fixture(scope="module")
def filters(local_ray, tmp_path_factory):
    """A run without classes."""
    from dgn.jobs.render import render
    from dgn.runs.config import RunConfig

    folder = tmp_path_factory.mktemp("filters") / "run"
    targets = ("filters:conv1_1:0",)
    render(str(folder), RunConfig(targets=targets, discriminator="vgg16-mini", updates=2, views=1, width=WIDTH))
    return folder


def test_bad_input_ends_in_one_line_before_anything_is_written(rendered, filters, photographs, dgn, tmp_path):
    out = tmp_path / "out"
    for name in ("full", "empty", "unnamed/x", "one/star", "others/heart", "others/star"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "full" / "x").touch()
    some = photographs / LABELS[3] / "0003.png"
    for name in ("unnamed/x", "one/star", f"others/{LABELS[20]}", f"others/{LABELS[21]}"):
        (tmp_path / name).mkdir(exist_ok=True)
        shutil.copy(some, tmp_path / name)
    for arguments, says in (
        ((rendered, tmp_path / "full"), "exists and holds x: give a new or an empty folder"),
        ((tmp_path / "none", out), "no run at"),
        ((filters, out, *BY), "has no pictures of classes: expected a run of targets such as classes:0-9"),
        ((rendered, out), "efficientnet_lite0 cannot judge vgg16-mini: it has other classes"),
        ((rendered, out, "--by", "vgg16-mini"), "is the network that made these pictures"),
        ((rendered, out, "--by", "nonet"), "nonet"),
        ((rendered, out, *BY, "--images", tmp_path / "missing"), "is not there: expected a folder of photographs"),
        ((rendered, out, *BY, "--images", tmp_path / "empty"), "no pictures in"),
        ((rendered, out, *BY, "--images", tmp_path / "unnamed"), "has folders of 0 classes of vgg16-mini"),
        ((rendered, out, *BY, "--images", tmp_path / "one"), "has folders of 1 classes of vgg16-mini"),
        ((rendered, out, *BY, "--images", tmp_path / "others"), "has no photographs of the run's classes"),
        ((rendered, out, *BY, "--discriminator-weights", tmp_path / "missing.pth"), "missing.pth"),
        ((rendered, out, *BY, "--top", 0), "--top"),
    ):
        assert_one_line(dgn("audit", *arguments), 2, says)
    assert not out.exists()
