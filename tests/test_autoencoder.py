"""The denoising autoencoder and the decoder that it leaves behind."""

from dataclasses import replace

import pytest
import torch

from dgn import embedded
from dgn.autoencoder import Autoencoder, add_noise, along_axes, central_crop, crop_and_flip, displayed
from dgn.decoder import PLACES, code_directions, expected_shapes, read_decoder, serialise
from dgn.errors import DgnError, WeightsMismatch
from dgn.generator import Architecture, generate, generate_batch, layers, running_averages
from dgn.recipes import RenderConfig
from dgn.render import _Batch, render_batch
from dgn.targets import Target, WeightedUnit
from tests.conftest import WIDTH, random_decoder


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
        reconstructed, _ = model(add_noise(clean, 0.3, stream))
        loss = (reconstructed - clean).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return model.eval(), losses


def test_shapes_and_codes_of_the_paper():
    with torch.device("meta"):
        model = Autoencoder(1.0, seed=0)
        reconstructed, code = model(torch.empty(2, 3, 224, 224))
    assert reconstructed.shape == (2, 3, 224, 224)
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
    codes = {"code.mean": torch.zeros(100), "code.directions": torch.eye(4)}
    decoder = read_decoder(serialise(model.decoder.state_dict() | codes, {"width": 0.03125}), "it")
    assert {name: tuple(tensor.shape) for name, tensor in decoder.weights.items()} == expected_shapes(0.03125)
    code = torch.randn(2, 100, generator=torch.Generator().manual_seed(2))
    drawn = layers(Architecture("pretrained", 0.03125), decoder.weights, code, running_averages)
    torch.testing.assert_close(drawn, model.decoder(code))


def test_the_decoder_that_ships_is_small_and_whole():
    path = embedded.weights_path(embedded.DECODER)
    assert path.stat().st_size <= 2_000_000
    assert read_decoder(path.read_bytes(), str(path)).width == 0.25


def test_pictures_go_there_and_back(photos):
    assert torch.equal(displayed(along_axes(photos)), photos)
    crops = crop_and_flip(photos, torch.Generator().manual_seed(3))
    assert crops.shape == (3, 224, 224, 3)
    again = crop_and_flip(photos, torch.Generator().manual_seed(3))
    assert torch.equal(crops, again)


@pytest.mark.parametrize("preset", ["standard", "paper"])
def test_both_ways_to_use_a_decoder_keep_targets_apart(preset, quick_config, mini_float64, decoder):
    recipe = RenderConfig.from_preset(preset, "float64", width=WIDTH, num_updates=4).pretrained
    config = replace(quick_config, precision="float64", pretrained=recipe)
    targets = [Target((WeightedUnit("fc8", unit),), "pretrained", 0) for unit in (3, 7, 11)]
    together = render_batch(targets, config, mini_float64, decoder)
    for n, target in enumerate(targets):
        alone = render_batch([target], config, mini_float64, decoder)[0]
        assert alone.is_finite
        torch.testing.assert_close(together[n].picture_3HW, alone.picture_3HW, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together[0].picture_3HW, together[1].picture_3HW)


def test_standard_pictures_start_at_the_mean_code_with_a_contrast_of_their_own(mini_float64):
    decoder = random_decoder(WIDTH)
    gamma = decoder[Architecture("pretrained", WIDTH).picture_gamma]
    gamma *= torch.tensor([0.2, -0.4, 0.3])
    decoder["code.mean"] = torch.randn(decoder["code.mean"].shape, generator=torch.Generator().manual_seed(1))
    config = RenderConfig.from_preset("standard", "float64", width=WIDTH)
    target = Target((WeightedUnit("fc8", 3),), "pretrained", 0)
    batch = _Batch.start([target], config, mini_float64, decoder)
    assert torch.equal(batch.features(None)[0], decoder["code.mean"].double())
    raw_N3HW = generate_batch(batch.architecture, batch.own, batch.shared, batch.features(None))
    deviations = raw_N3HW.std((0, 2, 3))
    assert deviations.tolist() == pytest.approx([0.87, 0.45, 0.38], rel=1e-3)
    assert torch.equal(batch.shared[batch.architecture.picture_gamma].sign(), gamma.double().sign())
    with torch.no_grad():
        batch.own["alpha"].unflatten(1, (-1, 25))[0, 2, 7] = 1
    moved = (batch.features(None)[0] - decoder["code.mean"]).unflatten(0, (-1, 25)).detach()
    expected = torch.zeros_like(moved)
    expected[:, 7] = decoder["code.directions"][:, 2]
    torch.testing.assert_close(moved, expected)


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
    for place in PLACES:
        code = (mean + std * torch.randn(200, generator=stream)).double().requires_grad_()
        picture_3HW = generate(architecture, weights, code)
        weighting = torch.zeros_like(picture_3HW, requires_grad=True)  # forward derivatives, by differentiating twice
        (pulled,) = torch.autograd.grad(picture_3HW, code, weighting, create_graph=True)
        changes = []
        for direction in directions.T:
            along = torch.zeros(8, 25, dtype=torch.float64)
            along[:, place] = direction
            (change,) = torch.autograd.grad(pulled, weighting, along.flatten(), retain_graph=True)
            changes.append(change.flatten())
        products += torch.stack(changes) @ torch.stack(changes).T / len(PLACES)
        variance += picture_3HW.var((1, 2), correction=0).sum().item() / len(PLACES)
    shares = products / (variance * 224**2 / 25)
    expected = torch.eye(8, dtype=torch.float64)
    expected[0, 0] = shares[0, 0]  # the weakest
    assert 0 < shares[0, 0] < 0.01
    torch.testing.assert_close(shares, expected, atol=5e-3, rtol=0)


def test_a_decoder_that_ignores_its_code_has_no_directions(small_decoder):
    _, weights = small_decoder
    weights["conv0.weight"].zero_()
    with pytest.raises(DgnError, match="draws the same whatever its code"):
        code_directions(weights, 0.0625, torch.zeros(200), torch.ones(200))


def test_files_that_are_no_decoder():
    with pytest.raises(WeightsMismatch, match="no whole decoder file"):
        read_decoder(b"no", "it")
    with pytest.raises(WeightsMismatch, match="no decoder of this dgn: its header has format version None"):
        read_decoder(serialise({"x": torch.zeros(1)}, {"width": WIDTH, "format_version": None}), "it")
