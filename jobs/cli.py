"""The command line `dgn`. Each command parses, builds a config, calls one function and prints.

Nothing heavy is imported here, so that `--help` answers at once; commands import what they need.
"""

from __future__ import annotations

import json
import math
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from dgn.errors import DgnError, RunDamaged, ShardFailed, printable

app = typer.Typer(
    name="dgn",
    help="See what a convolutional network has learned, all of it, at once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A folder or s3://bucket/prefix.")]
Discriminator = Annotated[
    str | None, typer.Option(help="vgg16 (default), any torchvision classifier, vgg16-mini or vgg16-mini-b.")
]
WeightsFile = Annotated[str | None, typer.Option(metavar="FILE", help=".safetensors or .pth; default: torchvision's.")]

DecoderFile = Annotated[
    str | None, typer.Option(metavar="FILE", help='From dgn pretrain, or "drawings"; for the pretrained mode.')
]
Workers = Annotated[
    str | None, typer.Option(metavar="N|MIN-MAX", help="Default: one per GPU, or per machine without any.")
]
GpusPerWorker = Annotated[float | None, typer.Option(help="Default: 1 where there are GPUs.")]


INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"
    parquet = "parquet"


class ExportFormat(StrEnum):
    hf = "hf"
    tar = "tar"


class By(StrEnum):
    activation = "activation"
    probability = "probability"
    rank = "rank"


@app.command()
def render(
    run: RunArgument,
    more_targets: Annotated[list[str] | None, typer.Argument(metavar="", hidden=True)] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC...",
            help="all, classes, classes:0-99, classes:mosque, filters, filters:conv5_1:0-31, mix:classes:9+30, "
            "group:conv5_1:3*0.5+17; several after one another.",
        ),
    ] = None,
    modes: Annotated[
        str | None,
        typer.Option(help="untrained, pretrained or untrained,pretrained (untrained; classes of all: the two)."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="paper, standard (default) or draft.")] = None,
    discriminator: Discriminator = None,
    weights: WeightsFile = None,
    decoder: DecoderFile = None,
    seed: Annotated[int | None, typer.Option(help="The first seed (0).")] = None,
    seeds: Annotated[int | None, typer.Option(help="Pictures per target, each from a seed of its own (1).")] = None,
    updates: Annotated[int | None, typer.Option(help="Updates per picture, in place of the preset's.")] = None,
    stop_early: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="End a picture once its activation rises by less than this in 20 updates (not before 40).",
        ),
    ] = None,
    views: Annotated[
        int | None, typer.Option(help="Moved views per update (0: none), in place of the preset's.")
    ] = None,
    tone_mapping: Annotated[str | None, typer.Option(help="none (default) or notebook, with preset paper.")] = None,
    width: Annotated[float | None, typer.Option(help="Factor on G's channels, in place of the preset's.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto (default: bfloat16 where the device has it), float32, bfloat16.")
    ] = None,
    shard_size: Annotated[int | None, typer.Option(help="Targets per shard (32).")] = None,
    batch_size: Annotated[str | None, typer.Option(help="auto (default) or targets per pass.")] = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    log_format: Annotated[str | None, typer.Option(help="text (default) or json, of this job and its workers.")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="All of these in one file; flags win.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print plan, counts, memory and cost; write nothing.")
    ] = False,
) -> None:
    """Render every target that RUN does not hold yet. The same line again goes on where it stopped."""
    from jobs.render import load_config, render_command

    if more_targets and not targets:
        raise DgnError(
            f"unexpected '{more_targets[0]}': targets stand behind --targets, RUN is one folder or s3:// prefix"
        )
    flags: dict[str, Any] = {
        "targets": [*(targets or []), *(more_targets or [])] or None,
        "modes": [mode.strip() for mode in modes.split(",")] if modes else None,
        "batch_size": int(batch_size) if batch_size and batch_size.isdigit() else batch_size,
        "preset": preset, "discriminator": discriminator, "weights": weights, "decoder": decoder, "seed": seed,
        "seeds": seeds, "updates": updates, "stop_early": stop_early, "views": views, "tone_mapping": tone_mapping,
        "width": width, "precision": precision, "shard_size": shard_size, "workers": workers,
        "gpus_per_worker": gpus_per_worker, "log_format": log_format,
    }  # fmt: skip
    render_command(run, load_config(config, flags), dry_run)


