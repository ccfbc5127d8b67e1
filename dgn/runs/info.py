"""run.json: a run's identity, written once by the first driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from dgn.errors import DgnError, StoreError
from dgn.method.recipes import RenderConfig
from dgn.runs.config import RunConfig
from dgn.runs.layout import RUN_FILE
from dgn.runs.shards import MAX_SHARDS
from dgn.runs.validation import first_problem
from dgn.targets import MODES

# What is in a fingerprint and changes no picture: the release, and settings that earlier versions wrote.
WITHOUT_EFFECT = {"dgn_version", "render.untrained.noise", "render.pretrained.noise"}
# What earlier versions did not write because they did it with every network.
ASSUMED_NETWORK = {
    "size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "channel_order": "RGB",
    "value_range": 1.0, "output": "softmax",
}  # fmt: skip
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


_RENDER_CONFIG = TypeAdapter[RenderConfig](Annotated[RenderConfig, BeforeValidator(_having(*MODES))])


@dataclass(frozen=True)
class RunInfo:
    """The content of run.json."""

    run_id: str
    created_at: str
    fingerprint: Annotated[
        dict[str, Any], AfterValidator(_having("discriminator", "weights_sha256", "targets_sha256", "render"))
    ]
    config: Annotated[dict[str, Any], AfterValidator(_having("preset"))]
    num_targets: int
    num_shards: Annotated[int, Field(ge=0, le=MAX_SHARDS)]

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
    """(setting, their value, our value) for every leaf in which two fingerprints differ, except those without effect."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in theirs.keys() | ours.keys():
            if key in theirs or key not in UNWRITTEN:
                yield from differences(theirs.get(key), ours.get(key), f"{name}.{key}" if name else key)
    elif theirs != ours and name not in WITHOUT_EFFECT:
        yield name, _short(theirs), _short(ours)


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) > 24 else text
