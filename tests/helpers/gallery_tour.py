"""A walk through a gallery in a real browser, the same for every place that it may lie in."""

import asyncio
import contextlib
import functools
import http.server
import math
import shutil
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import sync_playwright

from dgn.jobs.galleries.server import application
from dgn.runs.stores import open_store

BROWSERS = ("chromium", "google-chrome", "chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
MARKUP = "<img src=x onerror=alert(1)>"  # a label
LABELS = [MARKUP, "=HYPERLINK(1)", "-dash, comma", 'a "quoted" label', *map("class {}".format, range(996))]
MOST_PICTURES = 120  # in the page
MARGIN_PX = 32  # around the whole map, as in map.js
LOADED = "image => image.complete && image.naturalWidth > 0"
MAP_DRAWN = "document.getElementById('map').dataset.state === 'drawn'"  # all thumbnails that are in sight
NOW_WHEN = "ready => (%s) ? performance.now() : null"
# From the end of a line to the frame after the one that shows what is selected.
LASSO_TOOK = """
globalThis.lassoTook = null
document.querySelector('#map canvas').addEventListener('pointerup', ({ timeStamp }) => {
    requestAnimationFrame(() => setTimeout(() => { lassoTook = performance.now() - timeStamp }))
}, { once: true })
"""
NONE_MISSING = f"[...document.querySelectorAll('#grid img')].every({LOADED})"
ALL_LOADED = f"document.querySelectorAll('#grid img').length && {NONE_MISSING}"


@contextlib.contextmanager
def a_browser():
    """Debian's chromium, or another that is on the path; skips where there is none."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser on the path: none of {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Guest:
    """What a test does in a page and reads there, whichever browser shows it. A browser's own class gives `evaluate`,
    `wait`, `goto`, `press`, `click`, `choose`, `wheel`, `resize`, `back`, `forward` and `complaints`."""

    def when(self, condition, timeout_s=30):
        """Waits until it is true. Milliseconds since the page was asked for."""
        return self.wait(f"({condition}) ? performance.now() : null", timeout_s)

    def took(self, do, condition):
        """Milliseconds from an act until what it leads to."""
        start = self.evaluate("performance.now()")
        do()
        return self.when(condition) - start

    def go(self, hash_):
        """Follows another address of the same page, as a link in it would."""
        self.evaluate(
            """hash => new Promise(done => {
                addEventListener('hashchange', () => setTimeout(done), { once: true })
                location.hash = hash
            })""",
            hash_,
        )

    def text(self, selector):
        return self.evaluate("selector => document.querySelector(selector).innerText", selector)

    def count(self, selector):
        return self.evaluate("selector => document.querySelectorAll(selector).length", selector)

    def hash(self):
        return self.evaluate("location.hash")

    def captioned(self):
        """Id and captions of the items that are in the page, in order; at one moment, because the grid may change."""
        captions = "[...link.querySelectorAll('.figures')].map(caption => caption.innerText)"
        cells = self.evaluate(
            f"[...document.querySelectorAll('#grid a')].map(link => [link.hash, {captions}])",
        )
        return [(dict(pair.split("=") for pair in hash_[1:].split("&"))["id"], texts) for hash_, texts in cells]

    def items(self):
        return [target_id for target_id, _ in self.captioned()]


class Visitor(Guest):
    """In Chromium, by Playwright. Knows the page's requests too."""

    def __init__(self, browser, url, **context):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **context})
        self.page, self.url = self.context.new_page(), url
        self.requests, self.complaints = [], []
        self.page.on("requestfinished", lambda request: self.requests.append(request))
        self.page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.evaluate, self.goto = self.page.evaluate, self.page.goto
        self.click, self.choose, self.press = self.page.click, self.page.select_option, self.page.keyboard.press
        self.back, self.forward = self.page.go_back, self.page.go_forward

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def wait(self, code, timeout_s):
        return self.page.wait_for_function(f"() => {code}", timeout=timeout_s * 1000).json_value()

    def wheel(self, px):
        self.page.mouse.move(640, 500)
        self.page.mouse.wheel(0, px)

    def resize(self, width, height):
        self.page.set_viewport_size({"width": width, "height": height})

    def traffic(self, until_ms=math.inf):
        """Bytes of all answers that had come by then, or of all files that were read from file://, and how many they
        were. `until_ms`: since the page was asked for."""
        until = self.evaluate("performance.timeOrigin") + until_ms
        seen = [one for one in self.requests if one.timing["startTime"] + max(one.timing["responseEnd"], 0) <= until]
        num_bytes = sum(
            Path(unquote(urlsplit(request.url).path)).stat().st_size
            if request.url.startswith("file:")
            else request.sizes()["responseBodySize"]
            for request in seen
            if not request.url.startswith(("blob:", "data:"))
        )
        return {"bytes": num_bytes, "requests": len(seen)}


