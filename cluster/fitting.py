"""Fitting windows to photographs, recipe `standard`: sums over them with Ray Data."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ray.data import Dataset
from ray.exceptions import RayError
from torch import Tensor

from dgn.cluster.dataset import decoded, open_photographs, survey
from dgn.cluster.training import NUM_SAMPLES, Outcome
from dgn.errors import DgnError
from dgn.method.architecture import Architecture
from dgn.method.autoencoder import along_axes, central_crop, displayed
from dgn.method.decoder import of_windows
from dgn.method.lapped import BANDS, Fitted, LappedTransform, Sums, fitted
from dgn.method.starts import NUM_STARTS
from dgn.pictures.ceiling import Ceiling
from dgn.text import in_one_line, plural, printable

log = logging.getLogger("dgn")
MOST_FITTED = 20_000  # photographs, the first in the order of `open_photographs`: of files one by hash
AT_A_TIME = 512  # photographs whose sums a task returns (92 MB)
TOGETHER = 64  # photographs whose windows are in memory at a time (80 MB)


def fit(
    images: str, column: str, width: float, observe: Callable[[int, int], None], ceiling: Ceiling | None = None
) -> Outcome:
    """Fits windows to photographs.

    Args:
        observe: called with the numbers of photographs that were seen, and of all; each band sees all of them.
        ceiling: judged photographs, whose share is measured at the end.

    Raises: DgnError for unusable photographs.
    """
    photographs = open_photographs(images, column)
    found = survey(photographs, images)
    for line in found.broken:
        log.warning("skipped %s", printable(line))
    held_out = decoded(photographs, found.held_out, is_held_out=True).materialize()
    fitted_to = decoded(photographs, found.held_out, is_held_out=False).limit(MOST_FITTED)
    num_fitted = min(MOST_FITTED, found.num_photographs - held_out.count())
    log.info("fitting %s of windows to %s", plural(len(BANDS), "band"), plural(num_fitted, "photograph"))
    windows = None
    for channels in Architecture("pretrained", width, generator="windows").window_channels:
        try:
            sums = _sums(fitted_to, windows, num_fitted, observe)
        except RayError as error:
            raise DgnError(f"cannot read the pictures in {images}: {in_one_line(error)}") from error
        windows = fitted(sums, channels, windows)
    assert windows is not None
    result = {"validation": _error(held_out, windows.transform)}
    if ceiling:
        result["recognised"] = ceiling.shares(windows.transform.reconstruct)[1]
    starts = fitted_to.limit(NUM_STARTS).take(NUM_STARTS)
    starts_MK = torch.cat([
        windows.starts(along_axes(central_crop(_pictures(starts[at : at + TOGETHER]))))
        for at in range(0, len(starts), TOGETHER)
    ])  # fmt: skip
    shown = along_axes(central_crop(_pictures(held_out.take(NUM_SAMPLES))))
    samples = {"original": displayed(shown), "reconstruction": displayed(windows.transform.reconstruct(shown))}
    return Outcome(found, of_windows(windows, starts_MK), (result,), samples)


def _sums(
    photographs: Dataset, before: Fitted | None, num_photographs: int, observe: Callable[[int, int], None]
) -> Sums:
    """For the next band."""
    tasks = photographs.map_batches(
        _sums_of, fn_kwargs={"before": before}, batch_size=AT_A_TIME, batch_format="numpy", num_cpus=1
    )
    band = before.band if before else BANDS[0]
    total = None
    for row in tasks.iter_rows():
        sums = Sums(band, int(row["count"]), row["small"].copy(), row["products"].copy())
        total = sums if total is None else total + sums
        observe(BANDS.index(band) * num_photographs + total.count, len(BANDS) * num_photographs)
    if total is None or total.count != num_photographs:
        read = total.count if total else 0
        raise DgnError(f"{num_photographs - read} of {plural(num_photographs, 'photograph')} could not be read again")
    return total


def _sums_of(batch: dict[str, Any], before: Fitted | None = None) -> dict[str, Any]:
    pictures = along_axes(central_crop(torch.from_numpy(batch["photograph"].copy())))
    sums = reduce(operator.add, (Sums.of(part, before) for part in pictures.split(TOGETHER)))
    count = np.array([sums.count])
    return {"count": count, "small": sums.small_3SS[None], "products": sums.products_DD[None].astype(np.float32)}


def _pictures(rows: list[dict[str, Any]]) -> Tensor:
    return torch.stack([torch.from_numpy(row["photograph"].copy()) for row in rows])


def _error(held_out: Dataset, transform: LappedTransform) -> float:
    """Mean squared error over the held-out photographs."""
    total, count = 0.0, 0
    for batch in held_out.iter_batches(batch_size=64, batch_format="numpy"):
        clean = along_axes(central_crop(torch.from_numpy(batch["photograph"].copy())))
        total += F.mse_loss(transform.reconstruct(clean), clean).item() * len(clean)
        count += len(clean)
    return total / count
