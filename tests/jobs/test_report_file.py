"""`dgn report` overwrites nothing but reports, and leaves no half of one."""

import os
import shutil

import pytest

from dgn.jobs.reports.page import GENERATOR
from tests.helpers.rows import assert_one_line, contents, names_in


@pytest.fixture
def run(reported, tmp_path):
    shutil.copytree(reported, tmp_path / "run")
    return tmp_path / "run"


def test_only_a_report_is_overwritten(run, dgn, tmp_path):
    assert dgn("report", run, tmp_path / "out.html")[0] == 0
    first = (tmp_path / "out.html").read_bytes()
    (tmp_path / "out.html").write_bytes(first[:2000])
    assert dgn("report", run, tmp_path / "out.html", "--price-per-hour", 1)[0] == 0
    assert len((tmp_path / "out.html").read_bytes()) > len(first) > 2000
    (tmp_path / "mine.html").write_text("<!doctype html><title>mine</title>")
    (tmp_path / "empty.html").touch()
    (tmp_path / "link.html").symlink_to(tmp_path / "out.html")
    os.mkfifo(tmp_path / "pipe.html")
    before = contents(tmp_path)
    for name in ("mine.html", "empty.html", "link.html", "pipe.html"):
        assert_one_line(dgn("report", run, tmp_path / name), 2, f"{name} exists and is not a report by dgn")
    assert contents(tmp_path) == before


def test_the_default_is_report_html_here(run, dgn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dgn("report", run)[:2] == (0, f"report.html: {(tmp_path / 'report.html').stat().st_size / 1e3:,.0f} kB\n")
    assert names_in(tmp_path) == ["report.html", "run"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["RUN", "no/such/folder.html"], "expected an .html file in an existing folder"),
        (["RUN", "report.pdf"], "expected an .html file"),
        (["RUN", "."], "expected an .html file"),
        (["RUN", "/proc/x.html"], "cannot write to /proc/x.html: No such file or directory"),
        (["RUN", f"{'x' * 300}.html"], "File name too long"),
        (["RUN", "s3://bucket/report.html"], "expected an .html file"),
        (["RUN", "r.html", "--price-per-hour", "nan"], "price-per-hour"),
        (["RUN", "r.html", "--price-per-hour", "inf"], "expected a price"),
        (["RUN", "r.html", "--price-per-hour", "-1"], "price-per-hour"),
        (["RUN", "r.html", "--price-per-hour", "cheap"], "price-per-hour"),
        (["nowhere", "r.html"], "no run at"),
        (["RUN/images", "r.html"], "no run at"),
        ([], "RUN"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(reported, dgn, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    before = contents(reported)
    assert_one_line(dgn("report", *[one.replace("RUN", str(reported)) for one in arguments]), 2, says)
    assert contents(reported) == before
    assert list(tmp_path.iterdir()) == []


def add_a_note_of_another_kind(run):
    (run / "failures/000000/x.json").write_text("[]")


def cut_a_shard_short(run):
    path = run / "metadata/000001.parquet"
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (add_a_note_of_another_kind, "x.json does not describe a failed attempt"),
        (cut_a_shard_short, "000001.parquet is not what was committed"),
    ],
)
def test_a_damaged_run_leaves_the_last_report(run, dgn, tmp_path, damage, says):
    (tmp_path / "out.html").write_text(f"<head>{GENERATOR}</head>")
    damage(run)
    before = contents(tmp_path)
    assert_one_line(dgn("report", run, tmp_path / "out.html"), 1, says)
    assert contents(tmp_path) == before
