"""`dgn gallery`: the page's files, who may ask its server for what, and what the page says where it cannot be shown."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from dgn.jobs.galleries.build import BLOCK_BYTES, build_page
from dgn.runs.index import update_index
from dgn.runs.layout import INDEX_FILE
from dgn.runs.run import Run
from dgn.runs.schema import COLUMNS, SCHEMA
from tests.helpers.fake_runs import write_fake_run
from tests.helpers.gallery_tour import ALL_LOADED, Visitor, address, in_a_thread, plain_server, range_server, visit

ROOT = Path(__file__).parent.parent.parent
PASSED_ON = ("Content-Type", "Content-Range", "Cache-Control", "Location")


def test_the_page_takes_its_columns_from_the_one_definition(small):
    """No script of the page has a list of its own, and every column that it names is one of the rows."""
    folder = small / "gallery"
    script = (folder / "columns.js").read_text()
    columns = json.loads(script[script.index("{") :])
    for grid, names in (("coded", "coded"), ("number", "numbers"), ("plain", "plain")):
        wanted = [column.name for column in COLUMNS if column.grid == grid]
        assert columns[names] == [*wanted, *(["thumb_offset", "thumb_bytes"] if grid == "number" else [])]
    for section in ("scores", "origin"):
        assert columns[section] == [[column.name, column.title] for column in COLUMNS if column.section == section]
    assert 'src="columns.js"' in (folder / "index.html").read_text()
    titles = [column.title for column in COLUMNS if column.section and " " in column.title]
    assert len(titles) > 5
    others = "".join(path.read_text() for path in folder.glob("*.js") if path.name != "columns.js")
    assert not [title for title in titles if title in others]


def test_an_index_that_grew_is_shown_after_another_build(everything, browser, tmp_path):
    folder = tmp_path / "run"
    write_fake_run(str(folder), targets=["classes:0-39"], shard_size=4)
    away = sorted((folder / "metadata").iterdir())[6:]
    for path in away:
        path.rename(tmp_path / path.name)
    build_page(Run.at(str(folder)), None)
    with visit(browser, address(folder)) as visitor:
        assert visitor.page.locator("#count").inner_text() == "24 of 24 pictures, 16 not rendered yet"
    for path in away:
        (tmp_path / path.name).rename(path)
    build_page(Run.at(str(folder)), None)
    with visit(browser, address(folder)) as visitor:
        assert visitor.page.locator("#count").inner_text() == "40 of 40 pictures"
    index = update_index(Run.at(str(folder)))
    [part], [former] = index.parts, index.former
    data = folder / "gallery" / "data"

    def written():
        return {path.parent.parent.name for path in data.rglob("*.js") if path.name != "index.js"}

    assert written() == {part.id, former}  # a page may be open
    scripts = list((data / "index" / part.id).rglob("*.js"))
    assert len(scripts) == -(-part.rows_bytes // BLOCK_BYTES) + -(-part.thumbs_bytes // BLOCK_BYTES)
    update_index(Run.at(str(folder)), rebuild=True)
    current = json.loads((folder / INDEX_FILE).read_text())
    (folder / INDEX_FILE).write_text(json.dumps({**current, "former": {}}))  # a day later
    build_page(Run.at(str(folder)), None)
    assert written() == {current["parts"][0]["id"]}
    build_page(Run.at(str(folder)), False)
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
    build_page(Run.at(str(copy)), False)
    assert not (copy / "gallery" / "data").exists()
    with plain_server(copy) as url, Visitor(browser, "") as visitor:
        for place, why in ((address(copy), "file://"), (f"{url}/gallery/index.html", "without byte ranges")):
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
    build_page(Run.at(str(folder)), None)
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


@contextlib.contextmanager
def serving(folder, *flags):
    """`dgn gallery serve` in a process of its own. Gives its address, without a path."""
    line = [sys.executable, "-m", "dgn.jobs", "gallery", "serve", str(folder), *flags]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        said = process.stdout.readline()
        yield said.rstrip().rpartition(" ")[2].removesuffix("/gallery/index.html")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
    assert process.returncode == 0  # how one ends a server


def get(url, **headers):
    """Status and body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_server_is_for_this_machine_and_for_pictures_only(small, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(small, folder, ignore=shutil.ignore_patterns("gallery"))
    with serving(folder) as url:
        assert url.startswith("http://127.0.0.1:")
        assert get(f"{url}/")[1].startswith(b"<!doctype html>")
        assert b"const COLUMNS = {" in get(f"{url}/gallery/columns.js")[1]
        current = (folder / "index" / "current.json").read_bytes()
        index = f"{url}/index/current.json"
        assert get(index) == (200, current)
        assert get(index, Range="bytes=3-9") == (206, current[3:10])
        shard = (folder / "metadata" / "000000.parquet").read_bytes()  # in which pictures may be packed
        assert get(f"{url}/metadata/000000.parquet", Range="bytes=4-99") == (206, shard[4:100])
        for path in ("/run.json", "/verified.json", "/index/../run.json", "/index/%2e%2e/run.json",
                     "/images/%2e%2e/%2e%2e/secret", "/gallery/../run.json", "/index/none"):  # fmt: skip
            assert get(url + path)[0] in (404, 502), path
        for host in ("evil.example:80", "evil.example", "[", "a b", "user@127.0.0.1", "127.0.0.1:x"):
            assert get(index, Host=host)[0] == 403, host
        assert get(index, Host="localhost")[0] == get(index, Host="LOCALHOST:1")[0] == 200
        assert get(index, Range="bytes=0-99999999") == (206, current)
        assert get(index, Range="bytes=-5") == (206, current[-5:])
        for span in ("bytes=5-2", "bytes=99999999-", "bytes=99999999-999999999", "pages=1-2"):
            assert get(index, Range=span)[0] == 416, span
        (folder / "images" / "page%41.html").write_text("<script>alert(1)</script>")
        with urllib.request.urlopen(f"{url}/images/page%2541.html", timeout=10) as answer:
            assert answer.headers["Content-Type"] == "application/octet-stream"
            assert answer.headers["Content-Security-Policy"].endswith("sandbox")


def proxy(upstream, prefix):
    """A reverse proxy that passes the Host header on, and serves below a path of its own."""

    async def forward(request):
        address = upstream + request.path_qs.removeprefix(prefix)
        async with (
            aiohttp.ClientSession() as session,
            session.get(address, headers=request.headers, allow_redirects=False) as answer,
        ):
            kept = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)

    app = web.Application()
    app.router.add_get(prefix + "/{path:.*}", forward)
    return in_a_thread(app)


