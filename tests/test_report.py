"""The report's figures, counted again from the shards' Parquet files; that others' texts stay text; what is refused."""

import base64
import io
import json
import math
import os
import re
import shutil
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.figures import pattern
from cluster.index import update_index
from cluster.judgements import DISTORTED, Judge, write_judgements
from cluster.run import Run
from cluster.storage import open_store
from jobs.report import GENERATOR, report_command
from tests.fake_runs import write_fake_run

EVIL = "<img src=x onerror=alert(1)>"
START = datetime(2026, 3, 1, 8, tzinfo=UTC)
BATCH, BATCH_S = 4, 80.0
HOSTS = {0: ("host-a", "A10G"), 1: ("host-a", "cpu"), 2: (EVIL, "A10G")}  # by the shard's number modulo 3
VOID = {"meta", "img", "br", "path"}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, sections by heading, tables by their cells' texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.tables, self.figures = [], [], "", [], []
        self.cell = None
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "figure":
            self.figures.append({"text": ""})
        if tag in ("img", "path", "svg") and "figure" in self.open:
            self.figures[-1][tag] = dict(attrs)
        if tag == "br":
            self.handle_data(" ")

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if "figure" in self.open:
            self.figures[-1]["text"] += data

    def table(self, first, second):
        """Rows below the head of the table that begins with these two columns."""
        found = [table[1:] for table in self.tables if table[0][:2] == [first, second]]
        assert len(found) == 1
        return found[0]

    def tile(self, name):
        return number(re.search(rf"{name}\s*([\d.,]+)", self.text)[1])


def number(text):
    return float(text.replace(",", ""))


def about(value):
    """As three digits tell it."""
    return pytest.approx(value, rel=6e-3)


