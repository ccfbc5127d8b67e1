"""The standard recipe's code: a lapped transform, and the decoder that starts as its inverse."""

import numpy as np
import pytest
import torch

from dgn.method.architecture import Architecture
from dgn.method.autoencoder import LappedAutoencoder, along_axes, central_crop, inner
from dgn.method.generator import generate_shared, running_averages
from dgn.method.lapped import MARGIN_PX, SMALL_PX, WINDOW_PX, LappedTransform, principal_transform
from dgn.method.linear_start import start_linear
from dgn.networks.embedded.drawings import LABELS, draw

WIDTH = 0.125  # 16 channels of the code


@pytest.fixture(scope="module")
def surrounded():
    """32 drawings, with 80 px around their middle 224."""
    stream = np.random.default_rng(0)
    drawings = torch.stack([torch.from_numpy(draw(LABELS[n % 24], stream, 256).copy()) for n in range(32)])
    return along_axes(central_crop(drawings, MARGIN_PX))


@pytest.fixture(scope="module")
def transform(surrounded):
    stream = torch.Generator().manual_seed(1)
    corners = torch.randint(surrounded.shape[-1] - WINDOW_PX, (8, len(surrounded), 2), generator=stream).tolist()
    windows = [
        torch.stack(
            [
                picture[:, y : y + WINDOW_PX, x : x + WINDOW_PX]
                for picture, (y, x) in zip(surrounded, of_one, strict=True)
            ]
        )
        for of_one in corners
    ]
    return principal_transform(windows, 16)


def test_codes_are_the_windows_components_one_by_one(transform, surrounded):
    code = transform.encode(surrounded[:2])
    assert code.shape == (2, 16, 5, 5)
    sine = torch.sin(torch.pi * (torch.arange(WINDOW_PX) + 0.5) / WINDOW_PX)
    row, column, channel = 1, 3, 4
    window = surrounded[1, :, 64 * row : 64 * row + WINDOW_PX, 64 * column : 64 * column + WINDOW_PX]
    large = torch.nn.functional.interpolate(
        transform.axes[channel][None], size=(WINDOW_PX, WINDOW_PX), mode="bicubic", align_corners=False
    )[0]
    seen = (window - transform.colours[:, None, None]) * torch.outer(sine, sine)
    expected = (seen * large / large.norm()).sum() / transform.deviations[channel]
    torch.testing.assert_close(code[1, channel, row, column], expected, rtol=1e-4, atol=1e-4)


def test_codes_vary_by_about_one_and_axes_are_orthonormal(transform, surrounded):
    code = transform.encode(surrounded)
    deviations = code.transpose(0, 1).flatten(1).std(1)
    assert 0.5 < deviations.min() <= deviations.max() < 1.6
    flat = transform.axes.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(16), rtol=0, atol=1e-4)


def test_with_every_component_pictures_come_back():
    """The windows' squared weights add up to one. Pictures without fine details lose nothing."""
    stream = torch.Generator().manual_seed(2)
    smooth = torch.nn.functional.interpolate(
        torch.randn(1, 3, 12, 12, generator=stream), size=(384, 384), mode="bicubic", align_corners=False
    )
    size = 3 * SMALL_PX**2
    whole = LappedTransform(torch.eye(size).unflatten(1, (3, SMALL_PX, SMALL_PX)), torch.ones(size), torch.zeros(3))
    # A pixel of a small window stands for 16 of the large one, drawn as a bicubic bump.
    drawn = whole.decode(whole.encode(smooth))
    assert drawn.shape == (1, 3, 224, 224)
    wanted = inner(smooth, MARGIN_PX)
    scale = (drawn * wanted).sum() / drawn.square().sum()
    assert (scale * drawn - wanted).square().mean() < 0.02 * wanted.square().mean()


def test_the_decoder_starts_as_the_transforms_inverse(transform, surrounded):
    model = LappedAutoencoder(WIDTH, seed=0)
    model.encoder = transform
    start_linear(model.decoder, transform, surrounded)
    with torch.no_grad():
        drawn, code = model(surrounded)
        wanted = transform.decode(code)
        variance = wanted.var((0, 2, 3)).mean()
        assert (drawn - wanted).square().mean() < 0.25 * variance
        one, other = code[:1], code[1:2]
        torch.testing.assert_close(
            model.decoder(0.5 * (one + other)), 0.5 * (model.decoder(one) + model.decoder(other)), atol=1e-3, rtol=0
        )
    assert Architecture("pretrained", WIDTH).num_features == 400


def test_three_places_decode_to_96_px(transform, surrounded):
    """What training sees of a photograph is what the whole picture shows there, but for the maps' edges."""
    model = LappedAutoencoder(WIDTH, seed=0).eval()
    model.encoder = transform
    start_linear(model.decoder, transform, surrounded)
    with torch.no_grad():
        whole, _ = model(surrounded[:1])
        part, code = model(surrounded[:1, :, :256, :256])
    assert code.shape == (1, 16, 3, 3)
    assert part.shape == (1, 3, 96, 96)
    torch.testing.assert_close(part[..., :24, :24], whole[..., :24, :24], atol=1e-4, rtol=0)


def test_training_keeps_the_averages_it_was_given(transform, surrounded):
    model = LappedAutoencoder(WIDTH, seed=0).train()
    model.encoder = transform
    start_linear(model.decoder, transform, surrounded)
    before = {name: buffer.clone() for name, buffer in model.decoder.named_buffers()}
    drawn, code = model(surrounded[:2])
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.decoder.named_buffers())
    weights = dict(model.decoder.named_parameters()) | before
    again = generate_shared(model.architecture, weights, code, running_averages)
    torch.testing.assert_close(drawn, again)
