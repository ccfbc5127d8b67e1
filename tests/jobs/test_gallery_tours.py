"""A walk through the gallery in a real browser: from file://, web servers with and without ranges, and real S3."""

import contextlib
import json
import shutil

import pytest

from dgn.jobs.galleries.build import build_page
from dgn.runs.stores import open_store
from tests.helpers.fake_runs import write_fake_run
from tests.helpers.gallery_tour import (
    ALL_LOADED,
    Visitor,
    address,
    all_rows,
    gallery_server,
    plain_server,
    range_server,
    tour,
    upload,
)


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """105,808 rows in two parts. Their pictures are tiny, so that the disk is not what is measured."""
    folder = tmp_path_factory.mktemp("huge") / "run"
    build_page(write_fake_run(str(folder), seeds=17, are_flat=True), None)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def place(where, folder, request):
    """The page's address from somewhere."""
    if where == "file":
        yield address(folder)
        return
    if where == "s3":
        bucket = request.getfixturevalue("bucket")
        store = open_store(f"s3://{bucket}/a run")
        upload(folder, store)
        yield f"{store.client.meta.endpoint_url}/{bucket}/a%20run/gallery/index.html"
        return
    server = {"plain": plain_server, "ranges": range_server}.get(where)
    with server(folder) if server else gallery_server(open_store(str(folder))) as url:
        yield f"{url}/gallery/index.html"


@pytest.mark.parametrize("where", ["plain", "ranges", "serve"])
def test_a_tour_of_every_class_and_filter(where, everything, browser, request):
    with place(where, everything, request) as url:
        figures = tour(browser, url, all_rows(everything))
    print(json.dumps({"where": where, **figures}))
    assert figures["first_screen_bytes"] < 2e6


@pytest.mark.parametrize("where", ["file", "s3"])
def test_a_tour_of_a_hundred_thousand(where, huge, browser, request):
    with place(where, huge, request) as url:
        print(json.dumps({"where": where, **tour(browser, url, all_rows(huge))}))


def test_pictures_of_the_first_screen_come_in_few_requests(everything, browser):
    with range_server(everything) as url, Visitor(browser, url) as visitor:
        visitor.page.goto(f"{url}/gallery/index.html")
        visitor.when(ALL_LOADED)
        thumbs = [request for request in visitor.requests if request.url.endswith("thumbs.parquet")]
        assert 1 <= len(thumbs) <= 4
        assert visitor.page.locator("#grid img").count() > 40
