"""An entry of `dgn tune` for the device of this machine."""

import torch

from dgn.cost.tuned import Timing, Tuned
from dgn.engine import engine_for

HERE = engine_for().model
TUNED = Tuned(
    device=HERE, discriminator="vgg16-mini", preset="standard", precision="float32",
    is_winograd=None if torch.cuda.is_available() else False, batch_size={"untrained": 2, "pretrained": 1},
    timings=(Timing("untrained", "float32", False, 2, 0.5),), is_complete=True,
)  # fmt: skip
