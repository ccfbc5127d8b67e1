"""The gallery in Chromium and in Firefox: a walk, keys, and views that are higher than a browser can scroll."""

import json
from pathlib import Path

import axe_playwright_python
import pytest

from tests.helpers.firefox import FirefoxVisitor
from tests.helpers.gallery_tour import MAP_DRAWN, address, all_rows, loaded, on_map, place, tour, visit

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
STEP_PX = 180
# In the page: the rows in sight as [number, top, bottom], the view's pixel and row at the grid's top edge.
EYES = """
globalThis.grid = document.getElementById('grid')
globalThis.sight = () => {
    const from = grid.getBoundingClientRect()
    return [...grid.querySelectorAll('[role=row]')]
        .map(row => [row.getAttribute('aria-rowindex') - 1, row.getBoundingClientRect()])
        .filter(([, at]) => at.bottom > from.top && at.top < from.bottom)
        .map(([n, at]) => [n, at.top - from.top, at.bottom - from.top])
}
globalThis.rowPx = () => Math.round(sight()[1][1] - sight()[0][1])
globalThis.position = () => sight()[0][0] * rowPx() - sight()[0][1] + GAP_PX
globalThis.topRow = () => Math.floor(position() / rowPx())
globalThis.focused = () => Number(document.activeElement.dataset.item)
0"""


@pytest.fixture(params=["chromium", "firefox"])
def visit_in(request):
    """Opens a page in either browser."""
    if request.param == "chromium":
        browser = request.getfixturevalue("browser")
        return lambda url: visit(browser, url)
    firefox = request.getfixturevalue("firefox")
    return lambda url: loaded(FirefoxVisitor(firefox), url)


def as_long(guest, num_items=None, most_px=None):
    """Shows a view that is higher than the scrolled element may be: of more items, or of all with a lower limit."""
    guest.evaluate(EYES)
    if most_px:
        guest.evaluate(f"Scroller.MOST_PX = {most_px}")
    if num_items:  # the table's rows again and again; all other code is as always
        guest.evaluate(f"select = table => Array.from({{ length: {num_items} }}, (_, i) => [i % table.length]); 0")
    guest.go("#sort=unit")
    guest.when("grid.getAttribute('aria-rowcount') > 600")
    assert guest.evaluate("grid.scrollHeight === Scroller.MOST_PX")


def wheel(guest, steps, px):
    """Turns the wheel, and sees that the view moves by the wheel's own pixels and every row comes by, in order."""
    at = guest.evaluate("position()")
    seen = [n for n, _, _ in guest.evaluate("sight()")]
    for _ in range(steps):
        at += px
        guest.wheel(px)
        guest.when(f"Math.abs(position() - {at}) < 1")
        now = [n for n, _, _ in guest.evaluate("sight()")]
        assert now == list(range(now[0], now[-1] + 1))
        new = [n for n in now if n not in seen]
        seen = seen + new if px > 0 else new + seen
    assert seen == list(range(seen[0], seen[-1] + 1))
    assert abs(guest.evaluate("position()") - at) < 1
    return at


def jump(guest, share):
    """As by dragging the bar; until the page has followed."""
    guest.evaluate(f"grid.scrollTop = Math.round((grid.scrollHeight - grid.clientHeight) * {share})")
    guest.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")


def rest(guest):
    guest.evaluate("new Promise(done => setTimeout(() => done(0), RESTS_MS + 100))")


LONG = [pytest.param({"most_px": 20_000}, id="lower limit"), pytest.param({"num_items": 3_000_000}, id="3 million")]


