"""A worker's memory by part, also beside another checkout's: `python -m benchmarks.memory --weights FILE`.

    git worktree add --detach /tmp/earlier COMMIT
    python -m benchmarks.memory --weights FILE --precision float32 --against /tmp/earlier

A process of its own takes the real worker, without Ray's processes around it, through two shards of one batch each. For
each part it notes the most memory that it held (Linux's VmHWM, which is reset between parts) and what it still holds at
the end. The updates are cut to a few of each size, because later ones take no more memory. The other checkout may be as
old as commit d3da668.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

IMPORTS = "Ray and all others"


class Notes:
    """What this process held in each part, in megabytes."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}

    def end_part(self, name: str) -> None:
        """Ends a part, or another piece of it."""
        lines = map(str.split, Path("/proc/self/status").read_text().splitlines())
        held = {line[0]: round(int(line[1]) * 1024 / 1e6, 1) for line in lines if line[-1] == "kB"}
        most = max(held["VmHWM:"], self.parts.get(name, {}).get("peak", 0))
        self.parts[name] = {"peak": most, "kept": held["VmRSS:"], "of_it_files": held["RssFile:"]}
        Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM counts anew


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The parts of this process. Imports are late, because they are parts too."""
    notes = Notes()
    notes.end_part("Python")
    import torchvision  # noqa: F401

    notes.end_part("PyTorch and torchvision")
    from dgn.cluster.context import RunContext
    from dgn.cluster.worker import RenderWorker
    from dgn.method.batch import start_batch
    from dgn.networks.weights import load_weights
    from dgn.runs.config import RunConfig
    from dgn.runs.plan import make_plan

    notes.end_part(IMPORTS)

    class NotingWorker(RenderWorker):
        num_updates = 0

        def _note_step(self, *about: Any) -> None:
            super()._note_step(*about)
            if len(about) == 2 and self.num_updates < recipe.num_updates:  # an update of the first batch
                is_first = self.num_updates in (0, num_half)
                size = "half" if self.num_updates < num_half else "whole"
                notes.end_part(f"{'first update' if is_first else 'later updates'}, {size} size")
                self.num_updates += 1

    weights = load_weights(args.discriminator, args.weights)
    config = RunConfig(
        targets=(f"classes:0-{2 * args.batch_size - 1}",), modes=("untrained",), preset=args.preset,
        updates=args.updates, shard_size=args.batch_size,
    )  # fmt: skip
    plan, render = make_plan(config, weights.network.layers), config.render_config(args.precision)
    recipe = render.recipe("untrained")
    num_half = getattr(recipe, "num_half", 0)  # an earlier commit has no half size
    with tempfile.TemporaryDirectory() as folder:
        worker = NotingWorker(RunContext(folder, "memory", plan, render, {}, args.batch_size), weights, None)
        notes.end_part("the network, loaded and tried")
        targets = plan.shard(0).targets
        worker.classifier.cut_behind(targets[0].layers)
        notes.end_part("its graph")
        start_batch(targets, render, worker.classifier, None)  # once more: the worker makes its own
        notes.end_part("a batch's variables")
        worker.render(0, "first")
        notes.end_part("last pictures and scores")
        worker.finish("first")
        notes.end_part("saving")
        worker.render(1, "second")
        worker.finish("second")
        notes.end_part("the second batch")
    return notes.parts


def measured_in(checkout: Path) -> dict[str, dict[str, float]]:
    """The parts of a process that runs a checkout's code."""
    from dgn.cluster.environment import WORKER_ENVIRONMENT

    environment = {**os.environ, **WORKER_ENVIRONMENT, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout.resolve())}
    # -P, because this file's folder has modules whose names could hide others.
    command = [sys.executable, "-P", __file__, *sys.argv[1:], "--here"]
    parts: dict[str, dict[str, float]] = json.loads(subprocess.check_output(command, env=environment, text=True))
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--discriminator", default="mobilenet_v2")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args)))
        return
    if args.against and not (args.against / "dgn").is_dir():
        parser.error(f"--against {args.against}: expected a checkout of this project")
    checkouts = {"here": Path(__file__).parent.parent} | ({"there": args.against} if args.against else {})
    measured = {name: measured_in(checkout) for name, checkout in checkouts.items()}
    print(f"{'MB':<32}" + "".join(f"{'peak ' + name:>12}{'kept ' + name:>12}" for name in measured))
    for part in measured["here"]:
        found = [parts.get(part) for parts in measured.values()]
        print(f"{part:<32}" + "".join(f"{p['peak']:>12,.0f}{p['kept']:>12,.0f}" if p else f"{'':>24}" for p in found))
    peaks = {name: max(part["peak"] for part in parts.values()) for name, parts in measured.items()}
    above = {name: round(peak - measured[name][IMPORTS]["peak"], 1) for name, peak in peaks.items()}
    for name, peak in peaks.items():
        print(f"peak {name}: {peak:,.0f} MB, {above[name]:,.0f} MB above the imports")
    if args.against:
        print(f"here of there: {peaks['here'] / peaks['there']:.1%}, "
              f"above the imports {above['here'] / above['there']:.1%}")  # fmt: skip
    if args.out:
        from benchmarks.machine import machine

        settings = {k: getattr(args, k) for k in ("discriminator", "batch_size", "preset", "precision", "updates")}
        report = {"machine": machine(), **settings, "peak_mb": peaks, "peak_above_imports_mb": above, "mb": measured}
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
