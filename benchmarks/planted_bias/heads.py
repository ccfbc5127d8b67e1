"""Two-class networks: a new linear head on the features of a network that is known by name, and what it learned.

Class 0 is dogs, class 1 is others. Shapes: N pictures, K features that the network's own head reads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgn.networks.frozen import FrozenNetwork
from dgn.networks.weights import NetworkWeights

PENALTY = 0.01  # on half of the squared weights, of features with deviation 1


def fitted(features_NK: Tensor, is_positive_N: Tensor) -> tuple[Tensor, float]:
    """The linear function that is above 0 where `is_positive_N`: logistic regression. Returns weights (K,), offset."""
    mean_K, std_K = features_NK.mean(0), features_NK.std(0).clamp_min(1e-3)
    scaled_NK, wanted_N = (features_NK - mean_K) / std_K, is_positive_N.float()
    variable = torch.zeros(features_NK.shape[1] + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([variable], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        values_N = scaled_NK @ variable[:-1] + variable[-1]
        value = F.binary_cross_entropy_with_logits(values_N, wanted_N) + PENALTY / 2 * variable[:-1].square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    weight_K = variable.detach()[:-1] / std_K
    return weight_K, float(variable.detach()[-1] - weight_K @ mean_K)


def two_class_head(weight_K: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """Weights (2, K) and biases (2,) whose softmax is the logistic function of the margin."""
    return torch.stack([weight_K, -weight_K]) / 2, torch.tensor([offset, -offset]) / 2


def with_head(weights: NetworkWeights, weight_CK: Tensor, bias_C: Tensor) -> NetworkWeights:
    """The network with another linear head of C classes."""
    network, layers = weights.network, weights.network.layers
    assert layers.class_layer
    head, _ = layers.module_of(layers.class_layer)
    state = weights.state | {f"{head}.weight": weight_CK, f"{head}.bias": bias_C}
    builder: Any = network.model
    return NetworkWeights(
        replace(network, model=builder.with_classes(len(bias_C)), labels=()), state, "", "a head of our own"
    )


def feature_network(weights: NetworkWeights) -> FrozenNetwork:
    """The network whose classes are the features that its head reads: the head passes them on."""
    assert weights.network.layers.class_layer
    head, _ = weights.network.layers.module_of(weights.network.layers.class_layer)
    num_features = weights.state[f"{head}.weight"].shape[1]
    return FrozenNetwork(with_head(weights, torch.eye(num_features), torch.zeros(num_features)))
