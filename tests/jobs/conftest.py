"""Runs that several files of this folder read. Nobody changes them; tests that do copy them."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from dgn.jobs.galleries.build import build_page
from tests.conftest import WIDTH
from tests.helpers.fake_alike import write_fake_alike
from tests.helpers.fake_runs import write_fake_run
from tests.helpers.firefox import a_firefox
from tests.helpers.gallery_tour import LABELS, MARKUP, a_browser, all_rows
from tests.helpers.reported import write_reported
from tests.helpers.sheets import write_shown


@pytest.fixture(scope="session")
def rendered(tmp_path_factory, local_ray):
    """Eight pictures in five shards, by the embedded classifier: filters, a group, classes and a mix of classes."""
    from dgn.jobs.render import render
    from dgn.runs.config import RunConfig

    folder = tmp_path_factory.mktemp("rendered") / "run"
    config = RunConfig(
        targets=("classes:0-2,heart", "mix:classes:1+2", "filters:conv1_1:0-1", "group:conv5_1:3*0.5+17"),
        discriminator="vgg16-mini", width=WIDTH, updates=6, views=1, precision="float32", shard_size=2, workers="1",
    )  # fmt: skip
    render(str(folder), config)
    return folder


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """The run that `dgn report` is tested with."""
    return write_reported(tmp_path_factory.mktemp("reported") / "run")


@pytest.fixture(scope="session")
def judged(rendered, tmp_path_factory):
    """The same, judged by the other embedded classifier."""
    from dgn.jobs.judge import command

    folder = tmp_path_factory.mktemp("judged") / "run"
    shutil.copytree(rendered, folder)
    command(run=str(folder), by="vgg16-mini-b", as_json=True)
    return folder


@pytest.fixture(scope="module")
def browser():
    with a_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def firefox():
    with a_firefox() as firefox:
        yield firefox


@pytest.fixture(scope="session")
def everything(tmp_path_factory):
    """6,224 rows with a page: every class in both modes and every filter of VGG-16."""
    folder = tmp_path_factory.mktemp("everything") / "run"
    build_page(write_fake_run(str(folder)), None)
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """128 rows with a page: labels that are markup, and pictures that failed in every way."""
    folder = tmp_path_factory.mktemp("small") / "run"
    labels = [
        MARKUP,
        '"><script>alert(2)</script>',
        "javascript:alert(3)",
        "鶴 crane",
        *map("class {}".format, range(996)),
    ]
    run = write_fake_run(str(folder), targets=["classes:0-63"], seeds=2, shard_size=16, labels=labels, seed=4)
    build_page(run, None)
    return folder


@pytest.fixture(scope="session")
def several(tmp_path_factory):
    """Layers of 64 and of more filters, classes in three hundreds; 88 pictures."""
    targets = ["filters:conv1_1", "filters:conv5_1:0-5,130", "classes:0-9,95-99,100,250"]
    return write_shown(tmp_path_factory.mktemp("several") / "run", targets)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Six classes in both modes from two seeds each."""
    return write_shown(tmp_path_factory.mktemp("pairs") / "run", ["classes:95-100"], seeds=2, both_modes=True)


@pytest.fixture(scope="session")
def alike(tmp_path_factory):
    """300 rows with a page and a map."""
    folder = tmp_path_factory.mktemp("alike") / "run"
    targets = ["classes:0-99", "filters:conv5_1:0-49"]
    run = write_fake_run(str(folder), targets=targets, seeds=2, shard_size=50, labels=LABELS)
    build_page(run, None)  # makes the index
    write_fake_alike(folder)
    build_page(run, None)
    return folder


@pytest.fixture(scope="session")
def figures(alike):
    """The rows with their figures, by id."""
    current = json.loads((alike / "alike" / "current.json").read_text())
    found = pq.read_table(alike / current["table"]).to_pandas()
    found["similar_ids"] = [list(found["target_id"].iloc[list(one)]) for one in found["similar"]]
    return all_rows(alike).to_pandas().merge(found, on="target_id", how="left").set_index("target_id")