def edit(folder, change):
    """Changes rows where they lie: change(shard, rows) in place."""
    for path in sorted((folder / "metadata").glob("*.parquet")):
        table = pq.read_table(path)
        rows = table.to_pylist()
        change(int(path.stem), rows)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def rows_of(folder):
    return [row for path in sorted((folder / "metadata").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def time_as_a_worker_does(shard, rows):
    """Each shard begins at a time that is known; a batch's pictures are saved together, each with its share."""
    now = START + timedelta(minutes=30 * (shard // 3), seconds=shard % 3)
    for n in range(0, len(rows), BATCH):
        now += timedelta(seconds=BATCH_S)
        for row in rows[n : n + BATCH]:
            row["rendered_at"], row["seconds"] = now, BATCH_S / len(rows[n : n + BATCH])
            row["host"], row["device"] = HOSTS[shard % 3]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """166 pictures in 11 shards, four failed attempts, and a label that would be markup."""
    folder = tmp_path_factory.mktemp("report") / "run"
    labels = [f"class {n}" for n in range(1000)]
    labels[3] = EVIL
    targets = ("classes:0-69", "filters:conv1_1:0-47", "filters:conv3_2:0-47")
    run = write_fake_run(str(folder), targets=targets, shard_size=16, labels=labels, seed=4)

    def change(shard, rows):
        time_as_a_worker_does(shard, rows)
        for n, row in enumerate(rows):
            if shard in (7, 8):
                row["mode"], row["target_id"] = "pretrained", row["target_id"].replace("untrained", "pretrained")
            if row["status"] == "not_converged":
                row["reason"] = f"rank {n + 2} on the saved picture: {EVIL} is first"
            if row["label"] == EVIL:
                row["status"], row["reason"], row["activation"] = "ok", None, 1000.0

    edit(folder, change)
    for shard, cause, host, seconds in ((0, "memory", "host-a", 100), (0, "memory", EVIL, 50), (2, "lost", EVIL, 8)):
        error = f"{cause}: {EVIL} in shard {shard}"
        run.note_failure(shard, f"{seconds:08x}", error, {"cause": cause, "host": host, "seconds": seconds})
    run.note_failure(5, "0000beef", "an older note", {})
    return folder


@pytest.fixture
def run(original, tmp_path):
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def page(original, tmp_path_factory):
    """The report of a run that nobody changes."""
    out = tmp_path_factory.mktemp("page") / "out.html"
    report_command(str(original), out, 2.5)
    return Page(out.read_text("utf-8"))


def report(dgn, run, *flags):
    out = run.parent / "out.html"
    code, said, err = dgn("report", run, out, *flags)
    assert (code, err) == (0, "")
    assert said.startswith(f"{out}: ")
    assert [path.name for path in run.parent.iterdir() if path.name.startswith(".")] == []
    return Page(out.read_text("utf-8"))


def test_outcomes_pace_and_cost(original, page):
    rows = rows_of(original)
    assert page.tile("Pictures done") == len(rows) == 166
    for status, count in Counter(row["status"] for row in rows).items():
        assert f"{count} {status.replace('_', ' ')}" in page.text
    device_s = sum(row["seconds"] for row in rows)
    shards = defaultdict(list)
    for row in rows:
        shards[row["shard"]].append(row)
    assert device_s == pytest.approx(sum(BATCH_S * math.ceil(len(of) / BATCH) for of in shards.values()))
    assert page.tile("Device hours") == about(device_s / 3600)
    assert page.tile("Pictures a device hour") == about(len(rows) / device_s * 3600)
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


def test_without_a_price_no_cost_is_told(run, dgn):
    assert not re.search(r"\bcosts?\b", report(dgn, run).text, re.IGNORECASE)


def test_histograms_hold_every_picture_once(original, page):
    values = defaultdict(list)
    for row in rows_of(original):
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
        told = re.search(r"([\d,]+) pictures, median ([\d.,]*\d)(?:, (\d+) silent)?", plot["text"])
        assert number(told[1]) == len(of)
        assert number(told[2]) == about(float(np.median(of)))
        assert int(told[3] or 0) == sum(value <= 0 for value in of)


def test_reasons_are_grouped(original, page):
    bad = [row for row in rows_of(original) if row["status"] != "ok"]
    lines = page.table("pictures", "outcome")
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


@pytest.mark.parametrize(
    ("reason", "common"),
    [
        ("rank 12 on the saved picture: day 3: 7-up is first", "rank N on the saved picture: another is first"),
        ("the activation fell from 1.5e-05 to 0.25", "the activation fell from N to N"),
        ("conv1_1 was silent after 300 updates.", "conv1_1 was silent after N updates."),
        ("1" * 300 + "a", "1" * 300 + "a"),
    ],
)
def test_what_reasons_have_in_common(reason, common):
    assert pattern(reason) == common


def test_faults_by_cause_and_host(page):
    assert "4 failed attempts at 3 shards" in page.text
    causes = {line[0]: line[1:] for line in page.table("cause", "attempts")}
    assert {cause: line[:2] for cause, line in causes.items()} == {
        "memory": ["2", "1"], "lost": ["1", "1"], "not told": ["1", "1"],
    }  # fmt: skip
    assert number(causes["memory"][2]) == about(150 / 3600)
    assert causes["memory"][3] == f"{EVIL} (1), host-a (1)" or causes["memory"][3] == f"host-a (1), {EVIL} (1)"
    assert causes["lost"][4] == f"lost: {EVIL} in shard 2"
    hosts = {line[0]: line[1:] for line in page.table("host", "attempts")}
    assert {host: line[:2] for host, line in hosts.items()} == {
        EVIL: ["2", "2"], "host-a": ["1", "1"], "not told": ["1", "1"],
    }  # fmt: skip


def test_best_and_worst_pictures(original, page):
    rows = [row for row in rows_of(original) if row["activation"] is not None]
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
        told = re.search(r"([\d.,]+), rank (\d+)", figure["text"].strip()[len(name) :])
        assert (number(told[1]), int(told[2])) == (about(row["activation"]), row["rank"])
        kind, data = figure["img"]["src"].split(",", 1)
        assert kind == "data:image/webp;base64"
        small = Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB")
        whole = Image.open(original / row["file_name"]).convert("RGB").resize(small.size, Image.Resampling.BOX)
        assert np.abs(np.asarray(small, float) - np.asarray(whole, float)).mean() < 12


def test_no_picture_is_shown_twice(run, dgn):
    """Of 30 pictures 20 are the best and 10 the worst; of 16 all are the best."""
    for shards, num in (((0, 1), 32), ((0,), 16)):
        for path in (run / "metadata").iterdir():
            if int(path.stem) not in shards:
                path.unlink()
        rows = [row for row in rows_of(run) if row["activation"] is not None]
        page = report(dgn, run)
        shown = [figure["img"]["alt"] for figure in page.figures if "img" in figure]
        assert sorted(shown) == sorted(f"{row['layer']} {row['unit']}" for row in rows)
        assert len(shown) <= num
        assert ("Lowest activations" in page.text) == (len(shown) > 20)


def test_the_judges_table(run, dgn):
    rows, judge, stream = rows_of(run), Judge("squeezenet1_0", "ab" * 32), np.random.default_rng(5)
    ranks = {}
    for row in rows:
        own = {f"{name}_rank": int(stream.integers(1, 4)) for name in DISTORTED}
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
        counts += [sum(one[f"{name}_rank"] == 1 for one in judged) for name in DISTORTED]
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


def test_others_texts_stay_texts_and_nothing_is_fetched(run, dgn):
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


def test_settings_name_what_the_run_was_begun_with(original, page):
    content = json.loads((original / "run.json").read_text())
    told = {line[0]: line[1] for table in page.tables for line in table if len(line) == 2}
    assert told["weights_sha256"] == content["fingerprint"]["weights_sha256"]
    assert told["targets_sha256"] == content["fingerprint"]["targets_sha256"]
    assert told["targets"] == ", ".join(content["config"]["targets"])
    assert told["shard_size"] == "16"


def test_a_run_that_is_not_whole(run, dgn):
    for shard in range(3, 11):
        (run / f"metadata/{shard:06d}.parquet").unlink()
    num = len(rows_of(run))
    page = report(dgn, run)
    assert (page.tile("Pictures done"), page.tile("of")) == (num, 166)
    assert f"{166 - num} not made yet" in page.text
    shutil.rmtree(run / "metadata")
    page = report(dgn, run, "--price-per-hour", 1)
    assert (page.tile("Pictures done"), page.tile("Device hours")) == (0, 0)
    assert "166 not made yet" in page.text
    assert "No picture has been made yet." in page.text
    assert "Every picture that was made is ok." not in page.text
    assert page.tile("Cost") == pytest.approx(158 / 3600, abs=0.006)


def test_pictures_that_are_damaged_are_told(run, dgn):
    rows = [row for row in rows_of(run) if row["label"] == EVIL]
    (run / rows[0]["file_name"]).write_bytes(b"no picture")
    figures = [figure for figure in report(dgn, run).figures if "sha256 differs" in figure["text"]]
    assert figures
    assert all("img" not in figure for figure in figures)
    (run / rows[0]["file_name"]).unlink()
    assert f"{rows[0]['file_name']} is missing" in report(dgn, run).text


def test_figures_that_were_edited_are_not_counted(run, dgn):
    def change(shard, rows):
        if shard == 0:
            rows[0] |= {"seconds": math.nan, "rendered_at": None, "activation": math.nan}
            rows[1] |= {"seconds": -math.inf, "activation": math.inf}
            rows[2] |= {"host": None, "device": None, "reason": "x" * 10_000, "status": "odd"}

    edit(run, change)
    page = report(dgn, run)
    assert page.tile("Pictures done") == 166
    assert page.tile("Device hours") == about(sum(row["seconds"] for row in rows_of(run) if row["seconds"] >= 0) / 3600)
    assert "1 odd" in page.text
    assert "x" * 301 not in page.text
    assert not re.search(r"\bnan\b|\binf\b", page.text)


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_a_report_is_overwritten(run, dgn, tmp_path):
    report(dgn, run)
    first = (tmp_path / "out.html").read_bytes()
    (tmp_path / "out.html").write_bytes(first[:2000])
    report(dgn, run, "--price-per-hour", 1)
    assert len((tmp_path / "out.html").read_bytes()) > len(first) > 2000
    (tmp_path / "mine.html").write_text("<!doctype html><title>mine</title>")
    (tmp_path / "empty.html").touch()
    (tmp_path / "link.html").symlink_to(tmp_path / "out.html")
    os.mkfifo(tmp_path / "pipe.html")
    before = everything(tmp_path)
    for name in ("mine.html", "empty.html", "link.html", "pipe.html"):
        code, out, err = dgn("report", run, tmp_path / name)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{name} is there and no report of dgn" in err
    assert everything(tmp_path) == before


def test_the_default_is_report_html_here(run, dgn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dgn("report", run)[:2] == (0, f"report.html: {(tmp_path / 'report.html').stat().st_size / 1e6:.1f} MB\n")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "report.html"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["RUN", "no/such/folder.html"], "expected a file .html in a folder that exists"),
        (["RUN", "report.pdf"], "expected a file .html"),
        (["RUN", "."], "expected a file .html"),
        (["RUN", "/proc/x.html"], "cannot write to /proc/x.html: No such file or directory"),
        (["RUN", f"{'x' * 300}.html"], "File name too long"),
        (["RUN", "s3://bucket/report.html"], "expected a file .html"),
        (["RUN", "r.html", "--price-per-hour", "nan"], "price-per-hour"),
        (["RUN", "r.html", "--price-per-hour", "inf"], "expected a price"),
        (["RUN", "r.html", "--price-per-hour", "-1"], "price-per-hour"),
        (["RUN", "r.html", "--price-per-hour", "cheap"], "price-per-hour"),
        (["nowhere", "r.html"], "no run at"),
        (["RUN/images", "r.html"], "no run at"),
        ([], "RUN"),
    ],
)
def test_bad_input_is_told_in_one_line_and_nothing_is_written(original, dgn, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    before = everything(original)
    code, out, err = dgn("report", *[one.replace("RUN", str(original)) for one in arguments])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert everything(original) == before
    assert list(tmp_path.iterdir()) == []


def a_note_of_another_kind(run):
    (run / "failures/000000/x.json").write_text("[]")


def a_shard_cut_short(run):
    path = run / "metadata/000001.parquet"
    path.write_bytes(path.read_bytes()[:-9])


def a_picture_elsewhere(run):
    (run.parent / "secret.png").write_bytes(b"secret")

    def change(_, rows):
        for row in rows:
            row["file_name"] = row["file_name"] and "../secret.png"

    edit(run, change)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (a_note_of_another_kind, "is no note of a failed attempt"),
        (a_shard_cut_short, "000001.parquet is not as it was committed"),
        (a_picture_elsewhere, "leaves the run"),
    ],
)
def test_a_damaged_run_leaves_the_last_report(run, dgn, tmp_path, harm, says):
    (tmp_path / "out.html").write_text(f"<head>{GENERATOR}</head>")
    harm(run)
    before = everything(tmp_path)
    code, out, err = dgn("report", run, tmp_path / "out.html")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert says in err
    assert everything(tmp_path) == before
