"""Recipes: how pictures are optimised, the paper's way and ours.

Plain data without torch, so that commands which render nothing start quickly.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast

from dgn.errors import DgnError
from dgn.targets import Mode

METHOD_VERSION = 1  # raised whenever the same settings draw other pictures; tests/method/test_version.py watches it
Precision = Literal["float32", "bfloat16", "float64"]
# What draws a picture: the paper's convolutions, windows along photographs' principal axes (`lapped.py`), or a module
# of the user's.
Generator = Literal["convolutions", "windows", "own"]
GENERATORS: dict[Generator, str] = {  # for messages
    "convolutions": "convolutions", "windows": "windows", "own": "a generator of your own",
}  # fmt: skip

# An activation is averaged over this many updates before it counts as rising, because views and noise move it.
RISE_UPDATES = 20


@dataclass(frozen=True)
class Moves:
    """How far a view may differ from the picture: scale factors, degrees, and shares of the picture's side; each colour
    channel by itself also in contrast, by factors up to e^gain, and in level, by shares of the range from 0 to 1."""

    scale_min: float = 0.8
    scale_max: float = 1.2
    turn_deg: float = 12.0
    shift: float = 0.15
    colour_gain: float = 0.0
    colour_offset: float = 0.0

    @property
    def has_colours(self) -> bool:
        return bool(self.colour_gain or self.colour_offset)


@dataclass(frozen=True)
class Recipe:
    """How one mode's pictures are optimised. The defaults are the paper's untrained mode (Table 1, Eq. 2 and 3).

    Raises: DgnError for settings that contradict each other.
    """

    width: float = 1.0  # factor on the generator's channels
    has_last_relu: bool = True  # of the untrained generator
    num_updates: int = 500
    num_whole_updates: int | None = None  # of targets that are never sought at half size; None: as many
    optimiser: Literal["adamax", "sgd"] = "adamax"
    learning_rate: float = 0.002
    last_rate_share: float = 1.0  # what is left of the learning rate at the end, reached along a cosine; 1: constant
    half_share: float = 0.0  # share of the updates in which classes are sought at half size, before all others
    noise_sigma: float = 2.0
    penalty_others: float = 0.01  # lambda of Eq. 2; the notebooks' 10 / 1000 classes
    num_views: int = 0  # moved views per update; 0: the classifier sees the picture itself
    moves: Moves = field(default_factory=Moves)
    is_displayable: bool = False  # colours kept within [0, 1] while optimising; otherwise unbounded
    # Feature vector of the pretrained mode: relu(alpha * noise), or steps of alpha from the decoder's mean code.
    code: Literal["ones", "data"] = "ones"
    code_limit: float | None = None  # of steps from the mean code, in deviations of photographs' codes; None: no limit
    generator: Generator = "convolutions"  # of the pretrained mode
    code_shape: tuple[int, ...] = ()  # of one picture, for a generator of the user's
    penalty_alpha: float = 0.1  # Eq. 4
    contrast: tuple[float, float, float] | None = None  # of earlier runs: deviations along the colour axes
    wakes_silent_units: bool = False
    min_rise: float = 0.0  # a target ends once its mean activation rises by a smaller share in RISE_UPDATES; 0: never
    num_snapshots: int = 1  # if more than 1, the picture is the per-pixel median of the last snapshots
    updates_per_snapshot: int = 40
    tone_mapping: Literal["none", "notebook"] = "none"  # notebook: each picture stretched to its own range

    def __post_init__(self) -> None:
        if not 0 <= self.min_rise < 1:
            raise DgnError(f"smallest rise {self.min_rise}: expected a share from 0 (never stop early) to below 1")
        if self.min_rise and self.num_snapshots > 1:
            raise DgnError(
                "preset paper cannot stop early, because its picture is the median of ten snapshots: "
                "use standard or draft"
            )
        if self.min_rise and self.num_updates <= 2 * RISE_UPDATES:
            raise DgnError(
                f"{self.num_updates} updates are too few to stop early: expected more than {2 * RISE_UPDATES}"
            )
        if self.code == "ones" and self.code_limit is not None:
            raise DgnError(
                f"limit {self.code_limit:g} for a code of ones: expected code data, whose deviations are known"
            )
        if self.generator != "convolutions" and (self.code != "data" or self.contrast is not None):
            raise DgnError(
                f"code {self.code} or contrast {self.contrast} for {GENERATORS[self.generator]}: expected code data, "
                "and no contrast"
            )
        if (self.generator == "own") != bool(self.code_shape):
            raise DgnError(
                f"code of shape {self.code_shape} for {GENERATORS[self.generator]}: expected one for a generator of "
                "your own, and for no other"
            )
        if self.last_rate_share != 1 and self.optimiser != "adamax":
            raise DgnError(f"optimiser {self.optimiser} with a learning rate that falls: expected adamax")

    def at_whole_size(self) -> Recipe:
        """The recipe of a target that is never sought at half size."""
        return replace(self, num_updates=self.num_whole_updates or self.num_updates, half_share=0.0)

    @property
    def num_half(self) -> int:
        """Updates at half size, where the target is a class and the classifier reads such pictures. The last update is
        always at the whole size."""
        return min(round(self.half_share * self.num_updates), self.num_updates - 1)

    def rate(self, update: int) -> float:
        """The learning rate of an update, counted from 0."""
        falling = (1 + math.cos(math.pi * update / self.num_updates)) / 2
        return self.learning_rate * (self.last_rate_share + (1 - self.last_rate_share) * falling)


PAPER = {
    "untrained": Recipe(),
    "pretrained": Recipe(num_updates=1200, optimiser="sgd", learning_rate=0.01, noise_sigma=0.05, num_snapshots=10),
}
_DISPLAYABLE = Recipe(noise_sigma=0.3, penalty_others=0.001, num_views=4, is_displayable=True, wakes_silent_units=True)
_COLOURFUL = Moves(colour_gain=0.5, colour_offset=0.3)
STANDARD = {  # chosen by measurement, docs/method.md
    "untrained": replace(
        _DISPLAYABLE,
        width=0.25,
        has_last_relu=False,
        num_updates=200,
        num_whole_updates=160,
        learning_rate=0.004,
        last_rate_share=0.05,
        half_share=0.75,
        moves=_COLOURFUL,
    ),
    "pretrained": replace(
        _DISPLAYABLE,
        num_updates=180,
        learning_rate=0.15,
        last_rate_share=0.05,
        noise_sigma=0.05,
        code="data",
        code_limit=3.0,
        penalty_alpha=0.3,
        generator="windows",
        moves=_COLOURFUL,
    ),
}
_SHORT: dict[str, Any] = {"num_updates": 80, "num_whole_updates": None, "num_views": 2}
DRAFT = {
    "untrained": replace(STANDARD["untrained"], half_share=0.6, **_SHORT),  # the last 20 updates alone are too few
    "pretrained": replace(STANDARD["pretrained"], **_SHORT),
}
PRESETS = {"paper": PAPER, "standard": STANDARD, "draft": DRAFT}


@dataclass(frozen=True)
class RenderConfig:
    """Everything that decides a picture apart from its target, the classifier's weights and the decoder's weights."""

    preset: str = "standard"
    untrained: Recipe = field(default_factory=lambda: STANDARD["untrained"])
    pretrained: Recipe = field(default_factory=lambda: STANDARD["pretrained"])
    precision: Precision = "float32"

    @classmethod
    def from_preset(cls, preset: str, precision: Precision = "float32", **changes: Any) -> RenderConfig:
        """A preset, with changes to the recipes of both modes.

        Raises: DgnError for an unknown preset.
        """
        if preset not in PRESETS:
            raise DgnError(f"unknown preset '{preset}': expected one of {', '.join(PRESETS)}")
        recipes = PRESETS[preset]
        if "num_updates" in changes:
            changes.setdefault("num_whole_updates", None)
        untrained, pretrained = (replace(recipes[mode], **changes) for mode in ("untrained", "pretrained"))
        return cls(preset, untrained, pretrained, precision)

    def as_json(self) -> dict[str, Any]:
        """Everything, as run.json has it."""
        return cast("dict[str, Any]", json.loads(json.dumps(asdict(self))))

    def recipe(self, mode: Mode) -> Recipe:
        return self.untrained if mode == "untrained" else self.pretrained
