"""`dgn gallery`: a web page next to the data that shows every picture of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from dgn.jobs.common.arguments import RunArgument
from dgn.runs.run import Run

app = typer.Typer()


@app.command()
def build(
    run: RunArgument,
    for_files: Annotated[
        bool | None,
        typer.Option("--file/--no-file", help="Make it work from file:// too (default: if RUN is a folder)."),
    ] = None,
) -> None:
    """Write the page next to the data, as RUN/gallery/index.html."""
    from dgn.jobs.galleries.build import build_page

    build_page(Run.at(run), for_files)


@app.command()
def serve(
    run: RunArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free port.")] = 0,
    host_header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Answer requests for this host too, which a proxy passes on; repeatable."),
    ] = None,
) -> None:
    """Serve the page to this machine's browser only, for a private bucket."""
    from dgn.jobs.galleries.server import serve_page

    serve_page(Run.at(run), port, host_header or ())
