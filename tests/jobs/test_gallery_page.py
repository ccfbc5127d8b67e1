"""The gallery's page in a real browser: what it shows, by which filters and keys; other people's text stays text."""

import itertools
import random
import shutil

import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe

from dgn.jobs.galleries.build import build_page
from dgn.runs.judgements import Judge
from tests.helpers.fake_runs import judge_at_random, write_fake_run
from tests.helpers.gallery_tour import MARKUP, address, all_rows, ids_by, plain_server, visit


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
        assert page.locator("script").count() == 16
        assert page.locator("img[src=x]").count() == 0
        assert not dialogs
        assert not visitor.complaints, visitor.complaints


def test_a_thumbnail_that_two_calls_bring_keeps_its_address(small, browser):
    """A picture that is reading it would be shown as missing otherwise."""
    with visit(browser, address(small)) as visitor:
        shown = visitor.page.evaluate(
            """async () => {
                const shown = []
                const thumbnails = new Thumbnails({ range: async () => new ArrayBuffer(4) }, 100)
                const place = { row: 0, key: '', start: 0, bytes: 4 }
                const { signal } = new AbortController()
                const load = () => thumbnails.load([place], (row, url) => shown.push(url), signal)
                await Promise.all([load(), load()])
                return shown
            }"""
        )
        assert len(shown) == 2
        assert len(set(shown)) == 1


def test_failed_pictures_say_why(small, browser):
    rows = [row for row in all_rows(small).to_pylist() if row["status"] != "ok"]
    for status in ("not_converged", "dead", "nonfinite"):
        own = [row["target_id"] for row in rows if row["status"] == status]
        assert own
        with visit(browser, address(small, f"#status={status}")) as visitor:
            page = visitor.page
            assert set(visitor.items()) == set(own)
            boxes = page.locator("#grid .box").all_inner_texts()
            assert boxes == ["no picture"] * (len(own) if status == "nonfinite" else 0)
            for target_id in own:
                visitor.go(f"#status={status}&id={target_id}")
                visitor.when(f"document.querySelector('dialog[open]')?.innerText.includes('{target_id}')")
                reason = page.locator("#detail-words").inner_text()
                assert status.replace("_", " ") in reason
                assert ("not finite" if status == "nonfinite" else "saved picture") in reason
                assert page.locator("dialog figure img").count() == (status != "nonfinite")
            assert not visitor.complaints, visitor.complaints


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


@pytest.mark.parametrize(("sort", "of"), [("label", "activation"), ("rank", "rank"), ("probability", "probability")])
def test_captions_say_what_is_sorted_by_and_what_failed(everything, browser, sort, of):
    rows = {row["target_id"]: row for row in all_rows(everything).to_pylist()}
    seen = set()
    where = address(everything, f"#layer=fc8&sort={sort}")
    with visit(browser, where, viewport={"width": 390, "height": 844}) as visitor:
        for hash_ in ("", "&status=not_converged", "&status=nonfinite", "&pair=1"):
            if hash_:
                visitor.go(f"#layer=fc8&sort={sort}{hash_}")
            captioned = []
            for target_id, captions in visitor.captioned():
                both = [target_id, target_id.replace("-untrained-", "-pretrained-")]
                captioned += zip(captions, both if "pair" in hash_ else both[:1], strict=True)
            assert captioned
            for caption, target_id in captioned:
                row = rows[target_id]
                first, status = caption.split("\n")
                figure, _, mode = first.rpartition(" ")
                assert mode == row["mode"]
                assert status == row["status"].replace("_", " ").removeprefix("ok")
                if row[of] is None:
                    assert figure == "–"
                else:
                    assert figure.startswith("rank ") == (sort == "rank")
                    assert float(figure.removeprefix("rank ")) == pytest.approx(row[of], rel=1e-3)
                seen.add(status)
            cut = "all => all.filter(one => one.scrollWidth > one.clientWidth).length"
            assert visitor.page.eval_on_selector_all("#grid .figures", cut) == 0
            ends = "rows => rows.map(row => [row.getBoundingClientRect().top, row.getBoundingClientRect().bottom])"
            rows_px = visitor.page.eval_on_selector_all("[role=row]", ends)
            assert all(bottom <= top for (_, bottom), (top, _) in itertools.pairwise(rows_px))
    assert seen >= {"", "not converged", "nonfinite"}


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
    build_page(run, None)
    with visit(browser, address(tmp_path / "run")) as visitor:
        assert visitor.page.locator("#count").inner_text() == "0 of 0 pictures, 4 not rendered yet"
        assert visitor.page.locator("#message").inner_text() == "No picture has been made yet."
        assert not visitor.complaints, visitor.complaints


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
    build_page(run, None)
    with visit(browser, address(tmp_path / "run", "#sort=judge vgg11-bbbbbbbb")) as visitor:
        choices = visitor.page.locator("[name=sort] option").all_inner_texts()
        assert choices[-3:] == ["rank by resnet18", "rank by vgg11-aaaaaaaa", "rank by vgg11-bbbbbbbb"]
        assert visitor.items() == sorted(ranks["vgg11-bbbbbbbb"], key=ranks["vgg11-bbbbbbbb"].get)
        captions = [caption.splitlines()[0].strip() for _, [caption] in visitor.captioned()]
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
def test_axe_finds_nothing(small, browser, scheme, width):
    """Accessibility, by the rules of axe-core."""
    look = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme}
    with visit(browser, address(small), **look) as visitor:

        def check(where):
            found = Axe().run(visitor.page).response["violations"]
            assert [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found] == [], where
            assert visitor.page.evaluate("document.documentElement.scrollWidth <= innerWidth")

        if width == 390:
            visitor.page.click("#fold summary")
            check("unfolded")
            visitor.page.click("#fold summary")
        else:
            check("all")
        for hash_ in ("#status=nonfinite", "#pair=1", "#q=nothing", "#id=fc8-00003-untrained-s0"):
            visitor.go(hash_)
            if "id=" in hash_:
                visitor.when("document.querySelector('dialog[open] dl')")
            check(hash_)


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
