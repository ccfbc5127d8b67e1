"""How a picture that resembles a photograph is told from one that merely has a small squared error.

Three distances between a reconstruction and its photograph. Each one's gradient by the picture is scaled to norm 1
before they are added with fixed weights. So no distance's units matter, and none outweighs the others later on.

Shapes: N pictures, C channels of a layer, H, W.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dgn.errors import DgnError
from dgn.method.batch import Classifier
from dgn.method.colours import from_axes

FEATURES, TEXTURES, PYRAMID = 1.0, 0.3, 0.5  # shares of the three distances in the gradient
NUM_TEXTURED = 3  # of the shallowest layers, whose Gram matrices are compared
NUM_LEVELS = 4  # of the Laplacian pyramid


class Likeness:
    """The distances, with a frozen network's features.

    Args:
        network: reads pictures of `px`, smaller than its own if need be.

    Raises: DgnError if it does not read them.
    """

    def __init__(self, network: Classifier, candidates: Sequence[str], px: int):
        self.network = network
        self.layers = _deepest_of_each_size(network, candidates, px)

    def gradient(self, pictures_N3HW: Tensor, photographs_N3HW: Tensor) -> Tensor:
        """The sum of the distances' gradients by the pictures, (N, 3, H, W). Both along the colour axes."""
        pictures = pictures_N3HW.detach().requires_grad_()
        found = self.network.responses(from_axes(pictures), self.layers)
        with torch.no_grad():
            wanted = self.network.responses(from_axes(photographs_N3HW), self.layers)
        pairs = [(found[layer].float(), wanted[layer].float()) for layer in self.layers]
        distances = (
            (FEATURES, torch.stack([_features(*pair) for pair in pairs]).sum()),
            (TEXTURES, torch.stack([_textures(*pair) for pair in pairs[:NUM_TEXTURED]]).sum()),
            (PYRAMID, _pyramid(pictures - photographs_N3HW)),
        )
        total = torch.zeros_like(pictures)
        for weight, distance in distances:
            (gradient,) = torch.autograd.grad(distance, pictures, retain_graph=True)
            total += weight * gradient / gradient.norm().clamp_min(1e-12)
        return total


def _deepest_of_each_size(network: Classifier, candidates: Sequence[str], px: int) -> list[str]:
    """Of the layers that pass on maps, the last for each size of map, in order of depth."""
    picture = torch.zeros(1, 3, px, px, device=network.engine.device)
    try:
        with torch.no_grad():
            responses = network.responses(picture, candidates)
    except Exception as error:  # whatever a network's own code raises for a size that it does not read
        raise DgnError(
            f"the network of --features does not read pictures of {px} px: give a convolutional one"
        ) from error
    last = {responses[layer].shape[2:]: layer for layer in candidates if responses[layer].ndim == 4}
    if not last:
        raise DgnError("the network of --features has no layers with maps: give a convolutional one")
    return list(last.values())


def _features(found_NCHW: Tensor, wanted_NCHW: Tensor) -> Tensor:
    """Mean squared distance of the channels' directions at each position, as LPIPS compares them (Zhang et al., 2018),
    without its learned weights."""
    return (_directions(found_NCHW) - _directions(wanted_NCHW)).square().sum(1).mean()


def _directions(maps_NCHW: Tensor) -> Tensor:
    return maps_NCHW * torch.rsqrt(maps_NCHW.square().sum(1, keepdim=True) + 1e-4)


def _textures(found_NCHW: Tensor, wanted_NCHW: Tensor) -> Tensor:
    """Squared distance of the Gram matrices, relative to the photograph's (Gatys et al., 2015)."""
    found, wanted = _gram(found_NCHW), _gram(wanted_NCHW)
    return ((found - wanted).square().sum((1, 2)) / (wanted.square().sum((1, 2)) + 1e-6)).mean()


def _gram(maps_NCHW: Tensor) -> Tensor:
    flat = maps_NCHW.flatten(2)
    return flat @ flat.mT / flat.shape[-1]


def _pyramid(difference_N3HW: Tensor) -> Tensor:
    """Mean absolute values of a Laplacian pyramid of the difference; a coarser level counts as much as a finer one."""
    total, rest = difference_N3HW.new_zeros(()), difference_N3HW
    for level in range(NUM_LEVELS):
        smaller = F.avg_pool2d(rest, 2)
        back = F.interpolate(smaller, size=rest.shape[-2:], mode="bilinear", align_corners=False)
        total = total + 2**level * (rest - back).abs().mean()
        rest = smaller
    return total + 2 ** (NUM_LEVELS - 1) * rest.abs().mean()