@pytest.mark.parametrize("length", LONG)
def test_a_view_of_any_height_is_scrolled_row_by_row(length, visit_in, everything):
    with visit_in(address(everything)) as guest:
        as_long(guest, **length)
        rows = int(guest.evaluate("grid.getAttribute('aria-rowcount')"))
        assert wheel(guest, 5, STEP_PX) == 5 * STEP_PX
        assert wheel(guest, 5, -STEP_PX) == 0
        assert guest.evaluate("grid.scrollTop") == 0
        shown = []
        for share in (0.1, 0.25, 0.5, 0.75, 0.9):
            jump(guest, share)
            shown.append(guest.evaluate("sight()[0][0]"))
            assert shown[-1] / rows == pytest.approx(share, abs=0.02)
        assert shown == sorted(set(shown))
        jump(guest, 0.5)
        assert min(abs(n - rows / 2) for n, _, _ in guest.evaluate("sight()")) <= 1
        at = guest.evaluate("position()")
        wheel(guest, 5, STEP_PX)
        rest(guest)
        assert abs(guest.evaluate("position()") - at - 5 * STEP_PX) < 1
        assert abs(wheel(guest, 5, -STEP_PX) - at) < 1
        jump(guest, 1)
        end = guest.evaluate("position()")
        last, _, bottom = guest.evaluate("sight()")[-1]
        assert last == rows - 1
        assert bottom <= guest.evaluate("grid.clientHeight") + 1
        wheel(guest, 5, -STEP_PX)
        assert abs(wheel(guest, 5, STEP_PX) - end) < 1
        assert guest.evaluate("grid.scrollTop + grid.clientHeight >= grid.scrollHeight - 1")
        assert not guest.complaints, guest.complaints


@pytest.mark.parametrize("length", LONG)
def test_another_width_keeps_what_is_at_the_top(length, visit_in, everything):
    with visit_in(address(everything)) as guest:
        as_long(guest, **length)
        columns = guest.evaluate("grid.getAttribute('aria-colcount')")
        jump(guest, 0.5)
        at = guest.evaluate("position()")
        item = guest.evaluate("topRow()") * int(columns)
        narrower = columns
        for width in (700, 390):
            guest.resize(width, 860)
            guest.when(f"grid.getAttribute('aria-colcount') < {narrower}")
            narrower = guest.evaluate("grid.getAttribute('aria-colcount')")
            assert guest.evaluate("topRow()") == item // int(narrower)
        guest.resize(1280, 860)
        guest.when(f"grid.getAttribute('aria-colcount') === '{columns}'")
        assert guest.evaluate("position()") == pytest.approx(at, abs=1.5)


@pytest.mark.parametrize("length", LONG)
def test_keys_reach_every_row_of_a_long_view(length, visit_in, everything):
    with visit_in(address(everything)) as guest:
        as_long(guest, **length)
        columns = int(guest.evaluate("grid.getAttribute('aria-colcount')"))
        num_items = length.get("num_items", 6224)

        def press(key, item):
            guest.press(key)
            assert guest.evaluate("focused()") == item
            [[_, top, bottom]] = guest.evaluate(f"sight().filter(([n]) => n === {item // columns})")
            assert top >= 0
            assert bottom <= guest.evaluate("grid.clientHeight")

        guest.evaluate("document.querySelector('#grid a').focus()")
        press("End", num_items - 1)
        press("ArrowUp", num_items - 1 - columns)
        press("Home", 0)
        jump(guest, 0.5)
        guest.evaluate("document.querySelector('#grid a[tabindex=\"0\"]').focus()")
        item = guest.evaluate("focused()")
        assert item / num_items == pytest.approx(0.5, abs=0.01)
        for rows in range(1, 6):
            press("ArrowDown", item + rows * columns)
        for rows in range(4, -6, -1):
            press("ArrowUp", item + rows * columns)
        page = guest.evaluate("Math.ceil(grid.clientHeight / rowPx()) - 1")
        press("PageDown", item + (page - 5) * columns)


def test_an_address_and_the_way_back_in_a_long_view(visit_in, everything):
    is_open, is_shut = "document.querySelector('dialog[open] dl')", "!document.querySelector('dialog[open]')"
    with visit_in(address(everything)) as guest:
        as_long(guest, most_px=20_000)
        jump(guest, 0.5)
        item = guest.evaluate("Number(document.querySelector('#grid a').dataset.item)")
        wanted = guest.items()[0]
        jump(guest, 0)
        guest.go(f"#sort=unit&id={wanted}")
        guest.when(is_open)
        assert wanted in guest.text("dialog")
        guest.press("Escape")
        guest.when(f"{is_shut} && focused() === {item}")
        at = guest.evaluate("position()")
        guest.back()
        guest.when(is_open)
        guest.back()
        guest.when(is_shut)
        assert guest.hash() == "#sort=unit"
        guest.forward()
        guest.when(is_open)
        assert guest.evaluate("position()") == at > 20_000
        assert not guest.complaints, guest.complaints


