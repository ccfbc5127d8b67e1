"""The directions of the decoder's code."""

import pytest
import torch

from dgn.errors import DgnError
from dgn.method.autoencoder import Autoencoder
from dgn.method.directions import POSITIONS, code_directions
from dgn.method.generator import generate


@pytest.fixture
def small_decoder():
    """Width 0.0625: 8 channels, one of which hardly anything comes of."""
    decoder = Autoencoder(0.0625, seed=3).decoder.eval()
    weights = {name: tensor.detach().clone() for name, tensor in decoder.state_dict().items()}
    weights["conv0.weight"][:, 5] *= 1e-3
    weights[decoder.architecture.picture_gamma] *= torch.tensor([0.5, 0.2, -0.1])
    weights[decoder.architecture.picture_gamma.replace("gamma", "beta")] += 1
    return decoder.architecture, weights


def test_steps_along_the_codes_directions_change_pictures_equally(small_decoder):
    """Checked with autograd's derivatives, in float64."""
    architecture, weights = small_decoder
    mean, std = torch.randn(200, generator=torch.Generator().manual_seed(4)), torch.full((200,), 0.5)
    directions = code_directions(weights, 0.0625, mean, std).double()
    weights = {name: tensor.double() for name, tensor in weights.items()}
    products, variance, stream = torch.zeros(8, 8, dtype=torch.float64), 0.0, torch.Generator().manual_seed(0)
    for position in POSITIONS:
        code = (mean + std * torch.randn(200, generator=stream)).double().requires_grad_()
        picture_3HW = generate(architecture, weights, code)
        weighting = torch.zeros_like(picture_3HW, requires_grad=True)  # forward derivatives, by differentiating twice
        (pulled,) = torch.autograd.grad(picture_3HW, code, weighting, create_graph=True)
        changes = []
        for direction in directions.T:
            along = torch.zeros(8, 25, dtype=torch.float64)
            along[:, position] = direction
            (change,) = torch.autograd.grad(pulled, weighting, along.flatten(), retain_graph=True)
            changes.append(change.flatten())
        products += torch.stack(changes) @ torch.stack(changes).T / len(POSITIONS)
        variance += picture_3HW.var((1, 2), correction=0).sum().item() / len(POSITIONS)
    shares = products / (variance * 224**2 / 25)
    expected = torch.eye(8, dtype=torch.float64)
    expected[0, 0] = shares[0, 0]  # the weakest
    assert 0 < shares[0, 0] < 0.01
    torch.testing.assert_close(shares, expected, atol=5e-3, rtol=0)


def test_a_decoder_that_ignores_its_code_has_no_directions(small_decoder):
    _, weights = small_decoder
    weights["conv0.weight"].zero_()
    with pytest.raises(DgnError, match="draws the same picture whatever its code"):
        code_directions(weights, 0.0625, torch.zeros(200), torch.ones(200))
