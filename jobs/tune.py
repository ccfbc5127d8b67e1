"""`dgn tune`: which variants are the fastest on the device at hand?"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict

from dgn import discriminator as discriminators
from dgn import tuning
from dgn.recipes import RenderConfig
from jobs.cli import print_json
from jobs.table import print_table

BUSY_SHARE = 0.5  # of the cores that others use


def tune_command(network: str, preset: str, as_json: bool) -> None:
    """Checks everything that can be wrong before it measures."""
    from rich.console import Console

    start = time.monotonic()
    config = RenderConfig.from_preset(preset)
    discriminators.layout(network)
    path = tuning.stored_at()
    tuning.load(path)
    tuning.check_writable(path)
    load, num_cores = os.getloadavg()[0], os.cpu_count() or 1
    if tuning.device_at_hand().type == "cpu" and load > BUSY_SHARE * num_cores:
        print(f"a load of {load:.1f} on {num_cores} cores: what runs beside it distorts the times", file=sys.stderr)
    with Console(stderr=True).status(f"building {network}") as status:

        def show(variant: tuning.Variant) -> None:
            form = f"{variant.precision} {variant.form}".strip()
            status.update(f"measuring {variant.mode}, {form}, {variant.batch_size} at once")

        tuned = tuning.measure(network, config, show)
    tuning.store(tuned, path)
    if as_json:
        print_json({"stored_at": str(path), **asdict(tuned)})
        return
    names = ("mode", "precision", "convolutions", "batch", "ms per update and target", "")
    rows = [
        (
            timing.mode, timing.precision, timing.form, str(timing.batch_size), f"{timing.seconds * 1e3:.4g}",
            "fastest" if tuned.is_winner(timing) else "",
        )
        for timing in sorted(tuned.timings, key=lambda t: (t.mode == "pretrained", t.precision, t.form, t.batch_size))
    ]  # fmt: skip
    print_table(names, (False, False, False, True, True, False), rows)
    if not tuned.is_complete:
        print(f"the rest does not fit into {tuning.BUDGET_S:.0f} s and was not measured")
    print(f"{tuned.device}, {network}, preset {preset}: {tuned}")
    print(f"stored in {path} after {time.monotonic() - start:.0f} s; dgn render uses it where its flags leave it open")
