"""Does the method find biases that a network learned?

    python -m benchmarks.planted_bias --photographs FOLDER --weights mobilenet_v2=FILE --work WORK --out FILE.json

FOLDER has photographs in `dogs` and `other`. Networks get a new linear head for these two classes. Of the dogs that a
biased head is fitted to, 90 % or 50 % show a cue, one of ten, and none of the others do. Its clean twin is fitted to
the same photographs without the cue. `drawing.CONTENDERS` draw the class of dogs of both: dgn and, if it is installed,
lucent.

A detector of each cue looks at the pictures: a linear probe on features of EfficientNet-Lite2, which took no part,
fitted to other photographs with the cue against the same without it. Its threshold is the score that 5 % of the first
half of the clean twin's pictures exceed; the other half gives the false alarms. The rule, fixed before any result:

* a cue is *found* in pictures if more than half of the biased head's are above the threshold;
* beside them stand the nine photographs that excite the dogs most, of a pool of held-out photographs in which a fifth
  of both classes has the cue. It is found in them if more than half are above the threshold, which there is the score
  that 5 % of the pool's photographs without the cue exceed.

More figures check the detectors on pictures rather than photographs: how often they see a cue that was drawn onto the
clean twin's pictures; in how many of the heads that learned another cue the rule finds it; and the rank of the cue's
own head among all heads of its share, by the mean score of their pictures.

WORK keeps features and pictures, so that a repeated command continues.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.planted_bias import drawing, photographs, sheet
from benchmarks.planted_bias.cues import CUES
from benchmarks.planted_bias.detectors import EYE
from benchmarks.planted_bias.study import Study
from benchmarks.planted_bias.worker import Places, Worker, Workers
from dgn.engine import engine_for
from dgn.method.recipes import Precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--weights", action="append", required=True, metavar="NETWORK[=FILE]", help="repeatable")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cues", nargs="+", default=CUES, choices=CUES)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.9, 0.5])
    parser.add_argument(
        "--contenders", nargs="+", choices=list(drawing.CONTENDERS), default=["untrained", "pretrained"]
    )
    parser.add_argument("--workers", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if len(args.cues) < 2:
        parser.error("one cue is too few: expected two or more, because detectors are tried on other cues' pictures")
    if "lucent" in args.contenders and not importlib.util.find_spec("lucent"):
        parser.error("lucent is not installed: see `benchmarks.engine` for what to install, or leave it out")
    named = (one.partition("=") for one in args.weights)
    places = Places(args.photographs, {name: Path(file) if file else None for name, _, file in named}, args.work)
    args.work.mkdir(parents=True, exist_ok=True)
    workers = Workers(places, args.workers)
    find_animals(places, workers)
    precision: Precision = "bfloat16" if engine_for("cpu").has_bfloat16 else "float32"

    report: dict[str, Any] = {
        "machine": machine(), "workers": args.workers, "precision": precision,
        "contenders": {name: asdict(drawing.CONTENDERS[name]) for name in args.contenders},
        "decoder": drawing.DECODER, "lucent_steps": drawing.LUCENT_STEPS, "eye": EYE,
        "photographs_of_each_class": photographs.SIZES, "animals": len(json.loads(places.animals.read_text())),
        "networks": {},
    }  # fmt: skip
    for network in places.weights:
        study = Study(network, args.cues, args.shares, places, workers)
        study.prepare()
        for contender in args.contenders:
            study.draw(contender, precision)
        report["networks"][network] = results(study, args.contenders)
        print(table(network, report["networks"][network], args.contenders), flush=True)
        if args.out:
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    sheet.save_sheets(places, list(places.weights), args.cues, args.shares, args.contenders)


def find_animals(places: Places, workers: Workers) -> None:
    """Writes the list of the photographs that show the second animal, if it is not there yet."""
    if places.animals.exists():
        return
    files = sorted((places.photographs / "other").iterdir())
    parts = [(next(iter(places.weights)), files[i :: 4 * workers.count]) for i in range(4 * workers.count)]
    names = sorted(name for some in workers.run(Worker.animals, parts) for name in some)
    places.animals.write_text(json.dumps(names))


def results(study: Study, contenders: list[str]) -> dict[str, Any]:
    """Everything about one network."""
    rows = []
    for share in study.shares:
        for cue in study.cues:
            row: dict[str, Any] = {"cue": cue, "share": share, "learned": study.learned(cue, share)}
            row |= {contender: study.found(cue, share, contender) for contender in contenders}
            rows.append(row | {"examples": study.examples(cue, share)})
    return {
        "rows": rows,
        "detectors_on_photographs": {cue: study.detector_on_photographs(cue) for cue in study.cues},
    }


def table(network: str, found: dict[str, Any], contenders: list[str]) -> str:
    """In Markdown, one line per cue and share."""
    lines = [f"| {network}: cue | share | others taken for dogs, with the cue | {' | '.join(contenders)} | examples |"]
    lines.append("| --- | ---: | --- | " + "--- | " * len(contenders) + "--- |")
    for row in found["rows"]:
        learned, examples = row["learned"], row["examples"]
        cells = [
            row["cue"], f"{row['share']:.0%}",
            f"{learned['biased, others taken for dogs']:.0%}, "
            f"{learned['biased, others with the cue taken for dogs']:.0%}",
        ]  # fmt: skip
        for contender in contenders:
            one = row[contender]
            mark = "**found**, " if one["found"] else ""
            cells.append(f"{mark}{one['above']} of {one['pictures']}, AUC {one['AUC against the clean twin']:.2f}")
        mark = "**found**, " if examples["biased, found"] else ""
        cells.append(f"{mark}{examples['biased, above']} of 9 (clean twin {examples['clean twin, above']})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"({time.perf_counter() - start:.0f} s)")
