"""The gallery with what `dgn alike` found: map, lasso, similar pictures, histograms; and tags."""

import csv
import itertools
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe

from dgn.jobs.galleries.build import build_page
from dgn.runs.run import Run
from dgn.runs.stores import open_store
from tests.helpers.fake_alike import write_fake_alike
from tests.helpers.gallery_tour import (
    LABELS,
    MAP_DRAWN,
    MARKUP,
    Visitor,
    address,
    gallery_server,
    on_map,
    visit,
)  # fmt: skip

BARS_PX = 34  # of a histogram


def saved(page, button):
    with page.expect_download() as download:
        page.click(button)
    return download.value.path().read_bytes().decode()


def counted(visitor, number):
    visitor.when(f"document.getElementById('count').innerText.startsWith('{number} of')")


def test_a_lasso_selects_what_lies_inside(alike, figures, browser):
    with visit(browser, address(alike, "#layer=fc8")) as visitor:
        page = visitor.page
        assert not [one for one in visitor.requests if "data/alike" in one.url]
        page.click("#views a:last-child")
        visitor.when(MAP_DRAWN)
        x, y, (left, top, side) = on_map(visitor, figures)
        ends = [left + 0.3 * side, top + 0.2 * side, left + 0.75 * side, top + 0.7 * side]
        is_in = (x > ends[0]) & (x < ends[2]) & (y > ends[1]) & (y < ends[3]) & (figures["layer"] == "fc8")
        expected = set(figures.index[is_in])
        assert 20 < len(expected) < 150
        page.click("#lasso")
        page.mouse.move(ends[0], ends[1])
        page.mouse.down()
        for right, down in ((ends[2], ends[1]), (ends[2], ends[3]), (ends[0], ends[3])):
            page.mouse.move(right, down, steps=3)
        page.mouse.up()
        assert page.locator("#selection output").inner_text() == f"{len(expected)} selected"
        assert page.locator("#lasso").get_attribute("aria-pressed") == "false"
        ids = saved(page, "#export-ids").splitlines()
        assert len(ids) == len(expected)
        assert set(ids) == expected
        header, *rows = csv.reader(saved(page, "#export-csv").splitlines())
        assert header == ["target_id", "layer", "unit", "label", "mode", "status", "activation"]
        assert [row[0] for row in rows] == ids
        for target_id, layer, unit, label, mode, status, activation in rows:
            row = figures.loc[target_id]
            assert (layer, int(unit), mode, status) == (row["layer"], row["unit"], row["mode"], row["status"])
            assert label == ("'" * row["label"].startswith(("=", "-")) + row["label"])
            assert np.float32(activation) == row["activation"]
        page.click("#selection a")
        counted(visitor, len(expected))
        assert set(visitor.items()) <= expected
        page.select_option("[name=status]", "ok")
        counted(visitor, (figures.loc[ids]["status"] == "ok").sum())
        page.click("#select-none")
        counted(visitor, ((figures["layer"] == "fc8") & (figures["status"] == "ok")).sum())
        assert not page.locator("#selection").is_visible()
        assert not visitor.complaints, visitor.complaints


def test_formulas_become_text_and_come_back(alike, browser):
    texts = [*LABELS[:4], "+1", "@x", "'quoted", "", "two\nlines", "鶴"]
    with visit(browser, address(alike)) as visitor:
        written = visitor.page.evaluate("texts => toCsv(['a', 'b'], texts.map(text => [text, 1 / 3]))", texts)
        read = list(csv.reader(written.splitlines(keepends=True)))
        assert [row[1] for row in read[1:]] == [repr(1 / 3)] * len(texts)
        assert not [row[0] for row in read if row[0].startswith(("=", "+", "-", "@"))]
        assert visitor.page.evaluate("text => fromCsv(text).map(row => row[0])", written) == ["a", *texts]


