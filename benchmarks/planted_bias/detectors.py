"""Detectors of a cue: a linear probe on early and late features of a network that took no part, the eye.

A probe is fitted to photographs with the cue against the same photographs without it. Shapes: N pictures, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgn.method.moves import resized
from dgn.networks.frozen import FrozenNetwork
from dgn.networks.registry import network_named
from dgn.networks.weights import load_weights

EYE = "efficientnet_lite2"
NUM_LAYERS = 6  # evenly spread over the depth
FALSE_ALARMS = 0.05  # of clean pictures, at the threshold


class Eye:
    """The network that took no part, and what it sees."""

    def __init__(self) -> None:
        self.network = FrozenNetwork(load_weights(network_named(EYE)))
        layers = self.network.layers.filter_layers
        self.layers = [layers[round(i * (len(layers) - 1) / (NUM_LAYERS - 1))] for i in range(NUM_LAYERS)]

    @torch.no_grad()
    def features(self, images_N3HW: Tensor) -> Tensor:
        """Mean and maximum over the places of each filter, (N, F), for RGB in [0, 1] of any size."""
        maps = self.network.responses(resized(images_N3HW, self.network.size_px), self.layers)
        return torch.cat([pooled for m in maps.values() for pooled in (m.mean((2, 3)), m.amax((2, 3)))], 1)


def threshold(clean_N: Tensor) -> float:
    """The score that 5 % of clean pictures exceed; of 20 pictures, one."""
    above = round(FALSE_ALARMS * len(clean_N))
    return clean_N.sort(descending=True).values[above].item()


def area_under_curve(positive_N: Tensor, negative_M: Tensor) -> float:
    """How often a positive's score is above a negative's; 0.5 is chance. Equal ones count half."""
    difference_NM = positive_N[:, None] - negative_M
    return ((difference_NM > 0).float() + (difference_NM == 0).float() / 2).mean().item()