@app.command()
def pretrain(
    images: Annotated[str, typer.Argument(help="Folder or s3:// prefix of JPEG, PNG, WebP, or of Parquet.")],
    out: Annotated[str, typer.Argument(metavar="OUT.safetensors", help="File or s3:// object.")],
    width: Annotated[float | None, typer.Option(help="Factor on all channels (1: the paper's).")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the photographs (30).")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Photographs per step, over all workers (16).")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Adam's first, times a layer's inputs; slower for the decoder (0.3).")
    ] = None,
    noise_sigma: Annotated[float | None, typer.Option(help="Of the input's noise (0.3).")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random (0).")] = None,
    precision: Annotated[str | None, typer.Option(help="auto (default), float32 or bfloat16.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Default: one per GPU, or one on a machine without.")
    ] = None,
    column: Annotated[str, typer.Option(help="Of Parquet: the column of pictures.")] = "image",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last whole epoch.")] = False,
) -> None:
    """Train a decoder on photographs: the generator of the pretrained mode."""
    from jobs.pretrain import pretrain_command

    pretrain_command(
        images, out, column, workers, resume, width=width, epochs=epochs, batch_size=batch_size,
        learning_rate=learning_rate, noise_sigma=noise_sigma, seed=seed, precision=precision,
    )  # fmt: skip


@app.command()
def resume(
    run: RunArgument,
    weights: WeightsFile = None,
    decoder: DecoderFile = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
) -> None:
    """Go on with RUN, with the settings that it was begun with; flags change where, never what."""
    from jobs.render import resume_command

    where = {"weights": weights, "decoder": decoder, "workers": workers, "gpus_per_worker": gpus_per_worker}
    resume_command(run, where)


@app.command()
def status(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds, until the run is whole.")] = False,
) -> None:
    """How far RUN is: pictures and shards done, outcomes, failures."""
    from jobs.status import status_command

    status_command(run, as_json, watch)


@app.command()
def failed(run: RunArgument) -> None:
    """Shards that are not whole and why their attempts failed, and pictures that are not ok."""
    from jobs.status import failed_command

    failed_command(run)


@app.command()
def index(
    run: RunArgument,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="From nothing, not from the index that is there.")] = False,
) -> None:
    """Compact RUN's rows into few sorted files for queries and the gallery. dgn render ends with it."""
    from jobs.index import index_command

    index_command(run, rebuild)


@app.command()
def query(
    run: RunArgument,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN>=VALUE", help="Also = != > < <=, and ~ for text that contains; repeatable."),
    ] = None,
    mode: Annotated[str | None, typer.Option(help="untrained or pretrained.")] = None,
    layer: Annotated[str | None, typer.Option(help="For instance fc8 or conv5_1.")] = None,
    min_activation: Annotated[float | None, typer.Option(help="From the saved PNG.")] = None,
    status_: Annotated[str | None, typer.Option("--status", help="ok, not_converged, dead or nonfinite.")] = None,
    by: Annotated[
        By | None, typer.Option(help="Best first: highest activation (default) or probability, lowest rank.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only so many.")] = None,
    columns: Annotated[str | None, typer.Option(metavar="A,B,...", help="Which to show, or all.")] = None,
    sql: Annotated[
        str | None, typer.Option(metavar="SELECT...", help=r"About the table rows, by DuckDB: pip install 'dgn\[sql]'.")
    ] = None,
    format_: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.table,
    copy_to: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Also copy the pictures there.")] = None,
) -> None:
    """Rows of RUN, best first."""
    from jobs.query import query_command

    flags = {"mode": mode, "layer": layer, "status": status_, "min_activation": min_activation}
    query_command(run, flags, where or [], by.value if by else None, top, columns, sql, format_.value, copy_to)


gallery = typer.Typer(help="A page that shows every picture of RUN.", no_args_is_help=True)
app.add_typer(gallery, name="gallery")


@gallery.command()
def build(
    run: RunArgument,
    for_files: Annotated[
        bool | None,
        typer.Option("--file/--no-file", help="Also for file://, without a server (default: where RUN is a folder)."),
    ] = None,
) -> None:
    """Write the page beside the data: RUN/gallery/index.html, for file://, any web server, or a bucket."""
    from jobs.gallery import build_command

    build_command(run, for_files)


@gallery.command()
def serve(
    run: RunArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 0,
) -> None:
    """Show the page to this machine's browser only, for a bucket that is private."""
    from jobs.gallery import serve_command

    serve_command(run, port)


@app.command()
def verify(
    run: RunArgument,
    sample: Annotated[int, typer.Option(help="Pictures to score again.")] = 8,
    weights: WeightsFile = None,
) -> None:
    """Check RUN: every target once, every file whole, a sample scored again."""
    from jobs.verify import verify_command

    verify_command(run, sample, weights)


@app.command()
def judge(
    run: RunArgument,
    by: Annotated[str | None, typer.Option(metavar="NETWORK", help="The independent network.")] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Its weights, .safetensors or .pth; default: torchvision's.")
    ] = None,
    discriminator_weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Those that RUN was made with, where they have moved.")
    ] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Only tell what was judged before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON.")] = False,
) -> None:
    """A second opinion on RUN's pictures: an independent network's ranks, and the own network's after small harms."""
    from jobs.judge import judge_command

    judge_command(run, by, weights, discriminator_weights, summary, as_json)


