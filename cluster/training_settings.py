"""The settings of a training, written down once: the flags of `dgn pretrain` and their help come from here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingSettings(BaseModel):
    """What decides a decoder apart from the photographs. A training is resumed with the same settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: Literal["standard", "paper"] = Field(
        default="standard",
        description="How it is trained: standard (a code of overlapping windows, likeness by features, textures and "
        "edges), or paper (a dense encoder, the squared error alone).",
    )
    features: str = Field(
        default="efficientnet_lite0",
        description="Network whose features recipe standard compares; a judge of the pictures should be another.",
    )
    width: float = Field(default=1.0, gt=0, le=4, description="Factor on all numbers of channels; 1 is the paper's.")
    epochs: int = Field(default=30, ge=1, description="Passes over the photographs.")
    batch_size: int = Field(default=16, ge=1, description="Photographs per step, over all workers.")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Adam's initial rate, divided by each layer's number of inputs; falls to 0 as half a cosine. "
        "Default: 0.03, with recipe paper 0.3.",
    )
    noise_sigma: float = Field(
        default=0.1,
        ge=0,
        description="Standard deviation of the input's noise, in standard deviations of photographs' colours.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of all randomness.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Precision of the arithmetic: float32, bfloat16, or auto: bfloat16 if the hardware has it.",
    )
