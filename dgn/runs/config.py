"""The settings of a run, written down once: the flags of `dgn render`, their help and the YAML file come from here."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from dgn.method.recipes import PRESETS, RenderConfig

if TYPE_CHECKING:
    from dgn.runs.decoders import Decoder


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _comma_separated(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _fewest_and_most(workers: str) -> tuple[int, int]:
    fewest, _, most = workers.rpartition("-")
    return int(fewest or most), int(most)


def _check_workers(workers: Any) -> str:
    text = str(workers)
    if not re.fullmatch(r"(\d+-)?[1-9]\d*", text, re.ASCII):
        raise ValueError("expected N or MIN-MAX, such as 4 or 0-8")
    fewest, most = _fewest_and_most(text)
    if fewest > most:
        raise ValueError("expected MIN-MAX with MIN at most MAX")
    return text


def _check_sha256(text: Any) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", str(text), re.ASCII):
        raise ValueError("expected 64 hex digits")
    return str(text)


def _numbers(value: Any) -> Any:
    return _comma_separated(value) if isinstance(value, str) else [value] if isinstance(value, int | float) else value


Numbers = Annotated[tuple[float, ...], BeforeValidator(_numbers)]
WorkerCount = Annotated[str, BeforeValidator(_check_workers)]


LARGEST_SHARD = 32  # where the run chooses
NETWORK_SETTINGS = (
    "discriminator", "weights", "weights_sha256", "labels", "input_size", "mean", "std", "channel_order", "value_range",
    "class_layer", "output",
)  # fmt: skip


def shown_name(discriminator: str) -> str:
    """A network's name as rows have it: of a function in a file, without the file's folder."""
    place, colon, function = discriminator.rpartition(":")
    return f"{place.rpartition('/')[2]}:{function}" if colon and place.endswith(".py") else discriminator


class RunConfig(BaseModel):
    """The settings of a run. `None` stands for the default that the description gives. Paths are as typed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    targets: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = Field(
        default=("all",),
        description="What to draw, one or more of: all, classes, classes:0-99, classes:mosque, filters, "
        "filters:conv5_1:0-31, raw:conv5_1:0-31, mix:classes:9+30, group:conv5_1:3*0.5+17, "
        "direction:conv5_1:FILE.npy.",
    )
    modes: Annotated[tuple[str, ...], BeforeValidator(_comma_separated)] | None = Field(
        default=None,
        description="Which generators: untrained, pretrained or untrained,pretrained. Default: untrained, but both for "
        "the classes in all.",
    )
    preset: str = Field(default="standard", description=f"How to draw: {', '.join(PRESETS)}.")
    discriminator: str = Field(
        default="vgg16",
        description="The classifier: vgg16, another of torchvision's, efficientnet_lite0, vgg16-mini, timm:NAME, or a "
        "function of your own that returns an nn.Module and is run: FILE.py:FUNCTION, package.module:FUNCTION.",
    )
    weights: str | None = Field(
        default=None,
        description="The classifier's weights, as any trainer saves them: a file, s3://, gs://, az:// or "
        "https://. None of the file's code is run. Default: those that come with it or are downloaded.",
    )
    weights_sha256: Annotated[str, BeforeValidator(_check_sha256)] | None = Field(
        default=None, description="SHA-256 that the weights must have; needed for https://. Default: any."
    )
    labels: str | None = Field(
        default=None,
        description="File of the classes' labels, in order: one per line, JSON or CSV. Default: the published ones, or "
        "numbers.",
    )
    input_size: int | None = Field(
        default=None,
        ge=16,
        le=1024,
        description="Side of the pictures that the classifier wants, in pixels. Default: as published.",
    )
    mean: Numbers | None = Field(
        default=None,
        description="What the classifier's preprocessing subtracts: one number, or one per channel. Default: as "
        "published.",
    )
    std: Numbers | None = Field(
        default=None, description="What the classifier's preprocessing divides by. Default: as published."
    )
    channel_order: Literal["RGB", "BGR"] | None = Field(
        default=None, description="Order of the classifier's colour channels. Default: RGB."
    )
    value_range: float | None = Field(
        default=None, gt=0, description="What white is before the mean is subtracted, 1 or 255. Default: as published."
    )
    class_layer: str | None = Field(
        default=None, description="The layer whose units are the classes. Default: found from the output."
    )
    output: Literal["softmax", "sigmoid", "none"] | None = Field(
        default=None,
        description="What makes probabilities of the classes' values. Default: softmax; sigmoid for a single class.",
    )
    decoder: str | None = Field(
        default=None,
        description="Decoder for the pretrained mode: a file from dgn pretrain; photographs or drawings come with dgn.",
    )
    generator: str | None = Field(
        default=None,
        description="Instead of a decoder, a function of your own that returns an nn.Module from codes to pictures and "
        "is run: FILE.py:FUNCTION, package.module:FUNCTION. Default: the decoder draws.",
    )
    seed: int = Field(default=0, ge=0, description="The first seed.")
    seeds: int = Field(default=1, ge=1, description="Pictures per target, with successive seeds.")
    updates: int | None = Field(default=None, ge=1, description="Updates per picture. Default: the preset's.")
    views: int | None = Field(
        default=None, ge=0, description="Randomly moved views of the picture per update, or 0. Default: the preset's."
    )
    stop_early: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Stop a picture when 20 updates raise its activation by less than this share, after 40 at the "
        "whole size. Default: never.",
    )
    tone_mapping: Literal["none", "notebook"] = Field(
        default="none",
        description="none, or notebook: stretch each picture to its own range, as the paper's notebook does; for "
        "preset paper.",
    )
    width: float | None = Field(
        default=None, gt=0, le=4, description="Factor on the generator's numbers of channels. Default: the preset's."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Precision of the arithmetic: float32, bfloat16, or auto: bfloat16 if the hardware has it.",
    )
    shard_size: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = Field(
        default="auto", description="Targets per shard. auto: 32; on CPUs fewer in runs of fewer than 1024 targets."
    )
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        default="auto", description="Targets that a device optimises at a time."
    )
    pack: bool | None = Field(
        default=None,
        description="Put pictures into the committed file of their shard, one file instead of one per picture: for a "
        "million pictures on a bucket. Default: as the run began, or not.",
    )
    workers: WorkerCount | None = Field(
        default=None,
        description="Number of workers, N or MIN-MAX. Default: one per GPU or, without GPUs, as many as have "
        "a core and memory, also of machines that join later.",
    )
    gpus_per_worker: float | None = Field(
        default=None, ge=0, description="GPUs per worker. Default: 1 if there are any."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Format of this job's and its workers' log: text or json."
    )

    @property
    def workers_range(self) -> tuple[int, int] | None:
        """The smallest and the largest number of workers; None if it follows the machines."""
        return None if self.workers is None else _fewest_and_most(self.workers)

    @property
    def largest_shard(self) -> int:
        """Targets per shard, at most."""
        return LARGEST_SHARD if self.shard_size == "auto" else self.shard_size

    @property
    def recipe_settings(self) -> dict[str, Any]:
        """Those that choose the numbers of the method."""
        return {"preset": self.preset, "tone_mapping": self.tone_mapping, **self._changes}

    @property
    def _changes(self) -> dict[str, Any]:
        """What this run changes of its preset, by the names that recipes have for it."""
        own = {"num_updates": self.updates, "num_views": self.views, "width": self.width, "min_rise": self.stop_early}
        return {name: value for name, value in own.items() if value is not None}

    def render_config(self, precision: Literal["float32", "bfloat16"], decoder: Decoder | None = None) -> RenderConfig:
        """The preset with this run's changes. The pretrained mode draws with the decoder.

        Raises: DgnError for settings that contradict each other, or that the decoder does not fit.
        """
        config = RenderConfig.from_preset(self.preset, precision, tone_mapping=self.tone_mapping, **self._changes)
        return replace(config, pretrained=decoder.adapted(config.pretrained)) if decoder else config
