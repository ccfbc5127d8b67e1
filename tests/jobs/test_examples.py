"""`dgn examples`: what it finds, says and refuses, and where its photographs are shown."""

import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import dgn as package
from dgn.cluster.examples_worker import GONE
from dgn.jobs.galleries.build import build_page
from dgn.networks.embedded.drawings import LABELS
from dgn.runs.run import Run
from dgn.runs.stores import open_store
from tests.helpers.gallery_tour import Visitor, address, gallery_server
from tests.helpers.photographs import write_drawings
from tests.helpers.rows import assert_one_line, every_row
from tests.helpers.sheets import at, opened

NUM_PHOTOGRAPHS = 48
WANTED = ("fc8-00001", "strongest", 1)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two drawings of each class; three moved into other classes' folders, a copy, one that is broken, other files."""
    folder = write_drawings(tmp_path_factory.mktemp("photographs"), NUM_PHOTOGRAPHS)
    for n in (0, 1, 2):
        shutil.move(folder / LABELS[n] / f"{n:04d}.png", folder / LABELS[n + 3] / f"{n:04d}.png")
    shutil.copy(folder / LABELS[7] / "0007.png", folder / LABELS[8] / "again.png")
    (folder / LABELS[5] / "broken.png").write_bytes(b"\x89PNG")
    (folder / LABELS[5] / "._0005.png").write_bytes(b"\0")
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture(scope="module")
def looked(rendered, photographs, tmp_path_factory):
    """The rendered run with its examples, and what the command said."""
    from dgn.cluster.examples import find_examples

    folder = tmp_path_factory.mktemp("looked") / "run"
    shutil.copytree(rendered, folder)
    job = find_examples(Run.at(str(folder)), str(photographs), "image", {}, None, None, lambda progress: None)
    assert job.done is not None
    return folder


def rows_of(folder, **conditions):
    rows = pq.read_table(folder / "examples" / "examples.parquet").to_pylist()
    return [row for row in rows if all(row[name] == value for name, value in conditions.items())]


def test_what_was_looked_at_is_counted(looked, photographs, dgn):
    done = json.loads((looked / "examples" / "done.json").read_text())
    assert done["num_photographs"] == NUM_PHOTOGRAPHS + 2
    assert (done["num_unreadable"], done["num_copies"]) == (1, 1)
    assert done["unreadable"][0].startswith(f"{LABELS[5]}/broken.png: ")
    subjects = {row["target_id"].rsplit("-", 2)[0] for row in every_row(looked)}
    assert {row["subject"] for row in rows_of(looked)} == subjects
    code, out, err = dgn("examples", looked, photographs)
    assert code == 0, err
    assert out.startswith(f"{done['num_examples']} examples for 8 units of {looked}\n")
    assert "  from 49 photographs; 1 of them copies of others, which count once; 1 unreadable, such as" in out
    assert "; left out: 1 ._*, 1 .txt; 49 in folders named as classes\n" in out
    assert json.loads(dgn("examples", looked, photographs, "--json")[1]) == done


def test_the_strongest_photographs_of_a_class_are_of_it_and_strays_are_wrong(looked):
    strongest = rows_of(looked, subject="fc8-00001", kind="strongest")
    assert [row["place"] for row in strongest] == list(range(1, 10))
    values = [row["activation"] for row in strongest]
    assert values == sorted(values, reverse=True)
    assert {row["label"] for row in strongest} == {LABELS[1]}
    own = [row["photograph"] for row in strongest[:2]]
    assert sorted(name.rpartition("/")[2] for name in own) == ["0001.png", "0025.png"]
    wrong = rows_of(looked, subject="fc8-00001", kind="wrong")
    [stray] = [row for row in wrong if row["photograph"].endswith("0001.png")]
    assert (stray["true_class"], stray["activation"]) == (4, None)
    assert stray["probability"] > 0.5


