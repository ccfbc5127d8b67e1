"""The gallery in a real browser: from file://, from web servers with and without ranges, from a real S3 server."""

import contextlib
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe

from cluster.index import CURRENT_FILE, update_index
from cluster.judgements import Judge
from cluster.rows import SCHEMA
from cluster.run import Run
from cluster.storage import open_store
from jobs.gallery import BLOCK_BYTES, build_command
from tests.fake_runs import judge_at_random, write_fake_run
from tests.gallery_tour import (
    ALL_LOADED,
    Visitor,
    a_browser,
    all_rows,
    gallery_server,
    ids_by,
    plain_server,
    range_server,
    tour,
    upload,
)

MARKUP = "<img src=x onerror=alert(1)>"
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def browser():
    with a_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """6,224 rows: every class in both modes and every filter of VGG-16."""
    folder = tmp_path_factory.mktemp("all") / "run"
    write_fake_run(str(folder))
    build_command(str(folder), None)
    return folder


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """105,808 rows in two parts."""
    folder = tmp_path_factory.mktemp("huge") / "run"
    write_fake_run(str(folder), seeds=17)
    build_command(str(folder), None)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A class with markup for a label, one that is missing in a mode, and pictures that failed."""
    folder = tmp_path_factory.mktemp("small") / "run"
    labels = [
        MARKUP,
        '"><script>alert(2)</script>',
        "javascript:alert(3)",
        "鶴 crane",
        *[f"class {n}" for n in range(996)],
    ]
    write_fake_run(str(folder), targets=["classes:0-63"], seeds=2, shard_size=16, labels=labels, seed=4)
    build_command(str(folder), None)
    return folder


@contextlib.contextmanager
def place(where, folder, request):
    """The page's address from somewhere."""
    if where == "file":
        yield (folder / "gallery" / "index.html").as_uri()
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


@pytest.mark.parametrize("where", ["file", "plain", "ranges", "serve", "s3"])
def test_a_tour_of_every_class_and_filter(where, everything, browser, request):
    with place(where, everything, request) as url:
        figures = tour(browser, url, all_rows(everything))
    print(json.dumps({"where": where, **figures}))
    assert figures["first_screen_bytes"] < 2e6


@pytest.mark.parametrize("where", ["file", "plain", "s3"])
def test_a_tour_of_a_hundred_thousand(where, huge, browser, request):
    with place(where, huge, request) as url:
        print(json.dumps({"where": where, **tour(browser, url, all_rows(huge))}))


def address(folder, hash_=""):
    return (folder / "gallery" / "index.html").as_uri() + hash_


def visit(browser, url, **context):
    visitor = Visitor(browser, url, **context)
    visitor.page.goto(url)
    visitor.when("document.documentElement.dataset.ready")
    return visitor


def test_labels_are_text(small, browser):
    dialogs = []
    with visit(browser, address(small, "#sort=label")) as visitor:
        page = visitor.page
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.fill("[name=q]", "<img src=x")
        visitor.when("document.querySelectorAll('#grid a').length === 2")
        assert page.locator("#grid .name").first.inner_text() == MARKUP
        assert page.locator("#grid a").first.get_attribute("title").startswith(MARKUP)
        page.locator("#grid a").first.click()
        visitor.when("document.querySelector('dialog[open] dl')")
        assert page.locator("#detail-title").inner_text() == MARKUP
        page.keyboard.press("Escape")
        page.goto(address(small, f"#q={MARKUP}&layer={MARKUP}&sort={MARKUP}&id={MARKUP}"))
        page.wait_for_timeout(200)
        assert page.locator("script").count() == 7
        assert page.locator("img[src=x]").count() == 0
        assert not dialogs
        assert not visitor.complaints


