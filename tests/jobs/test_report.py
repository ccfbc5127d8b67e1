"""The report's numbers, counted again from the shards' Parquet files; texts of others stay texts."""

import base64
import io
import json
import math
import re
import shutil
from collections import Counter, defaultdict
from datetime import timedelta

import numpy as np
import pytest
from PIL import Image

from dgn.jobs.report import command
from dgn.runs.index import update_index
from dgn.runs.judgements import DISTORTION_NAMES, Judge, write_judgements
from dgn.runs.run import Run
from dgn.runs.stores import open_store
from tests.helpers.html_page import Page, about, number
from tests.helpers.reported import BATCH, BATCH_S, EVIL, HOSTS, START, edit_shards
from tests.helpers.rows import every_row


@pytest.fixture
def run(reported, tmp_path):
    shutil.copytree(reported, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def page(reported, tmp_path_factory):
    """The report of a run that nobody changes."""
    out = tmp_path_factory.mktemp("page") / "out.html"
    command(str(reported), out, 2.5)
    return Page(out.read_text("utf-8"))


def report(dgn, run, *flags):
    out = run.parent / "out.html"
    code, said, err = dgn("report", run, out, *flags)
    assert (code, err) == (0, "")
    assert said.startswith(f"{out}: ")
    assert [path.name for path in run.parent.iterdir() if path.name.startswith(".")] == []
    return Page(out.read_text("utf-8"))


def test_outcomes_pace_and_cost(reported, page):
    rows = every_row(reported)
    assert page.tile("Pictures done") == len(rows) == 166
    for status, count in Counter(row["status"] for row in rows).items():
        assert f"{count} {status.replace('_', ' ')}" in page.text
    device_s = sum(row["seconds"] for row in rows)
    shards = defaultdict(list)
    for row in rows:
        shards[row["shard"]].append(row)
    assert device_s == pytest.approx(sum(BATCH_S * math.ceil(len(of) / BATCH) for of in shards.values()))
    assert page.tile("Device hours") == about(device_s / 3600)
    assert page.tile("Pictures per device hour") == about(len(rows) / device_s * 3600)
    failed_s = 100 + 50 + 8
    assert page.tile("Cost") == pytest.approx((device_s + failed_s) / 3600 * 2.5, abs=0.006)
    lines = {tuple(line[:2]): line[2:] for line in page.table("host", "device")}
    assert set(lines) == {*HOSTS.values(), ("all", "")}
    for place, (num, hours, per_device_hour, per_hour, begun, ended) in lines.items():
        own = {n: of for n, of in shards.items() if place == ("all", "") or HOSTS[n % 3] == place}
        began = [START + timedelta(minutes=30 * (n // 3), seconds=n % 3) for n in own]
        lasted = [BATCH_S * math.ceil(len(of) / BATCH) for of in own.values()]
        end = max(start + timedelta(seconds=s) for start, s in zip(began, lasted, strict=True))
        count = sum(map(len, own.values()))
        assert number(num) == count
        assert number(hours) == about(sum(lasted) / 3600)
        assert number(per_device_hour) == about(3600 * count / sum(lasted))
        assert number(per_hour) == about(3600 * count / (end - min(began)).total_seconds())
        assert (begun, ended) == (f"{min(began):%Y-%m-%d %H:%M:%S}", f"{end:%Y-%m-%d %H:%M:%S}")


def test_without_a_price_no_cost_is_shown(run, dgn):
    assert not re.search(r"\bcosts?\b", report(dgn, run).text, re.IGNORECASE)


def test_histograms_hold_every_picture_once(reported, page):
    values = defaultdict(list)
    for row in every_row(reported):
        if row["activation"] is not None:
            values[row["layer"], row["mode"]].append(row["activation"])
    plots = [figure for figure in page.figures if "svg" in figure]
    names = [tuple(plot["text"].split()[:2]) for plot in plots]
    assert names == [
        ("conv1_1", "untrained"), ("conv3_2", "untrained"), ("fc8", "untrained"), ("fc8", "pretrained"),
    ]  # fmt: skip
    for name, plot in zip(names, plots, strict=True):
        of, step = values[name], max(values[name]) / 24
        counts = Counter(min(23, int(value / step)) for value in of)
        bars = re.findall(r"M([\d.]+) 64v-([\d.]+)h", plot["path"]["d"])
        found = {round(float(x) / 10): float(height) for x, height in bars}
        assert found == {n: about(max(1, 64 * count / max(counts.values()))) for n, count in counts.items()}
        shown = re.search(r"([\d,]+) pictures, median ([\d.,]*\d)(?:, (\d+) silent)?", plot["text"])
        assert number(shown[1]) == len(of)
        assert number(shown[2]) == about(float(np.median(of)))
        assert int(shown[3] or 0) == sum(value <= 0 for value in of)


def test_reasons_are_grouped(reported, page):
    bad = [row for row in every_row(reported) if row["status"] != "ok"]
    lines = page.table("pictures", "status")
    assert {line[1]: int(line[0]) for line in lines} == Counter(row["status"].replace("_", " ") for row in bad)
    assert [int(line[0]) for line in lines] == sorted((int(line[0]) for line in lines), reverse=True)
    by_id = {row["target_id"]: row for row in bad}
    for _, status, text, examples in lines:
        row = by_id[examples.split()[0].rstrip(":")]
        assert row["status"].replace("_", " ") == status
        if status == "not converged":
            assert text == "rank N on the saved picture: another is first"
            assert row["reason"] in examples
        else:
            assert text == row["reason"]


def test_faults_by_cause_and_host(page):
    assert "4 failed attempts at 3 shards" in page.text
    causes = {line[0]: line[1:] for line in page.table("cause", "attempts")}
    assert {cause: line[:2] for cause, line in causes.items()} == {
        "memory": ["2", "1"], "lost": ["1", "1"], "unknown": ["1", "1"],
    }  # fmt: skip
    assert number(causes["memory"][2]) == about(150 / 3600)
    assert causes["memory"][3] == f"{EVIL} (1), host-a (1)" or causes["memory"][3] == f"host-a (1), {EVIL} (1)"
    assert causes["lost"][4] == f"lost: {EVIL} in shard 2"
    hosts = {line[0]: line[1:] for line in page.table("host", "attempts")}
    assert {host: line[:2] for host, line in hosts.items()} == {
        EVIL: ["2", "2"], "host-a": ["1", "1"], "unknown": ["1", "1"],
    }  # fmt: skip


def test_best_and_worst_pictures(reported, page):
    rows = [row for row in every_row(reported) if row["activation"] is not None]
    shown = [figure for figure in page.figures if "img" in figure]
    expected = []
    for mode in ("untrained", "pretrained"):
        of = [row for row in rows if row["mode"] == mode]
        expected += sorted(of, key=lambda row: (-row["activation"], row["target_id"]))[:20]
        expected += sorted(of, key=lambda row: (row["activation"], row["target_id"]))[: min(20, len(of) - 20)]
    assert len(shown) == 71
    for figure, row in zip(shown, expected, strict=True):
        name = row["label"] or f"{row['layer']} {row['unit']}"
        assert figure["text"].strip().startswith(name)
        assert figure["img"]["alt"] == name
        caption = re.search(r"([\d.,]+), rank (\d+)", figure["text"].strip()[len(name) :])
        assert (number(caption[1]), int(caption[2])) == (about(row["activation"]), row["rank"])
        kind, data = figure["img"]["src"].split(",", 1)
        assert kind == "data:image/webp;base64"
        small = Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB")
        whole = Image.open(reported / row["file_name"]).convert("RGB").resize(small.size, Image.Resampling.BOX)
        assert np.abs(np.asarray(small, float) - np.asarray(whole, float)).mean() < 12


def test_no_picture_is_shown_twice(run, dgn):
    """30 pictures: 20 are shown as the best, 10 as the worst. 16 pictures: all are shown as the best."""
    for shards, num in (((0, 1), 32), ((0,), 16)):
        for path in (run / "metadata").iterdir():
            if int(path.stem) not in shards:
                path.unlink()
        rows = [row for row in every_row(run) if row["activation"] is not None]
        page = report(dgn, run)
        shown = [figure["img"]["alt"] for figure in page.figures if "img" in figure]
        assert sorted(shown) == sorted(f"{row['layer']} {row['unit']}" for row in rows)
        assert len(shown) <= num
        assert ("Lowest activations" in page.text) == (len(shown) > 20)


def test_the_judges_table(run, dgn):
    rows, judge, stream = every_row(run), Judge("squeezenet1_0", "ab" * 32), np.random.default_rng(5)
    ranks = {}
    for row in rows:
        own = {f"{name}_rank": int(stream.integers(1, 4)) for name in DISTORTION_NAMES}
        is_class = row["layer"] == "fc8"
        ranks[row["target_id"]] = own | {"judge_rank": int(stream.integers(1, 9)) if is_class else None}
    store = Run(open_store(str(run)))
    for shard in {row["shard"] for row in rows}:
        opinions = [
            {"target_id": row["target_id"], "shard": shard, "attempt": row["attempt"]}
            | (ranks[row["target_id"]] if row["file_name"] else {})
            for row in rows if row["shard"] == shard
        ]  # fmt: skip
        write_judgements(store, judge, shard, opinions, {}, is_again=False)
        write_judgements(store, Judge(judge.network, "cd" * 32), shard, opinions, {}, is_again=False)
    update_index(store)
    lines = report(dgn, run).table("judge", "layer")
    assert len(lines) == 8
    assert [line[0] for line in lines] == ["squeezenet1_0-abababab"] * 4 + ["squeezenet1_0-cdcdcdcd"] * 4
    for _, layer, mode, num, *shares in lines:
        of = [row for row in rows if (row["layer"], row["mode"]) == (layer, mode) and row["file_name"]]
        assert int(num) == len(of)
        judged = [ranks[row["target_id"]] for row in of]
        counts = [sum(one["judge_rank"] <= most for one in judged) if layer == "fc8" else None for most in (1, 5)]
        counts += [sum(row["rank"] == 1 for row in of)]
        counts += [sum(one[f"{name}_rank"] == 1 for one in judged) for name in DISTORTION_NAMES]
        assert shares == ["" if n is None else f"{n / len(of):.0%}" for n in counts]


def test_the_index_changes_nothing(run, dgn):
    before = report(dgn, run)
    update_index(Run(open_store(str(run))))
    (run / "metadata").rename(run / "elsewhere")  # so that rows can only be from the index
    after = report(dgn, run)
    examples = page_without_examples(after), page_without_examples(before)
    assert examples[0] == examples[1]
    assert [figure for figure in after.figures if "img" in figure] == [f for f in before.figures if "img" in f]


def page_without_examples(page):
    """The index has another order, in which others come first."""
    return [[line[:-1] if line and len(line) == 4 else line for line in table] for table in page.tables]


def test_texts_of_others_stay_texts_and_nothing_is_fetched(run, dgn):
    content = json.loads((run / "run.json").read_text())
    content["config"]["preset"] = content["fingerprint"]["discriminator"] = f"</style>{EVIL}"
    content["run_id"] = f"</title><script>alert(1)</script>\x1b{EVIL}"
    (run / "run.json").write_text(json.dumps(content))
    page = report(dgn, run)
    text = (run.parent / "out.html").read_text()
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"script", "link", "iframe", "object", "a", "form", "base", "image"}
    )
    assert "\x1b" not in text
    assert r"</title><script>alert(1)</script>\x1b" in page.text
    assert page.text.count(EVIL) > 10
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "srcset", "background")]
        if tag == "img":
            assert attributes["src"].startswith("data:image/webp;base64,")
    style = text[text.index("<style>") : text.index("</style>")]
    assert not re.search(r"url\(|@import|expression|http", style)
    policy = [attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    for wanted in ("prefers-color-scheme: dark", "@media print"):
        assert wanted in style
    assert any(attributes.get("content") == "width=device-width, initial-scale=1" for _, attributes in page.tags)


def test_the_settings_that_the_run_was_started_with_are_listed(reported, page):
    content = json.loads((reported / "run.json").read_text())
    settings = {line[0]: line[1] for table in page.tables for line in table if len(line) == 2}
    assert settings["weights_sha256"] == content["fingerprint"]["weights_sha256"]
    assert settings["targets_sha256"] == content["fingerprint"]["targets_sha256"]
    assert settings["targets"] == ", ".join(content["config"]["targets"])
    assert settings["shard_size"] == "16"


def test_a_run_that_is_not_whole(run, dgn):
    for shard in range(3, 11):
        (run / f"metadata/{shard:06d}.parquet").unlink()
    num = len(every_row(run))
    page = report(dgn, run)
    assert (page.tile("Pictures done"), page.tile("of")) == (num, 166)
    assert f"{166 - num} not rendered yet" in page.text
    shutil.rmtree(run / "metadata")
    page = report(dgn, run, "--price-per-hour", 1)
    assert (page.tile("Pictures done"), page.tile("Device hours")) == (0, 0)
    assert "166 not rendered yet" in page.text
    assert "There are no pictures yet." in page.text
    assert "Every picture is ok." not in page.text
    assert page.tile("Cost") == pytest.approx(158 / 3600, abs=0.006)


def test_damaged_pictures_are_named(run, dgn):
    rows = [row for row in every_row(run) if row["label"] == EVIL]
    (run / rows[0]["file_name"]).write_bytes(b"no picture")
    figures = [figure for figure in report(dgn, run).figures if "have another sha256" in figure["text"]]
    assert figures
    assert all("img" not in figure for figure in figures)
    (run / rows[0]["file_name"]).unlink()
    assert f"{rows[0]['file_name']} is missing" in report(dgn, run).text


def test_pictures_outside_of_the_run_are_not_shown(run, dgn):
    """Not even where they are what the rows say."""
    rows = every_row(run)
    shutil.copytree(run / "images", run.parent / "elsewhere")

    def change(_, rows):
        for row in rows:
            row["file_name"] = row["file_name"] and row["file_name"].replace("images/", "../elsewhere/")

    edit_shards(run, change)
    assert all((run / row["file_name"]).exists() for row in every_row(run) if row["file_name"])
    page = report(dgn, run)
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert page.text.count("leads out of the run") > 60
    assert page.tile("Pictures done") == len(rows)


def test_numbers_that_were_edited_are_not_counted(run, dgn):
    def change(shard, rows):
        if shard == 0:
            rows[0] |= {"seconds": math.nan, "rendered_at": None, "activation": math.nan}
            rows[1] |= {"seconds": -math.inf, "activation": math.inf}
            rows[2] |= {"host": None, "device": None, "reason": "x" * 10_000, "status": "odd"}

    edit_shards(run, change)
    page = report(dgn, run)
    assert page.tile("Pictures done") == 166
    assert page.tile("Device hours") == about(
        sum(row["seconds"] for row in every_row(run) if row["seconds"] >= 0) / 3600
    )
    assert "1 odd" in page.text
    assert "x" * 301 not in page.text
    assert not re.search(r"\bnan\b|\binf\b", page.text)