def address(folder, hash_=""):
    """The address of a run's page, as file://."""
    return (folder / "gallery" / "index.html").as_uri() + hash_


def visit(browser, url, **context):
    """A page that has all rows, in Chromium."""
    return loaded(Visitor(browser, url, **context), url)


def loaded(guest, url):
    """The guest, in a page that has all rows."""
    guest.goto(url)
    guest.when("document.documentElement.dataset.ready")
    return guest


def on_map(guest, figures):
    """Where the pictures lie on the whole map, in pixels of the page; and its left and upper edge and its side."""
    left, top, width, height = guest.evaluate(
        "(() => { const box = document.getElementById('map').getBoundingClientRect(); "
        "return [box.x, box.y, box.width, box.height] })()"
    )
    side = min(width, height) - 2 * MARGIN_PX
    left, top = left + (width - side) / 2, top + (height - side) / 2
    return left + figures["x"] * side, top + figures["y"] * side, (left, top, side)


def all_rows(folder):
    """The run's rows, read from its shards."""
    names = ["target_id", "layer", "unit", "mode", "status", "activation", "probability", "rank", "label", "sha256"]
    return pa.concat_tables(pq.read_table(path, columns=names) for path in sorted((folder / "metadata").iterdir()))


def ids_by(rows, by, **conditions):
    """Ids of rows that fulfil the conditions, highest first, missing last; by another way than the page's."""
    table = rows.to_pandas()
    for name, value in conditions.items():
        table = table[table[name] == value]
    order = np.lexsort((table["target_id"], -table["activation"].fillna(-np.inf), -table[by].fillna(-np.inf)))
    return table["target_id"].to_numpy()[order].tolist()


def tour(guest, url, rows):
    """First screen, filter, sort, the end, a picture, back and forward. Milliseconds, and bytes and requests if the
    guest counts them."""
    by_layer = ids_by(rows, "activation", layer="fc8", mode="untrained")
    by_probability = ids_by(rows, "probability", layer="fc8", mode="untrained")
    sha256 = dict(zip(rows["target_id"].to_pylist(), rows["sha256"].to_pylist(), strict=True))
    figures = {}

    def check_count():
        assert 0 < guest.count("#grid img") <= MOST_PICTURES

    guest.goto(url)
    figures["first_screen_ms"] = guest.when(ALL_LOADED)
    time.sleep(0.2)  # the browser tells of requests later
    traffic = guest.traffic(figures["first_screen_ms"])
    figures |= {f"first_screen_{name}": number for name, number in traffic.items()}
    figures["all_rows_ms"] = guest.when("document.documentElement.dataset.ready")
    assert guest.text("#count") == f"{len(rows):,} of {len(rows):,} pictures"
    check_count()

    guest.choose("[name=layer]", "fc8")
    first = f"document.querySelector('#grid a')?.href.endsWith('id={by_layer[0]}') && {ALL_LOADED}"
    figures["filter_ms"] = guest.took(lambda: guest.choose("[name=mode]", "untrained"), first)
    assert guest.text("#count") == f"{len(by_layer):,} of {len(rows):,} pictures"
    assert guest.items() == by_layer[: len(guest.items())]
    check_count()

    first = f"document.querySelector('#grid a')?.href.endsWith('id={by_probability[0]}') && {ALL_LOADED}"
    figures["sort_ms"] = guest.took(lambda: guest.choose("[name=sort]", "probability"), first)
    assert guest.items() == by_probability[: len(guest.items())]

    to_the_end = "document.getElementById('grid').scrollTop = document.getElementById('grid').scrollHeight"
    last = f"[...document.querySelectorAll('#grid a')].at(-1).href.endsWith('id={by_probability[-1]}')"
    figures["to_the_end_ms"] = guest.took(lambda: guest.evaluate(to_the_end), f"{last} && {NONE_MISSING}")
    assert guest.items() == by_probability[-len(guest.items()) :]
    assert guest.count("#grid img") <= MOST_PICTURES  # perhaps none: who has no probability comes last

    guest.evaluate("document.getElementById('grid').scrollTop = 0")
    guest.when(first)
    shown = "document.querySelector('dialog[open] figure img')?.naturalWidth === 224"
    figures["detail_ms"] = guest.took(lambda: guest.click("#grid a"), shown)
    assert guest.hash().endswith(f"id={by_probability[0]}")
    assert sha256[by_probability[0]] in guest.text("dialog")
    guest.press("ArrowRight")
    guest.when(f"location.hash.endsWith('id={by_probability[1]}') && {shown}")
    guest.when(f"document.querySelector('dialog').innerText.includes('{by_probability[1]}')")
    assert (sha256[by_probability[1]] or "") in guest.text("dialog")
    guest.back()
    guest.when("!document.querySelector('dialog[open]')")
    assert guest.hash() == "#layer=fc8&mode=untrained&sort=probability"
    guest.forward()
    guest.when(f"location.hash.endsWith('id={by_probability[1]}') && {shown}")
    guest.press("Escape")
    guest.when("!document.querySelector('dialog[open]') && !location.hash.includes('id=')")
    guest.back()  # the open picture
    guest.when(shown)
    guest.back()  # the grid
    guest.back()  # the order before
    first = f"document.querySelector('#grid a')?.href.endsWith('id={by_layer[0]}')"
    figures["back_ms"] = guest.took(lambda: None, first)
    assert guest.evaluate("document.querySelector('[name=sort]').value") == "layer"
    figures |= guest.traffic()
    assert not guest.complaints, guest.complaints
    return figures