@app.command()
def report(
    run: RunArgument,
    out: Annotated[
        Path, typer.Argument(metavar="OUT.html", help="In the current folder; of files only a report is overwritten.")
    ] = Path("report.html"),
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of one device, in whatever currency; without it no cost is told.")
    ] = None,
) -> None:
    """RUN on one HTML page: figures, plots, best and worst pictures, faults, configuration."""
    from jobs.report import report_command

    report_command(run, out, price_per_hour)


@app.command()
def gc(
    run: RunArgument,
    uncommitted: Annotated[
        bool, typer.Option("--uncommitted", help="Also unfinished shards and files; only when nothing renders RUN.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
) -> None:
    """Delete pictures that no row names: what killed attempts left behind."""
    from jobs.gc import gc_command

    gc_command(run, uncommitted, dry_run)


@app.command()
def sheet(
    run: RunArgument,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="A picture (.png, .jpg, .webp): one sheet. A folder: a sheet for every hundred classes, every layer, "
            "and mixes. A .pdf: the same for print, on pages of A4.",
        ),
    ],
    layer: Annotated[str | None, typer.Option(help="Only this layer.")] = None,
    mode: Annotated[str | None, typer.Option(help="Only untrained or pretrained.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only so many, best first by activation.")] = None,
    columns: Annotated[
        int | None, typer.Option(min=1, help="Pictures per row (as many as rows, at most ten or ten pairs; PDF: 8).")
    ] = None,
    picture_px: Annotated[int, typer.Option(min=32, help="Side of a picture; how large in print, A4 decides.")] = 224,
    pdf: Annotated[bool, typer.Option("--pdf", help="For print: also sheets.pdf in the folder OUT.")] = False,
) -> None:
    """Contact sheets of RUN: every picture with its label, activation and rank."""
    from jobs.sheet import sheet_command

    sheet_command(run, out, {"layer": layer, "mode": mode}, top, columns, picture_px, pdf)


@app.command()
def export(
    run: RunArgument,
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder or s3://bucket/prefix.")],
    format_: Annotated[
        ExportFormat,
        typer.Option("--format", help="hf: Parquet that datasets.load_dataset reads. tar: packs and index.parquet."),
    ],
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN>=VALUE", help="Only such rows, as in dgn query; repeatable."),
    ] = None,
) -> None:
    """RUN for other programs: a Hugging Face data set, or few large files in place of one per picture."""
    from jobs.export import export_command

    export_command(run, out, format_.value, where or [])


@app.command()
def info(
    discriminator: Discriminator = None,
    preset: Annotated[str, typer.Option(help="paper, standard or draft.")] = "standard",
    width: Annotated[float | None, typer.Option(help="Factor on G's channels, in place of the preset's.")] = None,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    layer: Annotated[str | None, typer.Option(help="Layer of the targets; default: the classes.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Only list the layers.")] = False,
    networks: Annotated[bool, typer.Option("--networks", help="Only list the discriminators.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Variables, operations and bytes per target, layers and unit counts, size of the target set."""
    from jobs.info import info_command

    info_command(discriminator or "vgg16", preset, width, precision, layer, layers, networks, as_json)


@app.command()
def doctor(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Also check this folder or bucket.")] = None,
    discriminator: Discriminator = None,
    weights: WeightsFile = None,
) -> None:
    """Check this machine: devices, weights, and whether the store keeps its create-once promise."""
    from jobs.doctor import doctor_command

    doctor_command(run, discriminator or "vgg16", weights)


@app.command()
def tune(
    discriminator: Discriminator = None,
    preset: Annotated[str, typer.Option(help="paper, standard or draft.")] = "standard",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure what is fastest on this machine's device, in two minutes; dgn render uses it from then on."""
    from jobs.tune import tune_command

    tune_command(discriminator or "vgg16", preset, as_json)


def print_json(value: Any) -> None:
    """One JSON document on standard output. JSON has no numbers that are not finite: they are null."""
    print(json.dumps(_finite(value), indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 something is missing or broken in the run, 2 bad input, 130 interrupted by
    SIGINT (Ctrl-C), 143 by SIGTERM (`ray job stop`, Kubernetes, a shutdown)."""
    ended_by = signal.SIGINT

    def terminate(*_: object) -> None:
        nonlocal ended_by
        ended_by = signal.SIGTERM
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        if code == INTERRUPTED:
            code = _say(
                "interrupted; dgn render and dgn judge go on with the same line, dgn pretrain with --resume",
                128 + ended_by,
            )
        sys.exit(code)
    except TyperException as error:
        sys.exit(_say(f"{' '.join(error.format_message().split()).rstrip('.')}; --help tells what there is", 2))
    except (ShardFailed, RunDamaged) as error:
        sys.exit(_say(error, 1))
    except DgnError as error:
        sys.exit(_say(error, 2))


def _say(what: object, code: int) -> int:
    print(f"dgn: {printable(what)}", file=sys.stderr)
    return code
