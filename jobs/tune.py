"""`dgn tune`: measures what is fastest on this machine's device."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from dgn.cost.tuned import Variant, check_writable, load_tuned, store_tuned, tuned_path
from dgn.jobs.common.flags import with_settings
from dgn.jobs.common.printing import print_json, print_table
from dgn.method.recipes import RenderConfig
from dgn.runs.config import NETWORK_SETTINGS, RunConfig
from dgn.runs.validation import validated
from dgn.targets import mode_rank
from dgn.text import plural

BUSY_SHARE = 0.5  # of the cores, in use by other processes


@with_settings(RunConfig, *NETWORK_SETTINGS, "preset")
def command(
    settings: dict[str, Any], as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """Checks all settings before it measures."""
    from rich.console import Console

    from dgn.cost import tuning
    from dgn.engine import engine_for
    from dgn.runs.networks import describe_network

    start = time.monotonic()
    chosen = validated(RunConfig, settings)
    network, config = describe_network(chosen), RenderConfig.from_preset(chosen.preset)
    network.layers.classes()  # raises for a network without any, before the first measurement
    path = tuned_path()
    load_tuned(path)
    check_writable(path)
    load, num_cores = os.getloadavg()[0], os.cpu_count() or 1
    if not engine_for().is_gpu and load > BUSY_SHARE * num_cores:
        print(f"load {load:.1f} on {plural(num_cores, 'core')}: other work will distort the times", file=sys.stderr)
    with Console(stderr=True).status(f"building {network.name}") as status:

        def show(variant: Variant) -> None:
            form = f"{variant.precision} {variant.form}".strip()
            status.update(f"measuring {variant.mode}, {form}, {variant.batch_size} at once")

        tuned = tuning.measure(network, config, show)
    store_tuned(tuned, path)
    if as_json:
        print_json({"stored_at": str(path), **asdict(tuned)})
        return
    names = ("mode", "precision", "convolutions", "batch", "ms per update and target", "")
    in_order = sorted(tuned.timings, key=lambda t: (mode_rank(t.mode), t.precision, t.form, t.batch_size))
    rows = [
        (
            timing.mode, timing.precision, timing.form, str(timing.batch_size), f"{timing.seconds * 1e3:.4g}",
            "fastest" if tuned.is_winner(timing) else "",
        )
        for timing in in_order
    ]  # fmt: skip
    print_table(names, (False, False, False, True, True, False), rows)
    if not tuned.is_complete:
        print(f"other variants did not fit into {tuning.BUDGET_S:.0f} s and were not measured")
    print(f"{tuned.device}, {network.name}, preset {config.preset}: {tuned}")
    print(f"stored in {path} after {time.monotonic() - start:.0f} s; dgn render uses it unless a flag says otherwise")