def test_filters_have_places_and_no_probability(looked):
    rows = rows_of(looked, layer="conv1_1")
    assert rows
    for row in rows:
        assert row["probability"] is None
        assert 0 <= row["box_left"] < row["box_right"] <= 1
        assert row["activation"] > 0
    assert all(row["box_left"] is None for row in rows_of(looked, layer="fc8"))


@pytest.mark.parametrize("name", ["examples.parquet", "photographs.parquet"])
def test_other_readers_read_the_files(looked, name):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    path = looked / "examples" / name
    count = pq.read_table(path).num_rows
    assert len(pandas.read_parquet(path)) == len(polars.read_parquet(path)) == count > 20


def test_sql_and_python_read_them(looked, rendered, dgn):
    pytest.importorskip("duckdb")
    sql = "SELECT subject, max(activation) AS most FROM examples WHERE kind = 'strongest' GROUP BY 1"
    found = {
        row["subject"]: row["most"] for row in json.loads(dgn("query", looked, "--sql", sql, "--format", "json")[1])
    }
    table = package.open_run(looked).examples()
    [first] = [row for row in table.to_pylist() if (row["subject"], row["kind"], row["place"]) == WANTED]
    assert found["fc8-00001"] == first["activation"]
    answer = dgn("query", rendered, "--sql", "SELECT * FROM examples")
    assert_one_line(answer, 2, "this run has no examples yet, so no table of them: dgn examples RUN IMAGES finds them")
    with pytest.raises(package.DgnError, match="has no examples yet"):
        package.open_run(rendered).examples()


def test_sheets_show_them_after_each_units_pictures(looked, rendered, dgn, tmp_path):
    code, out, err = dgn("sheet", looked, tmp_path / "sheet.png", "--examples", "--layer", "fc8", "--columns", 2)
    assert code == 0, err
    assert out == f"5 pictures on {tmp_path / 'sheet.png'}\n"
    sheet = opened(tmp_path / "sheet.png")
    with Image.open(io.BytesIO((looked / "examples/sheets/fc8-00001.webp").read_bytes())) as image:
        wanted = np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.LANCZOS))
    assert (at(sheet, 1, 1)[0] == wanted).all()
    assert_one_line(dgn("sheet", rendered, tmp_path / "none.png", "--examples"), 2, "has no examples yet: dgn examples")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("is_served", [False, True])
def test_the_page_shows_them_beside_the_picture(looked, browser, is_served):
    build_page(Run(open_store(str(looked))), None)
    target = next(row["target_id"] for row in every_row(looked) if row["unit"] == 1 and row["layer"] == "fc8")
    with gallery_server(open_store(str(looked))) as url:
        page = f"{url}/gallery/index.html" if is_served else address(looked)
        with Visitor(browser, page) as visitor:
            visitor.page.goto(f"{page}#id={target}")
            visitor.when("document.querySelector('#detail img[src*=sheets]')?.complete")
            image = visitor.page.locator("#detail img[src*=sheets]")
            assert image.evaluate("one => one.naturalWidth") == 296
            assert image.get_attribute("alt").startswith("The photographs that excite ")
            heading = visitor.page.locator("#detail h3", has_text="Photographs that excite it most")
            assert heading.count() == 1


def test_a_run_without_examples_shows_none(rendered, browser, tmp_path):
    shutil.copytree(rendered, tmp_path / "run")
    build_page(Run(open_store(str(tmp_path / "run"))), None)
    target = every_row(rendered)[0]["target_id"]
    with Visitor(browser, address(tmp_path / "run")) as visitor:
        visitor.page.goto(address(tmp_path / "run", f"#id={target}"))
        visitor.when("document.querySelector('#detail h3')")
        assert visitor.page.locator("#detail img[src*=sheets]").count() == 0