def test_fingers_pan_pinch_and_draw(alike, figures, browser):
    look = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with visit(browser, address(alike, "#view=map"), **look) as visitor:
        visitor.when(MAP_DRAWN)
        page, fingers = visitor.page, visitor.context.new_cdp_session(visitor.page)

        def touch(kind, *points):
            places = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(points)]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

        x, _, (left, top, side) = on_map(visitor, figures)
        page.click("#lasso")
        touch("touchStart", (left, top))
        for place in ((left + side / 2, top), (left + side / 2, top + side), (left, top + side)):
            touch("touchMove", place)
        touch("touchEnd")
        inside = (x < left + side / 2).sum()
        assert inside > 20
        visitor.when(f"document.querySelector('#selection output').innerText === '{inside} selected'")
        page.click("#select-none")
        dark = "const canvas = document.querySelector('canvas'), { width, height } = canvas;"
        dark += "const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);"
        dark += "data.reduce((sum, byte, i) => sum + (i % 4 === 3 && byte > 0), 0)"
        whole = page.evaluate(dark)
        middle = (left + side / 2, top + side / 2)
        touch("touchStart", (middle[0] - 20, middle[1]), (middle[0] + 20, middle[1]))
        touch("touchMove", (middle[0] - 60, middle[1]), (middle[0] + 60, middle[1]))
        touch("touchEnd")
        visitor.when(f"(() => {{ {dark.replace('data.reduce', 'return data.reduce')} }})() !== {whole}")
        assert not page.locator("dialog[open]").count()
        assert not visitor.complaints, visitor.complaints


def test_keys_move_the_map_and_open_the_picture_in_the_middle(alike, figures, browser):
    with visit(browser, address(alike, "#view=map")) as visitor:
        visitor.when(MAP_DRAWN)
        page = visitor.page
        page.locator("#map canvas").focus()
        for _ in range(3):
            page.keyboard.press("+")
        visitor.when(MAP_DRAWN)
        middle = np.maximum((figures["x"] - 0.5).abs(), (figures["y"] - 0.5).abs())
        words = page.locator("#map-words").inner_text()
        nearest = figures.loc[middle.idxmin()]
        assert f", unit {nearest['unit']}, untrained, activation " in words
        page.keyboard.press("Enter")
        visitor.when("document.querySelector('dialog[open] dl')")
        assert page.url.endswith(f"id={middle.idxmin()}")
        page.keyboard.press("Escape")
        visitor.when("document.activeElement.tagName === 'CANVAS'")
        page.keyboard.press("0")
        visitor.when(MAP_DRAWN)
        x, y, _ = on_map(visitor, figures.dropna(subset=["x"]))
        alone = ((x.values[:, None] - x.values) ** 2 + (y.values[:, None] - y.values) ** 2 < 60**2).sum(1).argmin()
        page.mouse.click(float(x.iloc[alone]), float(y.iloc[alone]))
        visitor.when("document.querySelector('dialog[open] dl')")
        assert page.url.endswith(f"id={x.index[alone]}")


def test_zooming_in_adds_pictures_and_takes_none_away(alike, browser):
    stream = np.random.default_rng(3)
    x, y = stream.random(2000), stream.random(2000) ** 3
    with visit(browser, address(alike)) as visitor:
        levels = visitor.page.evaluate(
            """([x, y]) => {
                const thinning = new Thinning(Float32Array.from(x), Float32Array.from(y))
                thinning.show(Uint32Array.from(x.keys()).filter(row => row % 2))
                return [3, 6, 9, 22].map(level => thinning.at(level))
            }""",
            [x.tolist(), y.tolist()],
        )
    rows = np.arange(1, 2000, 2)
    for level, kept in zip((3, 6, 9, 22), levels, strict=True):
        apart = np.maximum(abs(x[rows][:, None] - x[kept]), abs(y[rows][:, None] - y[kept]))
        assert (apart.min(1) < 2 ** (-level / 2)).all()  # no other has room
        own = np.maximum(abs(x[kept][:, None] - x[kept]), abs(y[kept][:, None] - y[kept])) + np.eye(len(kept))
        assert own.min() >= 2 ** (-level / 2) - 1e-6
    for coarse, fine in itertools.pairwise(levels):
        assert set(coarse) < set(fine)
    assert len(levels[-1]) > 980


@pytest.mark.parametrize("target_id", ["fc8-00002-untrained-s1", "conv5_1-00007-untrained-s0"])
def test_similar_pictures_are_those_of_the_file(alike, figures, browser, target_id):
    row = figures.loc[target_id]
    where = f"/gallery/index.html#id={target_id}"
    with gallery_server(open_store(str(alike))) as url, visit(browser, url + where) as visitor:
        visitor.when("document.querySelectorAll('.similar img').length === 12")
        links = visitor.page.locator(".similar a")
        hashes = [link.get_attribute("href") for link in links.all()]
        assert [one.split("id=")[1] for one in hashes] == row["similar_ids"]
        said = [link.inner_text().splitlines()[-1] for link in links.all()]
        assert [float(one) for one in said] == pytest.approx(row["similarity"], abs=5e-4)
        scores = visitor.page.locator("dialog dl").first.inner_text().splitlines()
        for title, name in (("Redundancy", "redundancy"), ("Spread", "spread")):
            if np.isnan(row[name]):
                assert title not in scores
            else:
                assert float(scores[scores.index(title) + 1]) == pytest.approx(row[name], rel=1e-3)
        links.nth(3).click()
        visitor.when(f"document.querySelector('dialog').innerText.includes('{row['similar_ids'][3]}')")
        assert not visitor.complaints, visitor.complaints


