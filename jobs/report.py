"""`dgn report`: a run on one HTML page that needs nothing else, to be sent, printed and kept."""

from __future__ import annotations

import base64
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import dgn
from cluster.figures import Figures, Histogram, faults, figures, most_frequent_first
from cluster.judgements import DISTORTED
from cluster.judging import summaries
from cluster.query import Rows
from cluster.run import Damaged, Run, RunInfo
from cluster.storage import LocalStore
from dgn import picture
from dgn.errors import DgnError, printable
from jobs.files import check_replaceable, told_in_one_line
from jobs.judge import judges_told, percent
from jobs.query import STATUSES
from jobs.status import open_run

TEMPLATES = Path(__file__).parent / "web"
NUM_SHOWN = 20  # best and worst pictures of a mode
MOST_REASONS = 30  # lines of a table
WIDTH, HEIGHT = 240, 64  # of a histogram, in its own units
FROM_US = 1e-6
GENERATOR = '<meta name="generator" content="dgn report">'  # how a report is known


def report_command(url: str, out: Path, price_per_hour: float | None) -> None:
    with told_in_one_line(out):
        if not out.absolute().parent.is_dir() or out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
            raise DgnError(f"cannot write the report {out}: expected a file .html in a folder that exists")
    check_replaceable(out, "report", [GENERATOR.encode()])
    if price_per_hour is not None and not math.isfinite(price_per_hour):
        raise DgnError(f"--price-per-hour {price_per_hour}: expected a price, such as 2.5")
    run = open_run(url)
    page = render_page(run, price_per_hour).encode()
    with told_in_one_line(out):
        LocalStore(str(out.absolute().parent)).write(out.name, page)
    print(printable(f"{out}: {len(page) / 1e6:.1f} MB"))


def render_page(run: Run, price_per_hour: float | None) -> str:
    """The whole page. Raises: StoreError."""
    info, rows = run.info(), Rows(run)
    found, judged = figures(rows, NUM_SHOWN), summaries(run, rows)
    failed = faults(run.failures())
    num_done = found.statuses.total()
    names = [*STATUSES, *sorted(found.statuses.keys() - set(STATUSES))]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=_finalize,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "percent": percent, "count": lambda n: f"{n:,}", "figure": _figure, "hours": lambda s: _figure(s / 3600),
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
        summaries=list(zip(judges_told(judged), judged, strict=True)),
        distorted=DISTORTED,
        settings=_settings(info),
        width=WIDTH,
        height=HEIGHT,
    )


def _finalize(value: Any) -> Any:
    """What others wrote shows its control characters, too; jinja escapes all but Markup afterwards."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _shown(run: Run, found: Figures) -> list[tuple[str, list[tuple[str, list[dict[str, Any]]]]]]:
    """By mode, the best and the worst pictures, each with its thumbnail or what is wrong with it."""
    kinds = {"Highest activations": found.best, "Lowest activations": found.worst}
    return [
        (mode, [(title, [row | _thumbnail(run, row) for row in by_mode[mode]]) for title, by_mode in kinds.items()])
        for mode in found.best
    ]


def _thumbnail(run: Run, row: dict[str, Any]) -> dict[str, str | None]:
    """Made anew from the picture: what a run holds is shown only after it was decoded."""
    try:
        png = run.whole_picture(row["file_name"], row["sha256"])
    except Damaged as error:
        return {"thumbnail": None, "problem": str(error)}
    try:
        webp = picture.encode_thumbnail(png)
    except DgnError as error:
        return {"thumbnail": None, "problem": f"{row['file_name']}: {error}"}
    return {"thumbnail": f"data:image/webp;base64,{base64.b64encode(webp).decode()}", "problem": None}


def _settings(info: RunInfo) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the run was begun with, name by name."""
    return [("Fingerprint", list(_leaves(info.fingerprint))), ("Configuration", list(_leaves(info.config)))]


def _leaves(content: dict[str, Any], prefix: str = "") -> Any:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _figure(value: float | None) -> str:
    """Three digits, or all before the point."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _moment(at_us: int | None) -> str:
    return "–" if at_us is None else f"{datetime.fromtimestamp(at_us * FROM_US, UTC):%Y-%m-%d %H:%M:%S}"


def _bars(histogram: Histogram) -> str:
    """An SVG path of its bars, upright on the lower edge, a unit apart."""
    highest, step = max(histogram.counts), WIDTH / len(histogram.counts)
    tall = [max(1.0, HEIGHT * count / highest) if count else 0.0 for count in histogram.counts]
    return "".join(
        f"M{n * step:.1f} {HEIGHT}v-{bar:.1f}h{step - 1:.1f}v{bar:.1f}z" for n, bar in enumerate(tall) if bar
    )