def test_a_lasso_and_tags_in_firefox(alike, figures, firefox):
    with loaded(FirefoxVisitor(firefox), address(alike, "#layer=fc8")) as guest:
        guest.evaluate(
            "globalThis.files = []; const make = URL.createObjectURL.bind(URL);"
            "URL.createObjectURL = blob => { files.push(blob); return make(blob) }; 0"
        )
        guest.click("#views a:last-child")
        guest.when(MAP_DRAWN)
        x, y, (left, top, side) = on_map(guest, figures)
        start, end = (left + 0.3 * side, top + 0.2 * side), (left + 0.75 * side, top + 0.7 * side)
        is_in = (x > start[0]) & (x < end[0]) & (y > start[1]) & (y < end[1]) & (figures["layer"] == "fc8")
        guest.click("#lasso")
        guest.drag([start, (end[0], start[1]), end, (start[0], end[1])])
        assert guest.text("#selection output") == f"{is_in.sum()} selected"
        guest.click("#export-ids")
        assert set(guest.evaluate("files.at(-1).text()").splitlines()) == set(figures.index[is_in])
        guest.click("#selection a")
        guest.when(f"document.getElementById('count').innerText.startsWith('{is_in.sum()} of')")
        chosen = guest.items()[0]
        guest.go(f"#id={chosen}")
        guest.when("document.querySelector('[aria-label=\"Add a tag\"]')")
        guest.write("[aria-label='Add a tag']", "two words")
        guest.press("Enter")
        guest.goto(address(alike))
        guest.when("document.documentElement.dataset.ready")
        guest.choose("[name=tag]", "two words")
        guest.when("document.getElementById('count').innerText.startsWith('1 of')")
        assert guest.items() == [chosen]
        assert not guest.complaints, guest.complaints


@pytest.mark.parametrize("where", ["file", "plain", "serve"])
def test_a_tour_in_firefox(where, everything, firefox):
    with place(where, everything) as url, FirefoxVisitor(firefox) as guest:
        print(json.dumps({"where": where, **tour(guest, url, all_rows(everything))}))


def test_the_keyboard_reaches_every_picture(visit_in, everything):
    with visit_in(address(everything, "#layer=conv5_1&sort=unit")) as guest:
        guest.evaluate(EYES)

        def focused():
            return guest.evaluate("document.activeElement.hash?.match(/id=(.*)-untrained/)?.[1] ?? null")

        guest.evaluate("document.querySelector('button[type=reset]').focus()")
        guest.press("Tab")
        if focused() is None:  # the grid itself, which scrolls
            guest.press("Tab")
        assert focused() == "conv5_1-00000"
        columns = int(guest.evaluate("grid.getAttribute('aria-colcount')"))
        for key, unit in (("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0)):
            guest.press(key)
            assert focused() == f"conv5_1-{unit:05d}"
        guest.press("End")
        assert focused() == "conv5_1-00511"
        guest.press("Enter")
        guest.when("document.querySelector('dialog[open] dl')")
        assert "conv5_1-00511" in guest.text("dialog")
        assert guest.evaluate("document.getElementById('next').disabled")
        guest.press("ArrowLeft")
        guest.when("document.querySelector('dialog').innerText.includes('conv5_1-00510')")
        guest.press("Escape")
        guest.when("document.activeElement.hash?.includes('conv5_1-00510')")
        guest.press("Home")
        assert focused() == "conv5_1-00000"


@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_in_firefox(small, firefox, width):
    """Accessibility, by the rules of axe-core; test_gallery_page.py has both colour schemes, in Chromium."""
    with loaded(FirefoxVisitor(firefox, width), address(small)) as guest:
        guest.evaluate(f"{AXE.read_text()}\n;0")
        for hash_ in ("#status=nonfinite", "#pair=1", "#id=fc8-00003-untrained-s0"):
            guest.go(hash_)
            if "id=" in hash_:
                guest.when("document.querySelector('dialog[open] dl')")
            found = guest.evaluate(
                "axe.run().then(({ violations }) => violations.map(({ id, nodes }) => [id, nodes[0].html]))"
            )
            assert found == [], hash_
            assert guest.evaluate("document.documentElement.scrollWidth <= innerWidth")