def test_bad_input_ends_in_one_line_before_anything_is_written(rendered, photographs, looked, dgn, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(rendered, run)
    (tmp_path / "empty").mkdir()
    for arguments, says in (
        (
            (run, tmp_path / "missing"),
            "is not there: expected a folder of photographs, or s3://, gs:// or az://bucket/prefix",
        ),
        ((run, tmp_path / "empty"), "no pictures in"),
        ((run, photographs / "notes.txt"), "is a file: expected a folder of photographs"),
        ((tmp_path / "none", photographs), "no run at"),
        ((run, photographs, "--workers", "none"), "workers"),
        ((run, photographs, "--discriminator-weights", photographs / "notes.txt"), "notes.txt"),
    ):
        assert_one_line(dgn("examples", *arguments), 2, says)
    assert not (run / "examples").exists()
    others = write_drawings(tmp_path / "others", 3)
    assert_one_line(dgn("examples", looked, others), 2, "has examples of other photographs than those in")
    assert_one_line(dgn("examples", looked, photographs, "--column", "photo"), 2, "has examples of other photographs")
    for command in ("status", "failed", "query", "index", "resume", "verify", "gc"):
        answer = dgn(command, looked / "examples")
        assert_one_line(answer, 2, "examples holds the examples of a run: give the run, the folder above")


def test_lost_lists_are_made_again_from_the_shards(looked, photographs, dgn, tmp_path, local_ray):
    run = tmp_path / "run"
    shutil.copytree(looked, run)
    before = {path.name: path.read_bytes() for path in (run / "examples").glob("*.parquet")}
    (run / "examples" / "examples.parquet").unlink()
    shutil.rmtree(run / "examples" / "sheets")
    assert dgn("examples", run, photographs)[0] == 0
    assert {path.name: path.read_bytes() for path in (run / "examples").glob("*.parquet")} == before
    assert len(list((run / "examples" / "sheets").iterdir())) >= 5


def test_photographs_none_of_which_can_be_read(rendered, dgn, tmp_path, local_ray):
    folder, run = tmp_path / "broken", tmp_path / "run"
    shutil.copytree(rendered, run)
    folder.mkdir()
    for n in range(2):
        (folder / f"{n}.jpg").write_bytes(b"\xff\xd8\xff")
    answer = dgn("examples", run, folder)
    assert_one_line(answer, 2, f"none of 2 photographs in {folder} can be read, such as 0.jpg: ")


def test_a_folder_that_is_away_is_no_folder_of_lost_photographs(rendered, tmp_path):
    """As an unmounted mount point is: empty."""
    from dgn.cluster.context import ExamplesContext
    from dgn.cluster.examples import subjects_of
    from dgn.cluster.examples_worker import ExamplesWorker
    from dgn.networks.weights import load_weights
    from dgn.runs.extensions import own_plan
    from dgn.runs.origin import own_config
    from dgn.runs.photographs import list_photographs, make_photograph_plan, photograph_store

    folder = write_drawings(tmp_path / "photographs", 5)
    store = photograph_store(str(folder))
    plan = make_photograph_plan(store, list_photographs(store), "image")
    run, weights = Run.at(str(rendered)), load_weights("vgg16-mini")
    info = run.info()
    subjects = subjects_of(own_plan(run, info, own_config(info, {}), weights.network.layers))
    worker = ExamplesWorker(ExamplesContext(str(tmp_path / "out"), "run", plan, subjects, {}), weights, None)
    path = next(folder.rglob("*.png"))
    data = path.read_bytes()
    path.unlink()
    worker.render(0, "00000000")
    assert worker.looked["00000000"].unreadable == [f"{path.relative_to(folder)}: {GONE}"]
    path.write_bytes(data)
    folder.rename(tmp_path / "elsewhere")
    folder.mkdir()
    with pytest.raises(package.StoreError, match=f"none of 5 photographs of {folder} is there: is it mounted"):
        worker.render(0, "00000001")
    assert not (tmp_path / "out").exists()


def test_sheets_of_both_modes_with_examples_stand_in_threes(looked, dgn, tmp_path):
    assert dgn("sheet", looked, tmp_path / "odd.png", "--examples", "--columns", 3, "--layer", "conv1_1")[0] == 2
    assert dgn("sheet", looked, tmp_path / "even.png", "--examples", "--columns", 4, "--layer", "conv1_1")[0] == 0
