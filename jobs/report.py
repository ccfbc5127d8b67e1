"""`dgn report`: a run on one self-contained HTML page, to send, print and keep."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from dgn.errors import DgnError
from dgn.jobs.common.arguments import RunArgument
from dgn.jobs.common.files import check_replaceable, one_line_errors
from dgn.jobs.reports.page import GENERATOR, render_page
from dgn.runs.run import Run
from dgn.runs.stores import LocalStore
from dgn.text import printable


def command(
    run: RunArgument,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT.html", help="File to write. An existing file is overwritten only if it is a report."
        ),
    ] = Path("report.html"),
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Price of one device, in any currency, to show costs.")
    ] = None,
) -> None:
    with one_line_errors(out):
        if not out.absolute().parent.is_dir() or out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
            raise DgnError(f"cannot write the report {out}: expected an .html file in an existing folder")
    check_replaceable(out, "report", [GENERATOR.encode()])
    if price_per_hour is not None and not math.isfinite(price_per_hour):
        raise DgnError(f"--price-per-hour {price_per_hour}: expected a price, such as 2.5")
    opened = Run.at(run)
    page = render_page(opened, price_per_hour).encode()
    with one_line_errors(out):
        LocalStore(str(out.absolute().parent)).write(out.name, page)
    print(printable(f"{out}: {len(page) / 1e3:,.0f} kB"))
