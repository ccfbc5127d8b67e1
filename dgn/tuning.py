"""The fastest batch size, precision and form of the convolutions, by measurement: once for each device model, kept in a
file of the user, and a hint to later runs.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from dgn.decoder import random_decoder
from dgn.discriminator import Discriminator, FrozenWeights, build_network
from dgn.errors import NOT_JSON, DgnError, in_one_line
from dgn.recipes import RenderConfig
from dgn.render import DTYPES, render_batch
from dgn.replay import is_out_of_memory
from dgn.targets import MODES, Mode, Target, WeightedUnit

VERSION = 1  # of the file
BUDGET_S = 100.0
CPU_SIZES, GPU_SIZES = (1, 2, 4, 8, 16), (8, 16, 32, 64, 128)
DECIDED_AT = {"cpu": 4, "cuda": 8}  # targets at once, for precision and form, and first of each mode
TIE = 0.02  # a share of the fastest's time, which repeated measurements differ by
NUM_WARM_UPS, NUM_MEASURED = 2, 5  # steps; a network is traced and kernels are chosen in the first
ENOUGH_S = 3.0  # of measured steps
HOPELESS = 1.5  # times the fastest's time: one step tells
GPU_STRIDE = 8  # updates per step: waiting for the device after each would slow them down

Key = TypeVar("Key")


@dataclass(frozen=True)
class Variant:
    """One way to do the same work. `is_winograd` is None on a GPU, whose kernels have one form."""

    mode: Mode
    precision: Literal["float32", "bfloat16"]
    is_winograd: bool | None
    batch_size: int

    @property
    def form(self) -> str:
        return {True: "winograd", False: "plain", None: ""}[self.is_winograd]


@dataclass(frozen=True)
class Timing(Variant):
    seconds: float  # per update and target, a median


@dataclass(frozen=True)
class Tuned:
    """What a device model does fastest, and all that was measured to tell."""

    device: str
    discriminator: str
    preset: str
    precision: Literal["float32", "bfloat16"]
    is_winograd: bool | None
    batch_size: Mapping[Mode, int]  # lacks a mode of which there was no time to compare two sizes
    timings: tuple[Timing, ...]
    is_complete: bool  # else time was up before all was measured

    def is_winner(self, timing: Timing) -> bool:
        form = (timing.precision, timing.is_winograd)
        return form == (self.precision, self.is_winograd) and self.batch_size.get(timing.mode) == timing.batch_size

    def __str__(self) -> str:
        sizes = ", ".join(f"{size} {mode}" for mode, size in self.batch_size.items())
        form = "" if self.is_winograd is None else f"{'Winograd' if self.is_winograd else 'plain'} convolutions, "
        return f"{self.precision}, {form}batches of {sizes or 'the default size'}"


def device_at_hand() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_model(device: torch.device) -> str:
    """A GPU's name, or a CPU's with what else decides its speed: 'AMD EPYC, 2 cores, avx512_bf16'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with suppress(OSError, UnicodeDecodeError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores{', avx512_bf16' if has_bfloat16(device) else ''}"


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def fastest(seconds: Mapping[Key, float]) -> Key:
    """The first that is as fast as the fastest, but for `TIE`: what is to be preferred comes first."""
    limit = min(seconds.values()) * (1 + TIE)
    return next(key for key, value in seconds.items() if value <= limit)


def has_peaked(seconds: Mapping[int, float]) -> bool:
    """Whether the two largest batches are no faster than the best smaller one: seconds by batch size, in any order."""
    if len(seconds) < 3:
        return False
    *smaller, last, largest = (seconds[size] for size in sorted(seconds))
    return min(last, largest) >= min(smaller) * (1 - TIE)


def measure(
    network: str,
    config: RenderConfig,
    on_variant: Callable[[Variant], None] = lambda variant: None,
    budget_s: float = BUDGET_S,
) -> Tuned:
    """Measures variants on the device at hand until larger batches bring nothing, do not fit, or time is up.

    Precision and form are chosen first, in untrained mode, then each mode's batch size with these. All weights are
    random, which cost what trained ones cost. What runs beside it distorts the times.

    Args:
        on_variant: called before each variant.
    """
    device = device_at_hand()
    bench = _Bench(network, config, device, time.monotonic() + budget_s, on_variant)
    start = Variant("untrained", "float32", None if device.type == "cuda" else True, DECIDED_AT[device.type])
    if has_bfloat16(device):
        start = replace(start, precision="bfloat16")
        bench.tries(start)
    bench.tries(replace(start, precision="float32"))
    if not bench.seconds:
        raise DgnError(f"{device_model(device)} has no memory for {start.batch_size} targets at once: nothing to tune")
    best = fastest(bench.seconds)
    if best.is_winograd:
        bench.tries(replace(best, is_winograd=False))
        best = fastest(bench.seconds)
    by_size: dict[Mode, dict[int, float]] = {mode: {} for mode in MODES}
    climbing = list(MODES)
    sizes = GPU_SIZES if device.type == "cuda" else CPU_SIZES
    for size in (best.batch_size, *(size for size in sizes if size != best.batch_size)):
        for mode in tuple(climbing):
            variant = replace(best, mode=mode, batch_size=size)
            if bench.tries(variant):
                by_size[mode][size] = bench.seconds[variant]
            if variant not in bench.seconds or has_peaked(by_size[mode]):
                climbing.remove(mode)
    return Tuned(
        device=device_model(device),
        discriminator=network,
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
    """Ends a batch that has told what it costs."""


@dataclass
class _Bench:
    network: str
    config: RenderConfig
    device: torch.device
    deadline_s: float  # on the monotonic clock
    on_variant: Callable[[Variant], None]
    seconds: dict[Variant, float] = field(default_factory=dict)  # per update and target
    is_complete: bool = True

    def __post_init__(self) -> None:
        with self.device:  # a hundred million random numbers take a CPU seconds
            state = build_network(self.network).state_dict()
        self.weights = FrozenWeights(self.network, {name: tensor.cpu() for name, tensor in state.items()}, "", "random")
        self.decoder = random_decoder(self.config.pretrained.width)
        self.discriminator: Discriminator | None = None

    def tries(self, variant: Variant) -> bool:
        """Measures a variant, unless it was before. False where there is no time or no memory for it."""
        if variant in self.seconds:
            return True
        if self.seconds:
            stride = GPU_STRIDE if self.device.type == "cuda" else 1
            least_s = list(self.seconds.values())[-1] * variant.batch_size * stride * (NUM_WARM_UPS + 1)
            if time.monotonic() + least_s > self.deadline_s:
                self.is_complete = False
                return False
        self.on_variant(variant)
        try:
            self.seconds[variant] = self._time(variant)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler, so that the traceback no longer holds the tensors of the failed batch.
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return variant in self.seconds

    def _time(self, variant: Variant) -> float:
        config = replace(self.config, precision=variant.precision)
        discriminator = self._prepared(variant)
        class_layer = discriminator.layout.class_layer
        num_units = discriminator.layout.units[class_layer]
        targets = [
            Target((WeightedUnit(class_layer, n % num_units),), variant.mode, n) for n in range(variant.batch_size)
        ]
        rivals = [seconds for other, seconds in self.seconds.items() if other.mode == variant.mode]
        stride = GPU_STRIDE if self.device.type == "cuda" else 1
        hopeless_s = HOPELESS * min(rivals, default=float("inf")) * len(targets) * stride
        ends: list[float] = []

        def mark(update: int, loss_N: Tensor) -> None:
            if (update + 1) % stride:
                return
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            ends.append(time.perf_counter())
            num_measured = len(ends) - NUM_WARM_UPS
            if num_measured < 0:
                return
            is_late = time.monotonic() > self.deadline_s
            is_hopeless = num_measured == 0 and ends[-1] - ends[-2] > hopeless_s
            is_told = num_measured > 0 and ends[-1] - ends[NUM_WARM_UPS - 1] > ENOUGH_S
            if is_late or is_hopeless or is_told or num_measured == NUM_MEASURED:
                raise _Enough

        with suppress(_Enough):
            render_batch(targets, config, discriminator, self.decoder, mark)
        steps = [end - start for start, end in pairwise(ends)]
        return statistics.median(steps[NUM_WARM_UPS - 1 :] or steps) / stride / len(targets)

    def _prepared(self, variant: Variant) -> Discriminator:
        """D for a variant; of those before it only the last is kept."""
        dtype, is_winograd = DTYPES[variant.precision], variant.is_winograd is not False
        d = self.discriminator
        if d is None or (d.dtype, d.is_winograd) != (dtype, is_winograd):
            d = self.discriminator = Discriminator(self.weights, self.device, dtype, is_winograd)
        return d


def stored_at() -> Path:
    """The file: $DGN_TUNED, else tuned.json in the user's cache folder."""
    if path := os.environ.get("DGN_TUNED"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "dgn" / "tuned.json"


def load(path: Path) -> dict[str, Tuned]:
    """The file's entries by device model; none where there is no file.

    Raises: DgnError for a file that does not hold them, or those of another version.
    """
    advice = f"delete it, dgn tune makes it again (DGN_TUNED={path} says which file it is)"
    try:
        content = json.loads(path.read_text())
        version = content["version"]
        if version == VERSION:
            return {device: _entry(device, fields) for device, fields in content["devices"].items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DgnError(f"cannot read {path}: {error.strerror}; mend it, or set DGN_TUNED to another file") from error
    except (*NOT_JSON, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DgnError(f"{path} is no file of dgn tune ({in_one_line(error)}): {advice}") from error
    raise DgnError(f"{path} is of version {version!r}, expected {VERSION}: {advice}")


def _entry(device: str, fields: dict[str, Any]) -> Tuned:
    """Raises: KeyError, TypeError, ValueError."""
    timings = tuple(Timing(**timing) for timing in fields["timings"])
    tuned = Tuned(device, **{**fields, "timings": timings})
    if tuned.precision not in ("float32", "bfloat16") or tuned.is_winograd not in (True, False, None):
        raise ValueError(f"{device}: precision {tuned.precision!r}, is_winograd {tuned.is_winograd!r}")
    for mode, size in tuned.batch_size.items():
        if mode not in MODES or type(size) is not int or size < 1:
            raise ValueError(f"{device}: batch size {size!r} of mode {mode!r}")
    return tuned


@contextmanager
def _writing_to(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DgnError(f"cannot write {path}: {error.strerror}; set DGN_TUNED to a file that can be") from error


def check_writable(path: Path) -> None:
    """Makes the file's folder. Raises: DgnError where nothing can be written there."""
    with _writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()


def store(tuned: Tuned, path: Path) -> None:
    """Adds an entry to the file, in one step, in place of the same device model's. Raises: DgnError."""
    entries = load(path) | {tuned.device: tuned}
    devices = {device: asdict(entry) for device, entry in entries.items()}
    for fields in devices.values():
        del fields["device"]  # it is the key
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    with _writing_to(path):
        try:
            temporary.write_text(json.dumps({"version": VERSION, "devices": devices}, indent=1) + "\n")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