def test_pictures_made_again_have_no_figures_and_any_order_will_do(alike, figures, browser, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(alike, folder, ignore=shutil.ignore_patterns("data"))
    current = json.loads((folder / "alike" / "current.json").read_text())
    table = pq.read_table(folder / current["table"])
    again = table["target_id"][3].as_py()
    attempts = ["ffffffff" if one == again else "00000000" for one in table["target_id"].to_pylist()]
    table = table.set_column(1, "attempt", pa.array(attempts)).take(np.arange(len(table))[::-1])
    path = folder / current["table"]
    pq.write_table(table, path, max_rows_per_page=128, write_page_index=True)
    current["table_bytes"] = path.stat().st_size
    (folder / "alike" / "current.json").write_text(json.dumps(current))
    build_page(Run.at(str(folder)), None)
    with visit(browser, address(folder, "#sort=redundancy")) as visitor:
        best = figures.drop(again)["redundancy"].sort_values(ascending=False).index[:40]
        visitor.when(f"document.querySelector('#grid a').hash.endsWith('{best[0]}')")
        assert visitor.items()[:40] == list(best)
        visitor.go(f"#id={again}")
        visitor.when("document.querySelector('dialog[open]')?.innerText.includes('None was compared with it.')")


def bars(page):
    """The heights of a histogram's bars, and which are in colour."""
    heights = {}
    for kind in ("inside", "outside"):
        for bar in (page.locator(f"#histogram .{kind}").get_attribute("d") or "").split("M")[1:]:
            place, height = bar.split(" ", 1)
            heights[int(place) // 4] = (abs(float(height.split("v")[1].split("h")[0])), kind == "inside")
    return [heights[n] for n in range(48)]


def assert_bars(page, expected):
    """Once the page has drawn them: until then, those of the view before are there."""
    for _ in range(100):
        if [height for height, _ in bars(page)] == pytest.approx(expected, abs=0.006):
            return
        page.wait_for_timeout(100)
    assert [height for height, _ in bars(page)] == pytest.approx(list(expected), abs=0.006)


def test_a_histogram_counts_what_other_filters_leave(alike, figures, browser):
    with visit(browser, address(alike)) as visitor:
        page = visitor.page
        for of in ("activation", "redundancy", "spread"):
            values = figures[figures["layer"] == "fc8"][of].dropna().to_numpy(dtype=float)
            counts, edges = np.histogram(values, bins=48)
            visitor.go("#layer=fc8" if of == "activation" else f"#layer=fc8&of={of}")
            visitor.when("document.querySelector('#histogram .inside').getAttribute('d')")
            expected = np.where(counts, np.maximum(counts / counts.max() * BARS_PX, 1), 0)
            assert_bars(page, expected)
            box = page.locator("#histogram").bounding_box()
            page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 9)
            page.mouse.down()
            page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 9, steps=4)
            page.mouse.up()
            low, high = (float(page.locator(f"[name={name}]").input_value()) for name in ("min", "max"))
            span = edges[-1] - edges[0]
            assert (low, high) == pytest.approx((edges[0] + 0.25 * span, edges[0] + 0.6 * span), abs=0.01 * span)
            counted(visitor, ((values >= low) & (values <= high)).sum())
            assert [height for height, _ in bars(page)] == pytest.approx(expected, abs=0.006)
            assert 15 <= sum(is_in for _, is_in in bars(page)) <= 18
            page.mouse.click(box["x"] + 5, box["y"] + 9)  # without a drag
            counted(visitor, (figures["layer"] == "fc8").sum())


def test_another_figure_begins_without_a_range(alike, figures, browser):
    with visit(browser, address(alike, "#min=20&max=30")) as visitor:  # an address as it was before there were figures
        counted(visitor, figures["activation"].between(20, 30).sum())
        visitor.page.select_option("[name=of]", "spread")
        counted(visitor, len(figures))
        assert visitor.page.url.endswith("#of=spread")


