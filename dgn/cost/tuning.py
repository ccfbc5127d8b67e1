"""Measures which batch size, precision and form of convolutions are fastest on this machine's device."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import TypeVar

from torch import Tensor

from dgn.cost.tuned import Timing, Tuned, Variant
from dgn.engine import engine_for
from dgn.errors import DgnError
from dgn.method.decoder import random_decoder
from dgn.method.engine import Engine
from dgn.method.loop import render_batch
from dgn.method.memory import if_it_fits
from dgn.method.precision import DTYPES
from dgn.method.recipes import RenderConfig
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.network import Network
from dgn.networks.weights import NetworkWeights
from dgn.targets import MODES, Mode, Target, WeightedUnit

BUDGET_S = 100.0
TIE = 0.02  # a share of the fastest's time, by which repeated measurements differ
NUM_WARM_UPS, NUM_MEASURED = 2, 5  # steps; in the first the network is traced and kernels are chosen
ENOUGH_S = 3.0  # of measured steps
HOPELESS = 1.5  # times the fastest's time, after which one step is enough

Key = TypeVar("Key")


def fastest(seconds: Mapping[Key, float]) -> Key:
    """The first key whose time is within `TIE` of the fastest; list preferred keys first."""
    limit = min(seconds.values()) * (1 + TIE)
    return next(key for key, value in seconds.items() if value <= limit)


def has_peaked(seconds: Mapping[int, float]) -> bool:
    """Whether neither of the two largest batches is faster than the best smaller one.

    Args:
        seconds: by batch size, in any order.
    """
    if len(seconds) < 3:
        return False
    *smaller, last, largest = (seconds[size] for size in sorted(seconds))
    return min(last, largest) >= min(smaller) * (1 - TIE)


def measure(
    network: Network,
    config: RenderConfig,
    on_variant: Callable[[Variant], None] = lambda variant: None,
    budget_s: float = BUDGET_S,
) -> Tuned:
    """Measures variants on this machine's device until larger batches bring nothing, do not fit, or time runs out.

    Precision and form are chosen first, in the untrained mode, then each mode's batch size with these. Weights are
    random, which cost as much as trained ones. Other work on the machine distorts the times.

    Args:
        on_variant: called before each variant.

    Raises: DgnError if not even the first variant fits into memory.
    """
    engine = engine_for()
    bench = _Bench(network, config, engine, time.monotonic() + budget_s, on_variant)
    sizes = engine.tuning_batch_sizes
    start = Variant("untrained", "float32", engine.is_winograd, engine.usual_batch_size or sizes[0])
    if engine.has_bfloat16:
        start = replace(start, precision="bfloat16")
        bench.tries(start)
    bench.tries(replace(start, precision="float32"))
    if not bench.seconds:
        raise DgnError(f"{engine.model} has no memory for {start.batch_size} targets at once: nothing to tune")
    best = fastest(bench.seconds)
    if best.is_winograd:
        bench.tries(replace(best, is_winograd=False))
        best = fastest(bench.seconds)
    by_size: dict[Mode, dict[int, float]] = {mode: {} for mode in MODES}
    climbing = list(MODES)
    for size in (best.batch_size, *(size for size in sizes if size != best.batch_size)):
        for mode in tuple(climbing):
            variant = replace(best, mode=mode, batch_size=size)
            if bench.tries(variant):
                by_size[mode][size] = bench.seconds[variant]
            if variant not in bench.seconds or has_peaked(by_size[mode]):
                climbing.remove(mode)
    return Tuned(
        device=engine.model,
        discriminator=network.name,
        preset=config.preset,
        precision=best.precision,
        is_winograd=best.is_winograd,
        batch_size={
            mode: fastest(dict(sorted(seconds.items()))) for mode, seconds in by_size.items() if len(seconds) > 1
        },
        timings=tuple(Timing(**asdict(variant), seconds=seconds) for variant, seconds in bench.seconds.items()),
        is_complete=bench.is_complete,
    )


class _Enough(Exception):
    """Ends a batch whose cost is known."""


@dataclass
class _Bench:
    network: Network
    config: RenderConfig
    engine: Engine
    deadline_s: float  # on the monotonic clock
    on_variant: Callable[[Variant], None]
    seconds: dict[Variant, float] = field(default_factory=dict)  # per update and target
    is_complete: bool = True

    def __post_init__(self) -> None:
        with self.engine.device:  # a CPU takes seconds for a hundred million random numbers
            state = self.network.built().state_dict()
        state = {name: tensor.cpu() for name, tensor in state.items()}
        self.weights = NetworkWeights(self.network, state, "", "random")
        self.decoder = random_decoder(self.config.pretrained)
        self.classifier: FrozenNetwork | None = None

    def tries(self, variant: Variant) -> bool:
        """Measures a variant, unless it was measured before. Returns whether time and memory sufficed."""
        if variant in self.seconds:
            return True
        if self.seconds:
            num_updates = self.engine.updates_per_wait * (NUM_WARM_UPS + 1)
            least_s = list(self.seconds.values())[-1] * variant.batch_size * num_updates
            if time.monotonic() + least_s > self.deadline_s:
                self.is_complete = False
                return False
        self.on_variant(variant)
        seconds = if_it_fits(lambda: self._time(variant), self.engine)
        if seconds is not None:  # `if_it_fits` has tidied up behind what did not fit
            self.seconds[variant] = seconds
            gc.collect()
            self.engine.release_memory()
        return variant in self.seconds

    def _time(self, variant: Variant) -> float:
        whole_size = replace(self.config.untrained, half_share=0.0)  # those updates take the most time and memory
        config = replace(self.config, precision=variant.precision, untrained=whole_size)
        classifier = self._prepared(variant)
        class_layer = classifier.layers.classes()
        num_units = classifier.units[class_layer]
        targets = [
            Target((WeightedUnit(class_layer, n % num_units),), variant.mode, n) for n in range(variant.batch_size)
        ]
        rivals = [seconds for other, seconds in self.seconds.items() if other.mode == variant.mode]
        stride = self.engine.updates_per_wait
        hopeless_s = HOPELESS * min(rivals, default=float("inf")) * len(targets) * stride
        ends: list[float] = []

        def mark(update: int, loss_N: Tensor) -> None:
            if (update + 1) % stride:
                return
            self.engine.synchronize()
            ends.append(time.perf_counter())
            num_measured = len(ends) - NUM_WARM_UPS
            if num_measured < 0:
                return
            is_late = time.monotonic() > self.deadline_s
            is_hopeless = num_measured == 0 and ends[-1] - ends[-2] > hopeless_s
            is_known = num_measured > 0 and ends[-1] - ends[NUM_WARM_UPS - 1] > ENOUGH_S
            if is_late or is_hopeless or is_known or num_measured == NUM_MEASURED:
                raise _Enough

        with suppress(_Enough), self.engine.keep_memory():
            render_batch(targets, config, classifier, self.decoder, mark)
        steps = [end - start for start, end in pairwise(ends)]
        return statistics.median(steps[NUM_WARM_UPS - 1 :] or steps) / stride / len(targets)

    def _prepared(self, variant: Variant) -> FrozenNetwork:
        """The classifier for a variant. Only the latest is kept."""
        dtype, is_winograd = DTYPES[variant.precision], variant.is_winograd
        kept = self.classifier
        if kept is None or (kept.dtype, kept.engine.is_winograd) != (dtype, is_winograd):
            engine = engine_for(self.engine.device, is_winograd is not False)
            kept = self.classifier = FrozenNetwork(self.weights, engine, dtype)
        return kept
