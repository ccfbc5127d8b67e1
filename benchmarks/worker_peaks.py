"""A worker's own memory at its peak, measured and as `--dry-run` says: `python -m benchmarks.worker_peaks`.

Runs of eight updates on a CPU. The weights are random, which takes the same memory as others. Private pages are looked
at every few milliseconds, so a shorter peak is missed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import torchvision
import typer
from safetensors.torch import save_file

from benchmarks.commands import HERE
from benchmarks.machine import machine
from benchmarks.worker_memory import samples

NETWORKS = ("vgg16", "mobilenet_v2", "efficientnet_lite0", "resnet50", "squeezenet1_0")
CASES = [
    *((network, {"precision": precision}) for network in NETWORKS for precision in ("float32", "bfloat16")),
    ("vgg16", {"precision": "float32", "targets": "filters:conv3_1:0-3"}),
    ("efficientnet_lite0", {"precision": "float32", "preset": "draft"}),
    ("efficientnet_lite0", {"precision": "float32", "preset": "paper"}),
    ("efficientnet_lite0", {"precision": "float32", "modes": "pretrained", "decoder": "photographs"}),
]  # fmt: skip
USUAL = {"targets": "classes:0-3", "modes": "untrained", "updates": 8, "shard-size": 2, "workers": 1}


def flags_of(network: str, settings: dict[str, str], folder: Path) -> list[str]:
    named: dict[str, object] = {"discriminator": network, **USUAL, **settings}
    if network != "efficientnet_lite0":
        named["weights"] = folder / f"{network}.safetensors"
        if not (folder / f"{network}.safetensors").exists():
            torch.manual_seed(0)
            model = torchvision.models.get_model(network, weights=None)
            save_file(model.state_dict(), folder / f"{network}.safetensors")
    return [part for name, value in named.items() for part in (f"--{name}", str(value))]


def main(out: Annotated[Path | None, typer.Option(help="Also write JSON.")] = None) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for i, (network, settings) in enumerate(CASES):
            command = [sys.executable, "-m", "dgn.jobs", "render", f"{folder}/{i}"]
            command += flags_of(network, settings, Path(folder))
            said = subprocess.run([*command, "--dry-run"], cwd=HERE, check=True, capture_output=True, text=True).stdout
            [counted] = re.findall(r"worker on a CPU: ([\d,]+) MB", said)
            driver = subprocess.Popen(
                command, cwd=HERE, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            peak = max((now for _, now in samples(driver)), default=0)
            assert driver.returncode == 0, command
            counted_mb = int(counted.replace(",", ""))
            rows.append({"network": network, **settings, "peak_mb": round(peak), "counted_mb": counted_mb})
            print(json.dumps({**rows[-1], "ratio": round(counted_mb / peak, 3)}), flush=True)
    if out:
        out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