def map_tour(browser, url, num_selected):
    """The map: opened from the grid and by its address, and a lasso around about so many pictures. Milliseconds."""
    figures = {}
    with Visitor(browser, f"{url}#view=map") as visitor:
        visitor.page.goto(visitor.url)
        figures["map_by_address_ms"] = visitor.when(MAP_DRAWN)
    with visit(browser, url) as visitor:
        page = visitor.page
        visitor.when(ALL_LOADED)
        before = len(visitor.requests)
        figures["map_ms"] = visitor.took(lambda: page.click("#views a:last-child"), MAP_DRAWN)
        page.wait_for_timeout(200)
        figures["map_requests"] = len(visitor.requests) - before
        figures |= _lasso(visitor, num_selected)
        assert not visitor.complaints, visitor.complaints
    return figures


def _lasso(visitor, num_selected):
    """Draws a circle that grows until it holds enough, then draws it again for the figures."""
    page, box = visitor.page, visitor.page.locator("#map").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for radius in range(20, 340, 20):
        page.click("#lasso")
        page.mouse.move(middle[0] + radius, middle[1])
        page.mouse.down()
        for angle in np.linspace(0, 2 * np.pi, 60):
            page.mouse.move(middle[0] + radius * np.cos(angle), middle[1] + radius * np.sin(angle))
        page.evaluate(LASSO_TOOK)
        page.mouse.up()
        took = visitor.when("globalThis.lassoTook") and page.evaluate("lassoTook")
        selected = int(page.locator("#selection output").inner_text().split()[0].replace(",", ""))
        if selected >= num_selected:
            break
        page.click("#select-none")
    return {"lasso_ms": took, "lasso_pictures": selected}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def handle(self):  # a browser may hang up on what it no longer wants
        with contextlib.suppress(ConnectionError):
            super().handle()


@contextlib.contextmanager
def plain_server(folder):
    """Python's own web server: it does not know byte ranges."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def in_a_thread(app):
    """An aiohttp application on loopback, in a thread with a loop of its own."""
    from aiohttp import web

    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app)

    async def start():
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner.addresses[0][1]

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        port = asyncio.run_coroutine_threadsafe(start(), loop).result()
        yield f"http://127.0.0.1:{port}"
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def range_server(folder):
    """A web server for static files that knows byte ranges."""
    from aiohttp import web

    app = web.Application()
    app.router.add_static("/", folder)
    return in_a_thread(app)


def gallery_server(store):
    """What `dgn gallery serve` runs."""
    return in_a_thread(application(store))


@contextlib.contextmanager
def place(where, folder, bucket=None):
    """The page's address from `file`, `plain`, `ranges` or `serve`, or for `s3` from a copy in the bucket."""
    if where == "file":
        yield address(folder)
    elif where == "s3":
        store = open_store(f"s3://{bucket}/a run")
        upload(folder, store)
        yield f"{store.client.meta.endpoint_url}/{bucket}/a%20run/gallery/index.html"
    else:
        server = {"plain": plain_server, "ranges": range_server}.get(where)
        with server(folder) if server else gallery_server(open_store(str(folder))) as url:
            yield f"{url}/gallery/index.html"


def upload(folder, store):
    """A run as it would lie in a bucket that it was rendered to."""
    for path in sorted(folder.rglob("*")):
        key = str(path.relative_to(folder))
        if path.is_file() and not key.startswith(("metadata/", "gallery/data/")):
            store.write(key, path.read_bytes())
