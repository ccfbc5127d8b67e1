"""run.json and extensions/: what a run is. Each of these files is created once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from dgn.errors import DgnError, StoreError
from dgn.method.recipes import RenderConfig
from dgn.networks.layers import Layers
from dgn.runs.config import RunConfig
from dgn.runs.layout import RUN_FILE
from dgn.runs.shards import MAX_SHARDS
from dgn.runs.validation import first_problem
from dgn.targets import MODES

MOST_UNITS = 10**7  # each takes memory; a file that claims more was edited
# What is in a fingerprint and changes no picture: the release, and settings that earlier versions wrote.
WITHOUT_EFFECT = {"dgn_version", "render.untrained.noise", "render.pretrained.noise"}
# What earlier versions did not write because they did it with every network.
ASSUMED_NETWORK = {
    "size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "channel_order": "RGB",
    "value_range": 1.0, "output": "softmax",
}  # fmt: skip
MAX_TRIES = 1000  # a worker draws all tries of a target before it keeps the best
EXAMPLES_VERSION = (
    "examples_version"  # only in the fingerprint of a job over photographs, so that nobody takes it for a run
)
# What earlier versions did not write although runs can differ in it: compared only where it was written.
UNWRITTEN = {"labels_sha256"}


def _having(*names: str) -> Callable[[Any], Any]:
    """Makes a dictionary without one of the keys invalid."""

    def check(content: Any) -> Any:
        if missing := [name for name in names if isinstance(content, dict) and name not in content]:
            raise ValueError(f"lacks {missing[0]}")
        return content

    return check


def _drawable(layers: Layers) -> Layers:
    """Refuses layers of which no target list can be made."""
    named = {*layers.filter_layers, *([layers.class_layer] if layers.class_layer else [])}
    if unknown := named - layers.units.keys():
        raise ValueError(f"names {min(unknown)}, which has no units")
    if sum(layers.units.values()) > MOST_UNITS:
        raise ValueError(f"expected at most {MOST_UNITS} units in all")
    return layers


_RENDER_CONFIG = TypeAdapter[RenderConfig](Annotated[RenderConfig, BeforeValidator(_having(*MODES))])


@dataclass(frozen=True)
class Again:
    """Targets that are drawn once more.

    Args:
        block: number of a block of the plan so far.
        groups: numbers of groups in it.
        seed: the first one.
        tries: how many seeds, the best of which counts.
    """

    block: Annotated[int, Field(ge=0)]
    groups: tuple[Annotated[int, Field(ge=0)], ...]
    seed: Annotated[int, Field(ge=0)]
    tries: Annotated[int, Field(ge=1, le=MAX_TRIES)]


@dataclass(frozen=True)
class Extension:
    """The content of a file in extensions/: targets that were added to a run.

    Args:
        targets, modes, seed, seeds: as the settings of these names; without targets nothing.
        again: what is drawn once more.
        num_targets, num_shards: how many it adds.
        targets_sha256: of the run's target list with it.
    """

    created_at: str
    version: Literal[1] = 1
    targets: tuple[str, ...] = ()
    modes: tuple[str, ...] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    seeds: Annotated[int, Field(ge=1)] = 1
    again: tuple[Again, ...] = ()
    num_targets: Annotated[int, Field(ge=0)] = 0
    num_shards: Annotated[int, Field(ge=0, le=MAX_SHARDS)] = 0
    targets_sha256: str = ""


@dataclass(frozen=True)
class RunInfo:
    """The content of run.json, and the extensions.

    Args:
        num_targets, num_shards: with the extensions.
        layers: of the network, so that the target list can be made without it; None in runs from before this entry.
    """

    run_id: str
    created_at: str
    fingerprint: Annotated[
        dict[str, Any], AfterValidator(_having("discriminator", "weights_sha256", "targets_sha256", "render"))
    ]
    config: Annotated[dict[str, Any], AfterValidator(_having("preset"))]
    num_targets: int
    num_shards: Annotated[int, Field(ge=0, le=MAX_SHARDS)]
    layers: Annotated[Layers, AfterValidator(_drawable)] | None = None
    extensions: tuple[Extension, ...] = ()

    def as_json(self) -> str:
        """The content of run.json: what people read comes first, the layers in one line last."""
        content = {name: value for name, value in vars(self).items() if name not in ("extensions", "layers")}
        layers = json.dumps(TypeAdapter(Layers | None).dump_python(self.layers, mode="json"))
        return json.dumps(content, indent=2, sort_keys=True).removesuffix("\n}") + f',\n  "layers": {layers}\n}}\n'

    def extended(self, extension: Extension) -> RunInfo:
        return replace(
            self,
            num_targets=self.num_targets + extension.num_targets,
            num_shards=self.num_shards + extension.num_shards,
            extensions=(*self.extensions, extension),
        )

    @property
    def targets_sha256(self) -> str:
        """Of all targets."""
        return self.extensions[-1].targets_sha256 if self.extensions else str(self.fingerprint["targets_sha256"])

    @property
    def identity(self) -> dict[str, Any]:
        """The fingerprint, with what earlier versions did without writing it."""
        render = _completed(self.fingerprint["render"], self.render_config.as_json())
        return {"method_version": 1, **self.fingerprint, "network": self.network, "render": render}

    @property
    def network(self) -> dict[str, Any]:
        """How the run's network sees pictures and how they are scored, see `Network.description`."""
        return cast("dict[str, Any]", self.fingerprint.get("network", ASSUMED_NETWORK))

    @property
    def render_config(self) -> RenderConfig:
        """The numbers that the run was started with, whatever its preset has become since. Raises: StoreError."""
        try:
            return _RENDER_CONFIG.validate_python(self.fingerprint["render"])
        except (ValidationError, DgnError) as error:
            problem = first_problem(error) if isinstance(error, ValidationError) else error
            raise StoreError(f"{RUN_FILE} of run {self.run_id} does not fit this dgn: {problem}") from error

    @property
    def run_config(self) -> RunConfig:
        """The settings that the run was started with. Raises: StoreError."""
        try:
            return RunConfig.model_validate(self.config)
        except ValidationError as error:
            raise StoreError(
                f"{RUN_FILE} of run {self.run_id} does not fit this dgn: {first_problem(error)}"
            ) from error


def _completed(theirs: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, with a default for each that is not there."""
    both = {
        name: _completed(theirs[name], default) if isinstance(default, dict) else theirs[name]
        for name, default in defaults.items()
        if name in theirs
    }
    return {**defaults, **theirs, **both}


def differences(theirs: Any, ours: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """(setting, their value, our value) for every leaf in which two fingerprints differ to some effect."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in theirs.keys() | ours.keys():
            if key in theirs or key not in UNWRITTEN:
                yield from differences(theirs.get(key), ours.get(key), f"{name}.{key}" if name else key)
    elif theirs != ours and name not in WITHOUT_EFFECT:
        yield name, _short(theirs), _short(ours)


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) > 24 else text