def test_tags_are_kept_filtered_exported_and_imported(alike, browser, tmp_path):
    with visit(browser, address(alike, "#id=fc8-00005-untrained-s0")) as visitor:
        page = visitor.page
        for tag in ("  two   words ", "=1+1", MARKUP):
            page.fill("[aria-label='Add a tag']", tag)
            page.keyboard.press("Enter")
        assert page.locator(".tags li").all_inner_texts() == [f"{MARKUP}×", "=1+1×", "two words×"]
        page.click("[aria-label='Remove the tag two words']")
        exported = saved(page, "text=Export all tags")
        assert list(csv.reader(exported.splitlines())) == [
            ["target_id", "tag"], ["fc8-00005-untrained-s0", MARKUP], ["fc8-00005-untrained-s0", "'=1+1"],
        ]  # fmt: skip
        page.reload()
        visitor.when("document.querySelectorAll('.tags li').length === 2")
        page.keyboard.press("Escape")
        page.select_option("[name=tag]", "=1+1")
        counted(visitor, 1)
        assert visitor.items() == ["fc8-00005-untrained-s0"]
        assert page.locator("img[src=x]").count() == 0
        assert not visitor.complaints, visitor.complaints
    files = {"tags.csv": exported.encode(), "other.csv": b"a,b\r\n1,2\r\n"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with visit(browser, address(alike, "#id=fc8-00005-untrained-s0")) as visitor:  # another browser's storage
        page = visitor.page
        page.wait_for_selector("text=Import tags")
        assert page.locator(".tags li").count() == 0
        page.set_input_files("dialog input[type=file]", tmp_path / "other.csv")
        visitor.when("document.querySelector('dialog [role=alert]').innerText")
        said = page.locator("dialog [role=alert]").inner_text()
        assert said == "other.csv cannot be read as tags: expected the columns target_id, tag"
        page.set_input_files("dialog input[type=file]", tmp_path / "tags.csv")
        visitor.when("document.querySelectorAll('.tags li').length === 2")


def test_without_storage_tags_last_as_long_as_the_page(alike, browser):
    with Visitor(browser, "") as visitor:
        page = visitor.page
        page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('blocked') } })")
        page.goto(address(alike, "#id=fc8-00005-untrained-s0"))
        visitor.when("document.querySelector('[aria-label=\"Add a tag\"]')")
        page.fill("[aria-label='Add a tag']", "mine")
        page.keyboard.press("Enter")
        assert page.locator(".tags li").all_inner_texts() == ["mine×"]
        assert page.locator("dialog [role=alert]").inner_text().startswith("This browser keeps no tags: ")
        assert "mine" in saved(page, "text=Export all tags")
        assert not visitor.complaints, visitor.complaints


def test_without_alike_the_page_is_as_before(small, browser):
    with visit(browser, address(small, "#view=map&sort=redundancy&of=spread")) as visitor:
        page = visitor.page
        assert not page.locator("#views").is_visible()
        assert page.locator("#grid a").count() > 20
        page.click("text=Clear")
        assert page.locator("[name=of] option").all_inner_texts()[0] == "activation"
        assert not visitor.complaints, visitor.complaints


def test_scripts_of_a_former_alike_are_deleted(alike, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(alike, folder)
    data = folder / "gallery" / "data"
    [former] = (data / "alike").iterdir()
    write_fake_alike(folder, has_map=False)
    build_page(Run.at(str(folder)), None)
    current = json.loads((folder / "alike" / "current.json").read_text())
    assert [path.name for path in (data / "alike").iterdir() if list(path.rglob("*.js"))] != [former.name]
    assert not list(former.rglob("*.js"))
    assert (data / current["table"] / "0.js").exists()
    assert '"hasMap": false' in (folder / "gallery" / "columns.js").read_text()
    shutil.rmtree(folder / "alike")
    build_page(Run.at(str(folder)), None)
    assert not (data / "alike.js").exists()
    assert not list((data / "alike").rglob("*.js"))


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing(alike, browser, scheme, width):
    look = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme}
    with visit(browser, address(alike, "#view=map"), **look) as visitor:
        page = visitor.page

        def check(where):
            found = Axe().run(page).response["violations"]
            assert [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found] == [], where
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

        visitor.when(MAP_DRAWN)
        box = page.locator("#map").bounding_box()
        page.click("#lasso")
        page.mouse.move(box["x"] + 5, box["y"] + 60)
        page.mouse.down()
        for right, down in ((1, 0.5), (1, 1), (0, 1)):
            page.mouse.move(box["x"] + right * box["width"] - 9, box["y"] + down * box["height"] - 9, steps=2)
        check("lasso")
        page.mouse.up()
        visitor.when("!document.getElementById('selection').hidden")
        check("selection")
        visitor.go("#of=spread&id=fc8-00005-untrained-s0")
        visitor.when("document.querySelector('.similar img')")
        page.fill("[aria-label='Add a tag']", "mine")
        page.keyboard.press("Enter")
        check("detail")
