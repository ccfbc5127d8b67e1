"""The report's page, from a run's statistics and a template."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

import dgn
from dgn.errors import DgnError, RunDamaged
from dgn.jobs.common.pages import templates, webp_url
from dgn.jobs.common.printing import percent
from dgn.pictures.codec import decode_png, encode_thumbnail
from dgn.runs.failures import faults, most_frequent_first
from dgn.runs.info import RunInfo
from dgn.runs.judgements import DISTORTION_NAMES
from dgn.runs.query import Rows
from dgn.runs.run import Run
from dgn.runs.statistics import Histogram, Statistics, statistics_of
from dgn.runs.summaries import judge_names, summaries
from dgn.statuses import Status

TEMPLATES = Path(__file__).parent
NUM_SHOWN = 20  # best and worst pictures of a mode
MOST_REASONS = 30  # lines in the table
WIDTH, HEIGHT = 240, 64  # of a histogram, in SVG units
FROM_US = 1e-6
GENERATOR = '<meta name="generator" content="dgn report">'  # identifies a report


def render_page(run: Run, price_per_hour: float | None) -> str:
    """The whole page. Raises: StoreError."""
    info, rows = run.info(), Rows(run)
    found, judged = statistics_of(rows, NUM_SHOWN), summaries(run, rows)
    failed = faults(run.failures())
    num_done = found.statuses.total()
    names = [*tuple(Status), *sorted(found.statuses.keys() - set(Status))]
    environment = templates(TEMPLATES)
    environment.filters |= {
        "percent": percent, "count": lambda n: f"{n:,}", "number": _number, "hours": lambda s: _number(s / 3600),
        "moment": _moment, "money": lambda price: f"{price:,.2f}", "bars": _bars,
    }  # fmt: skip
    return environment.get_template("report.html.j2").render(
        url=run.store.url,
        info=info,
        now=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        generator=Markup(GENERATOR),
        version=dgn.__version__,
        outcomes=[(name, found.statuses[name]) for name in names if found.statuses[name]],
        num_done=num_done,
        share_done=num_done / info.num_targets if info.num_targets else None,
        found=found,
        devices=sorted(found.devices.items()),
        failed=failed,
        causes=most_frequent_first(failed.by_cause),
        hosts=most_frequent_first(failed.by_host),
        price=price_per_hour,
        most_reasons=MOST_REASONS,
        shown=_shown(run, found),
        summaries=list(zip(judge_names(judged), judged, strict=True)),
        distorted=DISTORTION_NAMES,
        settings=_settings(info),
        width=WIDTH,
        height=HEIGHT,
    )


def _shown(run: Run, found: Statistics) -> list[tuple[str, list[tuple[str, list[dict[str, Any]]]]]]:
    """The best and the worst pictures by mode, each with its thumbnail or its problem."""
    kinds = {"Highest activations": found.best, "Lowest activations": found.worst}
    return [
        (mode, [(title, [row | _thumbnail(run, row) for row in by_mode[mode]]) for title, by_mode in kinds.items()])
        for mode in found.best
    ]


def _thumbnail(run: Run, row: dict[str, Any]) -> dict[str, str | None]:
    """A thumbnail made from the picture, so that a page never holds bytes that were not decoded."""
    try:
        png = run.picture(row["file_name"], row["sha256"])
    except RunDamaged as error:
        return {"thumbnail": None, "problem": error.problem}
    try:
        webp = encode_thumbnail(decode_png(png))
    except DgnError as error:
        return {"thumbnail": None, "problem": f"{row['file_name']}: {error}"}
    return {"thumbnail": webp_url(webp), "problem": None}


def _settings(info: RunInfo) -> list[tuple[str, list[tuple[str, str]]]]:
    """The run's settings, name by name."""
    return [("Fingerprint", list(_leaves(info.fingerprint))), ("Configuration", list(_leaves(info.config)))]


def _leaves(content: dict[str, Any], prefix: str = "") -> Any:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: float | None) -> str:
    """Three digits, or all digits before the point."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _moment(at_us: int | None) -> str:
    return "–" if at_us is None else f"{datetime.fromtimestamp(at_us * FROM_US, UTC):%Y-%m-%d %H:%M:%S}"


def _bars(histogram: Histogram) -> str:
    """An SVG path of the histogram's bars."""
    highest, step = max(histogram.counts), WIDTH / len(histogram.counts)
    tall = [max(1.0, HEIGHT * count / highest) if count else 0.0 for count in histogram.counts]
    return "".join(
        f"M{n * step:.1f} {HEIGHT}v-{bar:.1f}h{step - 1:.1f}v{bar:.1f}z" for n, bar in enumerate(tall) if bar
    )
