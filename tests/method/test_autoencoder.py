"""The denoising autoencoder and the decoder that it leaves behind."""

import pytest
import torch

from dgn.method.architecture import Architecture
from dgn.method.autoencoder import Autoencoder, add_noise, along_axes, central_crop, crop_and_flip, displayed
from dgn.method.decoder import expected_shapes, read_decoder, serialise
from dgn.method.generator import generate_shared, running_averages


@pytest.fixture(scope="module")
def photos():
    return torch.randint(0, 256, (3, 256, 256, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def stepped(photos):
    """An autoencoder after a few steps on three pictures, and its losses."""
    model = Autoencoder(0.03125, seed=0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    clean, stream, losses = along_axes(central_crop(photos)), torch.Generator().manual_seed(1), []
    for _ in range(6):
        reconstructed = model(add_noise(clean, 0.3, stream))
        loss = (reconstructed - clean).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return model.eval(), losses


def test_shapes_and_codes_of_the_paper():
    with torch.device("meta"):
        model = Autoencoder(1.0, seed=0)
        code = model.encoder(torch.empty(2, 3, 224, 224))
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 3, 224, 224)
    assert code.shape == (2, 3200)
    assert [m.out_channels for m in model.encoder if isinstance(m, torch.nn.Conv2d)][::2] == [32, 64, 128, 256, 512]


def test_the_decoder_starts_as_a_linear_map():
    decoder = Autoencoder(0.125, seed=0).decoder.double().eval()  # running averages: mean 0, variance 1
    one, other = torch.randn(2, 1, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert decoder(one).std() > 1e-3
        torch.testing.assert_close(decoder(one - 2 * other), decoder(one) - 2 * decoder(other))


def test_it_learns_and_its_file_draws_the_same(stepped):
    model, losses = stepped
    assert losses[-1] < losses[0]
    decoder = read_decoder(serialise(model.decoder.state_dict(), {"width": 0.03125}), "it")
    shapes = {name: tuple(tensor.shape) for name, tensor in decoder.weights.items()}
    assert shapes == expected_shapes(0.03125, "convolutions")
    assert decoder.generator == "convolutions"
    code = torch.randn(2, 100, generator=torch.Generator().manual_seed(2))
    drawn = generate_shared(Architecture("pretrained", 0.03125), decoder.weights, code, running_averages)
    torch.testing.assert_close(drawn, model.decoder(code))


def test_pictures_go_there_and_back(photos):
    assert torch.equal(displayed(along_axes(photos)), photos)
    crops = crop_and_flip(photos, torch.Generator().manual_seed(3))
    assert crops.shape == (3, 224, 224, 3)
    again = crop_and_flip(photos, torch.Generator().manual_seed(3))
    assert torch.equal(crops, again)
