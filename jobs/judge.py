"""`dgn judge`: a second opinion on a run's pictures, of an independent network and of D itself after small harms."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cluster.index import update_index
from cluster.judgements import DISTORTED, Judge, judged_shards, write_judgements
from cluster.judging import SHARES, judge_shards, summaries
from cluster.query import Rows
from cluster.run import Damaged, Run
from dgn import discriminator as discriminators
from dgn import distort
from dgn.discriminator import Discriminator
from dgn.errors import DgnError, ShardFailed, printable
from dgn.opinion import check_independent
from jobs.cli import print_json
from jobs.progress import bar
from jobs.render import LOG_EVERY_S, log_to_stderr
from jobs.status import open_run
from jobs.table import print_table
from jobs.verify import own_plan, own_weights

log = logging.getLogger("dgn")


def judge_command(
    url: str, by: str | None, weights: str | None, own_path: str | None, is_summary: bool, as_json: bool
) -> None:
    """Judges what is not judged yet, then tells the shares.

    Raises: ShardFailed where pictures are damaged; all others are judged.
    """
    if by is None and not is_summary:
        raise DgnError("--by NETWORK is missing: the independent network that is to judge, or --summary alone")
    if is_summary and (weights, own_path) != (None, None):
        raise DgnError("--summary tells what was judged before and loads no network: leave the weights out")
    run = open_run(url)
    problems: list[str] = []
    if by is not None and not is_summary:
        num_judged, problems = _judge_run(run, by, Path(weights) if weights else None, own_path)
        if not as_json:
            print(printable(f"{num_judged:,} pictures in {run.store.url} judged by {by}"))
    found = [one for one in summaries(run, Rows(run)) if by in (None, one["by"])]
    if not found and is_summary:
        raise DgnError(f"{url} has no judgements{f' by {by}' if by else ''} yet: dgn judge RUN --by NETWORK makes some")
    if as_json:
        print_json(found)
    else:
        _print_summaries(found)
    if problems:
        raise ShardFailed(
            f"{len(problems)} shards could not be judged: {problems[0]}; dgn verify {url} lists what is damaged"
        )


def _judge_run(run: Run, by: str, path: Path | None, own_path: str | None) -> tuple[int, list[str]]:
    """Judges all that is not judged yet, the index included: how many pictures, and what kept others from it."""
    info = run.info()
    plan = own_plan(run, info)
    frozen = discriminators.load_weights(by, path)
    own_frozen = own_weights(info, own_path, "--discriminator-weights")
    check_independent(frozen, own_frozen)
    if not run.committed(info.num_shards).count:
        raise DgnError(f"{run.store.url} has no pictures yet")
    log_to_stderr()
    index = update_index(run)
    identity = Judge(by, frozen.sha256)
    judged = (one for part in index.parts for one in part.judged if one.judge == identity)
    done = {shard for one in judged for shard in one.shard_numbers()}  # without those rendered again since
    todo = [shard for part in index.parts for shard in part.shard_numbers() if shard not in done]
    out_of_date = judged_shards(run).get(identity.folder, set()) - done
    about = {
        "run_id": info.run_id, "discriminator": own_frozen.network, "discriminator_weights_sha256": own_frozen.sha256,
        "jpeg_quality": distort.JPEG_QUALITY, "blur_sigma_px": distort.BLUR_SIGMA_PX,
        "crop_share": distort.CROP_SHARE, "turn_deg": distort.TURN_DEG,
    }  # fmt: skip
    num_pictures, problems = 0, []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    own, judge = Discriminator(own_frozen, device), Discriminator(frozen, device)
    with _progress_shown(len(todo)) as observe:
        for n, (shard, rows) in enumerate(judge_shards(run, todo, plan, own, judge)):
            if isinstance(rows, Damaged):
                problems.append(str(rows))
            else:
                write_judgements(run, identity, shard, rows, about, is_again=shard in out_of_date)
                num_pictures += sum(f"{DISTORTED[0]}_rank" in row for row in rows)
            observe(n + 1, num_pictures)
    update_index(run)
    return num_pictures, problems


@contextmanager
def _progress_shown(num_shards: int) -> Iterator[Callable[[int, int], None]]:
    """An observer of shards and pictures judged: a bar on a terminal, log lines elsewhere."""
    start = last = time.monotonic()
    if not sys.stderr.isatty():

        def tell(shards_done: int, num_pictures: int) -> None:
            nonlocal last
            if time.monotonic() - last > LOG_EVERY_S:
                last = time.monotonic()
                rate = 60 * num_pictures / (last - start)
                log.info("%d of %d shards judged, %.0f pictures a minute", shards_done, num_shards, rate)

        yield tell
        return
    with bar("shards judged", num_shards) as (progress, task):

        def observe(shards_done: int, num_pictures: int) -> None:
            rate = 60 * num_pictures / max(time.monotonic() - start, 1e-9)
            progress.update(task, completed=shards_done, state=f"{rate:.0f} pictures/min")

        yield observe


def _print_summaries(found: list[dict[str, Any]]) -> None:
    texts, numbers = ("judge", "layer", "mode"), ("pictures", "judge: first", "top 5", "itself: saved", *DISTORTED)
    rows = [
        [judge, one["layer"], one["mode"], f"{one['num_pictures']:,}", *(percent(one[name]) for name in SHARES)]
        for judge, one in zip(judges_told(found), found, strict=True)
    ]
    print_table([*texts, *numbers], [False] * len(texts) + [True] * len(numbers), rows)


def judges_told(found: Sequence[dict[str, Any]]) -> list[str]:
    """The judge of each summary: its network, and eight hex digits of its weights where there are several of a name."""
    judges = [Judge(one["by"], one["by_weights_sha256"]) for one in found]
    num_of_name = Counter(judge.network for judge in set(judges))
    return [judge.folder if num_of_name[judge.network] > 1 else judge.network for judge in judges]


def percent(share: float | None) -> str:
    """A share in [0, 1] for people, who take 0% for none and 100% for all."""
    if share is None:
        return ""
    text = f"{share:.0%}"
    return {"0%": "<1%", "100%": ">99%"}.get(text, text) if 0 < share < 1 else text