def test_failed_pictures_say_why(small, browser):
    rows = [row for row in all_rows(small).to_pylist() if row["status"] != "ok"]
    assert {row["status"] for row in rows} == {"not_converged", "dead", "nonfinite"}
    for row in rows:
        with visit(browser, address(small, f"#status={row['status']}&id={row['target_id']}")) as visitor:
            page = visitor.page
            visitor.when("document.querySelector('dialog[open] dl')")
            reason = page.locator("#detail-words").inner_text()
            assert row["status"].replace("_", " ") in reason
            assert ("not finite" if row["status"] == "nonfinite" else "saved picture") in reason
            assert page.locator("dialog figure img").count() == (row["status"] != "nonfinite")
            page.keyboard.press("Escape")
            assert set(visitor.items()) == {other["target_id"] for other in rows if other["status"] == row["status"]}
            boxes = page.locator("#grid .box").all_inner_texts()
            assert boxes == ["no picture"] * (len(visitor.items()) if row["status"] == "nonfinite" else 0)
            assert not visitor.complaints


def test_a_missing_picture_is_shown_as_missing(small, browser, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(small, copy)
    shutil.rmtree(copy / "images")
    with visit(browser, address(copy, "#id=fc8-00009-untrained-s0")) as visitor:
        visitor.when("document.querySelector('dialog[open] figure .box')")
        assert "picture missing: images/fake/" in visitor.page.locator("dialog figure .box").inner_text()
        for path in copy.glob("gallery/data/index/*/thumbs.parquet"):
            shutil.rmtree(path)
        visitor.page.reload()
        visitor.when("document.querySelectorAll('#grid .box').length > 20")
        assert "no thumbnail" in visitor.page.locator("#grid .box").all_inner_texts()


def test_both_modes_stand_side_by_side(everything, browser):
    with visit(browser, address(everything, "#layer=fc8&pair=1&sort=unit")) as visitor:
        page = visitor.page
        assert page.locator("#count").inner_text() == "1,000 targets"
        assert visitor.items()[:3] == [f"fc8-{unit:05d}-untrained-s0" for unit in range(3)]
        first = page.locator("#grid a").first
        assert first.locator(".pictures > *").count() == 2
        assert "untrained" in first.get_attribute("aria-label")
        assert "pretrained" in first.get_attribute("aria-label")
        first.click()
        link = page.get_by_role("link", name="The same target, pretrained")
        link.click()
        visitor.when("location.hash.endsWith('fc8-00000-pretrained-s0')")
        visitor.when("document.querySelector('dialog').innerText.includes('fc8-00000-pretrained-s0')")


def captions_of(page):
    return page.locator("#grid .figures").all_inner_texts()


@pytest.mark.parametrize(("sort", "of"), [("label", "activation"), ("rank", "rank"), ("probability", "probability")])
def test_captions_tell_what_is_sorted_by_and_what_failed(everything, browser, sort, of):
    rows = {row["target_id"]: row for row in all_rows(everything).to_pylist()}
    told = set()
    for hash_ in ("", "&status=not_converged", "&status=nonfinite", "&pair=1"):
        where = address(everything, f"#layer=fc8&sort={sort}{hash_}")
        with visit(browser, where, viewport={"width": 390, "height": 844}) as visitor:
            captions, items = captions_of(visitor.page), visitor.items()
            if "pair" in hash_:
                items = [one for item in items for one in (item, item.replace("-untrained-", "-pretrained-"))]
            for caption, row in zip(captions, map(rows.get, items), strict=True):
                first, status = caption.split("\n")
                figure, _, mode = first.rpartition(" ")
                assert mode == row["mode"]
                assert status == row["status"].replace("_", " ").removeprefix("ok")
                if row[of] is None:
                    assert figure == "–"
                else:
                    assert figure.startswith("rank ") == (sort == "rank")
                    assert float(figure.removeprefix("rank ")) == pytest.approx(row[of], rel=1e-3)
                told.add(status)
            cut = "all => all.filter(one => one.scrollWidth > one.clientWidth).length"
            assert visitor.page.eval_on_selector_all("#grid .figures", cut) == 0
            ends = "rows => rows.map(row => [row.getBoundingClientRect().top, row.getBoundingClientRect().bottom])"
            rows_px = visitor.page.eval_on_selector_all("[role=row]", ends)
            assert all(bottom <= top for (_, bottom), (top, _) in itertools.pairwise(rows_px))
    assert told >= {"", "not converged", "nonfinite"}


def test_figures_are_not_rounded_up_to_1(small, browser):
    shown = {
        0.99984: "0.9998", 0.99996: "0.99996", 0.99999994: "0.9999999", 1: "1", 1.00001: "1", 0: "0", -0.5: "-0.5",
        0.0065481: "0.006548", 0.00012344: "1.234e-4", 1.23456e-12: "1.235e-12", 12345.6: "12,350", None: "",
    }  # fmt: skip
    with visit(browser, address(small)) as visitor:
        assert visitor.page.evaluate("values => values.map(number)", list(shown)) == list(shown.values())


def test_a_run_without_pictures_says_so(browser, tmp_path):
    run = write_fake_run(str(tmp_path / "run"), targets=["classes:0-3"], has_pictures=False)
    shutil.rmtree(tmp_path / "run" / "metadata")
    build_command(run.store.url, None)
    with visit(browser, address(tmp_path / "run")) as visitor:
        assert visitor.page.locator("#count").inner_text() == "0 of 0 pictures, 4 not made yet"
        assert visitor.page.locator("#message").inner_text() == "No picture has been made yet."
        assert not visitor.complaints


def test_at_phone_width_the_filters_fold_away(small, browser):
    with visit(browser, address(small), viewport={"width": 390, "height": 844}) as visitor:
        page = visitor.page
        assert page.locator("#grid").bounding_box()["y"] < 140
        assert not page.locator("[name=status]").is_visible()
        page.focus("#theme")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.select_option("[name=status]", "dead")
        visitor.when("location.hash === '#status=dead'")
        page.click("#fold summary")
        assert not page.locator("[name=status]").is_visible()
        page.set_viewport_size({"width": 1280, "height": 860})
        visitor.when("document.getElementById('fold').open")
        assert page.locator("[name=status]").is_visible()
        assert not page.locator("#fold summary").is_visible()


def test_judges_of_one_network_stay_apart(browser, tmp_path):
    """Their weights are of two files; of a network that judged once the name is enough."""
    run = write_fake_run(str(tmp_path / "run"), targets=["classes:0-3"], shard_size=4)
    ranks = {}
    for judge in (Judge("vgg11", "a" * 64), Judge("vgg11", "b" * 64), Judge("resnet18", "c" * 64)):
        judge_at_random(run, 0, random.Random(judge.sha256), judge)
        [judged] = (tmp_path / "run" / "judgements" / judge.folder).iterdir()
        ranks[judge.folder] = {row["target_id"]: row["judge_rank"] for row in pq.read_table(judged).to_pylist()}
    build_command(run.store.url, None)
    with visit(browser, address(tmp_path / "run", "#sort=judge vgg11-bbbbbbbb")) as visitor:
        choices = visitor.page.locator("[name=sort] option").all_inner_texts()
        assert choices[-3:] == ["rank by resnet18", "rank by vgg11-aaaaaaaa", "rank by vgg11-bbbbbbbb"]
        assert visitor.items() == sorted(ranks["vgg11-bbbbbbbb"], key=ranks["vgg11-bbbbbbbb"].get)
        captions = [caption.splitlines()[0].strip() for caption in captions_of(visitor.page)]
        assert captions == [f"rank {rank}" for rank in sorted(ranks["vgg11-bbbbbbbb"].values())]
        visitor.page.locator("#grid a").first.click()
        visitor.when("document.querySelector('dialog[open] dl')")
        said = visitor.page.locator("dialog dl").first.inner_text().splitlines()
        first = visitor.items()[0]
        for folder, title in zip(ranks, ("vgg11-aaaaaaaa", "vgg11-bbbbbbbb", "resnet18"), strict=True):
            assert said[said.index(f"Rank by {title}") + 1] == f"{ranks[folder][first]}"


def test_filters_by_activation_and_words(everything, browser):
    rows = all_rows(everything).to_pandas()
    with visit(browser, address(everything)) as visitor:
        page = visitor.page
        page.fill("[name=min]", "40")
        page.fill("[name=max]", "41.5")
        expected = rows[(rows["activation"] >= 40) & (rows["activation"] <= 41.5)]
        visitor.when(f"document.getElementById('count').innerText.startsWith('{len(expected)} of')")
        page.fill("[name=q]", "conv5 untrained")
        expected = expected[expected["target_id"].str.contains("conv5")]
        visitor.when(f"document.getElementById('count').innerText.startsWith('{len(expected)} of')")
        assert set(visitor.items()) == set(expected["target_id"])
        page.fill("[name=q]", "no such thing")
        visitor.when("!document.getElementById('message').hidden")
        assert page.locator("#message").inner_text() == "No picture is like this. Clear takes all filters away."
        assert page.locator("#count").inner_text() == "0 of 6,224 pictures"
        page.click("text=Clear")
        visitor.when("document.getElementById('count').innerText.startsWith('6,224 of')")
        assert page.locator("[name=q]").input_value() == ""


def test_an_address_that_somebody_sent(everything, browser):
    wanted = ids_by(all_rows(everything), "activation", layer="conv4_2")[7]
    with visit(browser, address(everything, f"#layer=conv4_2&sort=activation&id={wanted}")) as visitor:
        visitor.when("document.querySelector('dialog[open] dl')")
        assert wanted in visitor.page.locator("dialog").inner_text()
        words = visitor.page.locator("#detail-words").inner_text()
        assert words.startswith(f"conv4_2, unit {int(wanted.split('-')[1])}, {wanted.split('-')[2]}, ")
        assert visitor.page.locator("[name=layer]").input_value() == "conv4_2"
    with visit(browser, address(everything, "#id=fc8-99999-untrained-s0")) as visitor:
        assert "no picture fc8-99999-untrained-s0" in visitor.page.locator("#message").inner_text()


def test_the_keyboard_reaches_every_picture(everything, browser):
    with visit(browser, address(everything, "#layer=conv5_1&sort=unit")) as visitor:
        page = visitor.page

        def focused():
            return page.evaluate("document.activeElement.hash?.match(/id=(.*)-untrained/)?.[1]")

        page.focus("button[type=reset]")
        page.keyboard.press("Tab")
        if focused() is None:  # the grid itself, which scrolls
            page.keyboard.press("Tab")
        assert focused() == "conv5_1-00000"
        columns = int(page.locator("#grid").get_attribute("aria-colcount"))
        for key, unit in (("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0)):
            page.keyboard.press(key)
            assert focused() == f"conv5_1-{unit:05d}"
        page.keyboard.press("End")
        assert focused() == "conv5_1-00511"
        page.keyboard.press("Enter")
        visitor.when("document.querySelector('dialog[open] dl')")
        assert "conv5_1-00511" in page.locator("dialog").inner_text()
        assert page.locator("#next").is_disabled()
        page.keyboard.press("ArrowLeft")
        visitor.when("document.querySelector('dialog').innerText.includes('conv5_1-00510')")
        page.keyboard.press("Escape")
        visitor.when("document.activeElement.hash?.includes('conv5_1-00510')")
        page.keyboard.press("Home")
        assert focused() == "conv5_1-00000"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(small, browser, scheme, width):
    hashes = ["", "#status=nonfinite", "#pair=1", "#q=nothing", "#id=fc8-00003-untrained-s0"]
    for hash_ in hashes:
        look = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme}
        with visit(browser, address(small, hash_), **look) as visitor:
            if "id=" in hash_:
                visitor.when("document.querySelector('dialog[open] dl')")
            if width == 390 and not hash_:
                visitor.page.click("#fold summary")
            found = Axe().run(visitor.page).response["violations"]
            assert [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found] == [], hash_
            assert visitor.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_colours_are_kept(everything, browser):
    with plain_server(everything) as url, visit(browser, f"{url}/gallery/index.html", color_scheme="light") as visitor:
        page = visitor.page

        def background():
            return page.evaluate("getComputedStyle(document.body).backgroundColor")

        light = background()
        page.click("#theme")
        page.click("#theme")
        assert page.locator("#theme").inner_text() == "Colours: dark"
        assert background() != light
        page.reload()
        assert page.locator("#theme").inner_text() == "Colours: dark"


def test_an_index_that_grew_is_shown_after_another_build(everything, browser, tmp_path):
    folder = tmp_path / "run"
    write_fake_run(str(folder), targets=["classes:0-39"], shard_size=4)
    away = sorted((folder / "metadata").iterdir())[6:]
    for path in away:
        path.rename(tmp_path / path.name)
    build_command(str(folder), None)
    with visit(browser, address(folder)) as visitor:
        assert visitor.page.locator("#count").inner_text() == "24 of 24 pictures, 16 not made yet"
    for path in away:
        (tmp_path / path.name).rename(path)
    build_command(str(folder), None)
    with visit(browser, address(folder)) as visitor:
        assert visitor.page.locator("#count").inner_text() == "40 of 40 pictures"
    index = update_index(Run(open_store(str(folder))))
    [part], [former] = index.parts, index.former
    data = folder / "gallery" / "data"

    def written():
        return {path.parent.parent.name for path in data.rglob("*.js") if path.name != "index.js"}

    assert written() == {part.id, former}  # a page may be open
    scripts = list((data / "index" / part.id).rglob("*.js"))
    assert len(scripts) == -(-part.rows_bytes // BLOCK_BYTES) + -(-part.thumbs_bytes // BLOCK_BYTES)
    update_index(Run(open_store(str(folder))), rebuild=True)
    current = json.loads((folder / CURRENT_FILE).read_text())
    (folder / CURRENT_FILE).write_text(json.dumps({**current, "former": {}}))  # a day later
    build_command(str(folder), None)
    assert written() == {current["parts"][0]["id"]}
    build_command(str(folder), False)
    assert not list(data.rglob("*.js"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "index" / "current.json").unlink(), "this run has no index yet: dgn index RUN"),
        (lambda folder: (folder / "index" / "current.json").write_text("{"), "The gallery cannot be shown"),
        (lambda folder: (folder / "index" / "current.json").write_text('{"version": 2}'), "version 2, this page reads"),
        (lambda folder: [path.unlink() for path in folder.glob("index/*/rows.parquet")], "the server answers 404"),
    ],
)
def test_what_cannot_be_shown_is_said(small, browser, tmp_path, spoil, says):
    copy = tmp_path / "run"
    shutil.copytree(small, copy)
    spoil(copy)
    with range_server(copy) as url, Visitor(browser, url) as visitor:
        visitor.page.goto(f"{url}/gallery/index.html")
        visitor.when("!document.getElementById('message').hidden")
        assert says in visitor.page.locator("#message").inner_text()


def test_where_scripts_are_needed_and_missing_it_is_said(small, browser, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(small, copy, ignore=shutil.ignore_patterns("gallery"))
    build_command(str(copy), False)
    assert not (copy / "gallery" / "data").exists()
    with plain_server(copy) as url, Visitor(browser, "") as visitor:
        for place, why in ((address(copy), "file://"), (f"{url}/gallery/index.html", "does not know byte ranges")):
            visitor.page.goto(place)
            visitor.when("!document.getElementById('message').hidden")
            said = visitor.page.locator("#message").inner_text()
            assert why in said
            assert "dgn gallery build RUN --file writes them" in said


def test_a_picture_is_asked_for_as_a_path_below_the_run(small, browser, tmp_path):
    """File names are other people's text too."""
    folder = tmp_path / "run"
    names = ["javascript:alert(1)", "a?b#c.png", '"><b>.png', "http://127.0.0.1:1/x.png", "../x.png", "images//x.png"]
    write_fake_run(str(folder), targets=[f"classes:0-{len(names) - 1}"], shard_size=len(names))
    [path] = (folder / "metadata").iterdir()
    rows = pq.read_table(path).to_pylist()
    for row, name in zip(rows, names, strict=True):
        row["file_name"], row["status"] = name, "ok"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    build_command(str(folder), None)
    with visit(browser, address(folder)) as visitor:
        page = visitor.page
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        for unit in range(len(names)):
            page.goto(address(folder, f"#id=fc8-{unit:05d}-untrained-s0"))
            visitor.when(f"document.querySelector('dialog[open]')?.innerText.includes('fc8-{unit:05d}')")
            visitor.when("document.querySelector('dialog figure .box')")
        assert len(asked) >= 4
        assert all(url.startswith(folder.as_uri()) for url in asked if not url.startswith(("data:", "blob:")))
        assert page.locator("#grid b").count() == page.locator("dialog b").count() == 0


def test_the_server_is_for_this_machine_and_for_pictures_only(small):
    line = [sys.executable, "-m", "jobs", "gallery", "serve", str(small)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        said = process.stdout.readline()
        url = said.rstrip().rpartition(" ")[2].removesuffix("/gallery/index.html")
        assert url.startswith("http://127.0.0.1:")

        def get(path, **headers):
            request = urllib.request.Request(url + path, headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                return error.code, b""

        assert get("/")[1].startswith(b"<!doctype html>")
        current = (small / "index" / "current.json").read_bytes()
        assert get("/index/current.json") == (200, current)
        assert get("/index/current.json", Range="bytes=3-9") == (206, current[3:10])
        for path in ("/run.json", "/metadata/000000.parquet", "/index/../run.json", "/index/%2e%2e/run.json",
                     "/images/%2e%2e/%2e%2e/secret", "/gallery/../run.json", "/index/none"):  # fmt: skip
            assert get(path)[0] in (404, 502), path
        assert get("/index/current.json", Host="evil.example:80")[0] == 403
        assert get("/index/current.json", Host="localhost")[0] == 200
        assert get("/index/current.json", Range="bytes=0-99999999") == (206, current)
        assert get("/index/current.json", Range="bytes=-5") == (206, current[-5:])
        for span in ("bytes=5-2", "bytes=99999999-", "bytes=99999999-999999999", "pages=1-2"):
            assert get("/index/current.json", Range=span)[0] == 416, span
        (small / "images" / "page%41.html").write_text("<script>alert(1)</script>")
        with urllib.request.urlopen(f"{url}/images/page%2541.html", timeout=10) as answer:
            assert answer.headers["Content-Type"] == "application/octet-stream"
            assert answer.headers["Content-Security-Policy"].endswith("sandbox")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
    assert process.returncode == 0  # how one ends a server


def test_bad_input_is_one_line(small, dgn, tmp_path):
    for line, says in (
        (["gallery", "build", tmp_path / "none"], "no run at"),
        (["gallery", "serve", tmp_path / "none"], "no run at"),
        (["gallery", "serve", small, "--port", "70000"], "Invalid value for '--port'"),
        (["gallery", "make", small], "No such command 'make'"),
    ):
        code, out, err = dgn(*line)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert says in err


def test_pictures_of_the_first_screen_come_in_few_requests(everything, browser):
    with range_server(everything) as url, Visitor(browser, url) as visitor:
        visitor.page.goto(f"{url}/gallery/index.html")
        visitor.when(ALL_LOADED)
        thumbs = [request for request in visitor.requests if request.url.endswith("thumbs.parquet")]
        assert 1 <= len(thumbs) <= 4
        assert visitor.page.locator("#grid img").count() > 40
