"""The command line `dgn`: the commands' names, and how errors are reported.

Each command is a file in this folder with a function `command`, or a group of commands `app`. Only the one called is
imported, so that `dgn --help` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import sys
from importlib import import_module
from typing import Annotated

import typer
from typer.exceptions import TyperException

import dgn
from dgn.compiler import leave_out_compiler
from dgn.errors import DgnError
from dgn.interrupts import say_interrupted
from dgn.text import printable

COMMANDS = {
    "render": "Render every target that RUN lacks. To continue a stopped run, repeat the command.",
    "resume": "Continue RUN with the settings it was started with.",
    "status": "Show RUN's progress: pictures, shards, outcomes, failed attempts.",
    "failed": "List missing shards with their errors, and pictures that are not ok.",
    "query": "Select rows of RUN, best first, as text, JSON, CSV or Parquet; optionally copy their pictures.",
    "gallery": "Make a web page that shows every picture of RUN.",
    "sheet": "Draw contact sheets of RUN: every picture with its label, activation and rank.",
    "judge": "Have an independent network judge RUN's pictures, and RUN's own score them after distortions.",
    "examples": "Find the photographs that excite RUN's units most, from a folder or bucket of yours.",
    "alike": "Find out which pictures of RUN look alike: similar ones, two figures per picture, and a map.",
    "explain": "Draw the filters that speak most for the network's answer to photographs of yours.",
    "compare": "Compare two runs of the same targets, picture by picture, the most changed first.",
    "audit": "Show what the picture of each class in RUN contains beside the class, worst first.",
    "report": "Summarise RUN on one HTML page: statistics, plots, best and worst pictures, failures, settings.",
    "export": "Export RUN as a Hugging Face dataset, or as a few tar files.",
    "verify": "Check RUN: every target present once, every file intact, a sample scored again.",
    "index": "Compact RUN's rows into a few sorted files for queries and the gallery, as dgn render does at its end.",
    "gc": "Delete pictures left by killed attempts, which no row names.",
    "pretrain": "Make a decoder, the generator of the pretrained mode, from photographs.",
    "info": "Show the cost per target, the layers of a network, and the size of the target set.",
    "doctor": "Check this machine: devices, weights, and whether it can write to a folder or bucket.",
    "tune": "Measure in two minutes what is fastest on this machine's device, for dgn render to use.",
}
INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt


def build_app(called: str | None) -> typer.Typer:
    """All commands by name; only the one called is loaded."""
    app = typer.Typer(
        name="dgn",
        help="See what a convolutional network has learned, all of it, at once.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_before_commands)
    for name, summary in COMMANDS.items():
        module = import_module(f"dgn.jobs.{name}") if name == called else None
        if module and hasattr(module, "app"):
            app.add_typer(module.app, name=name, help=summary)
        else:
            app.command(name, help=summary)(module.command if module else _not_loaded)
    return app


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(dgn.__version__)
        raise typer.Exit


def _before_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show dgn's version and exit.")
    ] = False,
) -> None:
    """Options that need no command."""


def _not_loaded() -> None:
    raise AssertionError("only the command called is loaded")


def main() -> None:
    """Entry point.

    Exit codes: 0 done; 1 part of the run is missing or damaged; 2 bad input; 130 interrupted by SIGINT (Ctrl-C),
    143 by SIGTERM (`ray job stop`, Kubernetes, a shutdown).
    """
    leave_out_compiler()
    atexit.register(_keep_garbage)
    arguments = sys.argv[1:] or ["--help"]
    try:
        code = build_app(arguments[0])(arguments, standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(say_interrupted())
    except TyperException as error:
        message = " ".join(error.format_message().split()).rstrip(".").replace("': Value error, ", "': ")
        sys.exit(_say(f"{message}; see --help", 2))
    except DgnError as error:
        sys.exit(_say(error, error.exit_code))


def _keep_garbage() -> None:
    """Otherwise Python would look through all of PyTorch for garbage several times before it ends: most of a second."""
    if "triton" not in sys.modules:  # it complains about whatever is not freed
        gc.freeze()


def _say(what: object, code: int) -> int:
    print(f"dgn: {printable(what)}", file=sys.stderr, flush=True)
    return code
