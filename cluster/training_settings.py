"""The settings of a training, written down once: the flags of `dgn pretrain` and their help come from here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dgn.errors import DgnError


class TrainingSettings(BaseModel):
    """What decides a decoder apart from the photographs. A training is resumed with the same settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: Literal["standard", "paper"] = Field(
        default="standard",
        description="What is made: standard (windows, fitted to photographs in two passes), or paper (convolutions, "
        "the decoder of a denoising autoencoder; all settings but the width are its own).",
    )
    width: float = Field(
        default=1.0,
        gt=0,
        le=4,
        description="Factor on the numbers of channels, or of a window's axes; 1 is the paper's, or 150 and 100.",
    )
    epochs: int = Field(default=30, ge=1, description="Passes over the photographs.")
    batch_size: int = Field(default=16, ge=1, description="Photographs per step, over all workers.")
    learning_rate: float = Field(
        default=0.3,
        gt=0,
        description="Adam's initial rate, divided by each layer's number of inputs; falls to 0 as half a cosine.",
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

    def check(self, *others: str) -> None:
        """Raises: DgnError for a setting of recipe `paper` that was given to `standard`.

        Args:
            others: names of flags of recipe `paper` that were given beside the settings.
        """
        given = sorted([*(self.model_fields_set - {"recipe", "width"}), *others])
        if self.recipe == "standard" and given:
            flag = f"--{given[0].replace('_', '-')}"
            raise DgnError(f"{flag} is for recipe paper: leave it out, or give --recipe paper")
