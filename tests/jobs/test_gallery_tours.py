"""A walk through the gallery in a real browser: from file://, web servers with and without ranges, and real S3."""

import json
import shutil

import pytest

from dgn.jobs.galleries.build import build_page
from tests.helpers.fake_runs import write_fake_run
from tests.helpers.gallery_tour import (
    ALL_LOADED,
    Visitor,
    all_rows,
    place,
    range_server,
    tour,
)


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """105,808 rows in two parts. Their pictures are tiny, so that the disk is not what is measured."""
    folder = tmp_path_factory.mktemp("huge") / "run"
    build_page(write_fake_run(str(folder), seeds=17, are_flat=True), None)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("where", ["plain", "ranges", "serve"])
def test_a_tour_of_every_class_and_filter(where, everything, browser):
    with place(where, everything) as url, Visitor(browser, url) as visitor:
        figures = tour(visitor, url, all_rows(everything))
    print(json.dumps({"where": where, **figures}))
    assert figures["first_screen_bytes"] < 2e6


@pytest.mark.parametrize("where", ["file", "s3"])
def test_a_tour_of_a_hundred_thousand(where, huge, browser, request):
    bucket = request.getfixturevalue("bucket") if where == "s3" else None
    with place(where, huge, bucket) as url, Visitor(browser, url) as visitor:
        print(json.dumps({"where": where, **tour(visitor, url, all_rows(huge))}))


def test_pictures_of_the_first_screen_come_in_few_requests(everything, browser):
    with range_server(everything) as url, Visitor(browser, url) as visitor:
        visitor.page.goto(f"{url}/gallery/index.html")
        visitor.when(ALL_LOADED)
        thumbs = [request for request in visitor.requests if request.url.endswith("thumbs.parquet")]
        assert 1 <= len(thumbs) <= 4
        assert visitor.page.locator("#grid img").count() > 40