def test_a_proxy_passes_on_a_name_that_is_allowed(small, browser):
    with serving(small, "--host-header", "gallery.localhost", "--host-header", "2001:DB8::1") as upstream:
        index = f"{upstream}/index/current.json"
        for host in ("gallery.localhost", "Gallery.LocalHost:8443", "[2001:db8::1]", "[2001:db8::1]:443", "127.0.0.1"):
            assert get(index, Host=host)[0] == 200, host
        for host in ("evil.example", "gallery.localhost.evil.example", "2001:db8::1", "[2001:db8::2]"):
            status, said = get(index, Host=host)
            assert status == 403, host
        assert b"only for 127.0.0.1, localhost, gallery.localhost, 2001:db8::1: --host-header NAME" in said
        with proxy(upstream, "/of/dgn") as url:
            place = url.replace("127.0.0.1", "gallery.localhost")  # browsers look for it on loopback
            with visit(browser, f"{place}/of/dgn/") as visitor:
                assert visitor.page.url == f"{place}/of/dgn/gallery/index.html"
                assert visitor.text("#count") == "128 of 128 pictures"
                visitor.when(ALL_LOADED)
                visitor.click("#grid a")
                visitor.when("document.querySelector('dialog[open] figure img')?.naturalWidth === 224")
                assert not visitor.complaints, visitor.complaints
            with Visitor(browser, url) as visitor:
                assert visitor.page.goto(f"{url.replace('127.0.0.1', 'other.localhost')}/of/dgn/").status == 403


def test_bad_input_is_one_line(small, dgn, tmp_path):
    for line, says in (
        (["gallery", "build", tmp_path / "none"], "no run at"),
        (["gallery", "serve", tmp_path / "none"], "no run at"),
        (["gallery", "serve", small, "--port", "70000"], "Invalid value for '--port'"),
        (["gallery", "make", small], "No such command 'make'"),
        *(
            (["gallery", "serve", small, f"--host-header={name}"], f"--host-header {name!r}: expected a host's name")
            for name in ("", "https://a.example", "a.example/dgn", "a b", "*.example", "a.example:http", "[::1")
        ),
    ):
        code, out, err = dgn(*line)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert says in err
