"""Recovery when a device runs out of memory: the batch is halved and tried again."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from dgn.method.engine import Engine

log = logging.getLogger("dgn")

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU (also if that surfaces as another error while a graph is recorded) or a CPU."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return True
    return error.__context__ is not None and is_out_of_memory(error.__context__)


def if_it_fits(work: Callable[[], Result], engine: Engine) -> Result | None:
    """The result of `work`, or None if memory ran out; everything that it had allocated is then free again."""
    try:
        return work()
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
    # After the handler, because its traceback still holds the tensors of the failed work.
    gc.collect()
    engine.release_memory()
    return None


def in_batches(
    items: Sequence[Item],
    batch_size: int,
    work: Callable[[Sequence[Item]], Result],
    engine: Engine,
    on_halved: Callable[[int], None] = lambda batch_size: None,
) -> Iterator[Result]:
    """Results of `work` on consecutive batches. A batch that does not fit into memory is tried again at half its size.

    Args:
        on_halved: called with the batch size that is left, so that the caller can start with it next time.

    Raises: the original error if a single item does not fit.
    """
    done = 0
    while done < len(items):
        batch = items[done : done + batch_size]
        result = if_it_fits(lambda batch=batch: work(batch), engine) if len(batch) > 1 else work(batch)  # type: ignore[misc]
        if result is not None:
            yield result
            done += len(batch)
            continue
        batch_size = len(batch) // 2
        on_halved(batch_size)
        log.warning("out of memory with %d at once: continuing with %d", len(batch), batch_size)
