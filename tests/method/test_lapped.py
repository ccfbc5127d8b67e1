"""The standard pretrained generator: windows along photographs' principal axes, band by band."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dgn.method.autoencoder import along_axes
from dgn.method.lapped import BANDS, Band, LappedTransform, Sums, fitted
from dgn.networks.embedded.drawings import LABELS, draw

CHANNELS = 12
NUM_DRAWINGS = 12


@pytest.fixture(scope="module")
def drawings():
    stream = np.random.default_rng(0)
    return along_axes(torch.stack([torch.from_numpy(draw(LABELS[n % 24], stream).copy()) for n in range(NUM_DRAWINGS)]))


@pytest.fixture(scope="module")
def first(drawings):
    return fitted(Sums.of(drawings[:7]) + Sums.of(drawings[7:]), CHANNELS)


@pytest.fixture(scope="module")
def windows(first, drawings):
    """All bands."""
    grown = first
    while len(grown.transform.axes) < len(BANDS):
        grown = fitted(Sums.of(drawings, grown), CHANNELS, grown)
    return grown


def plain_windows(small, band):
    """All weighted windows of a small picture, by loops: (places, 3, s, s)."""
    side = 2 * band.step
    around = F.pad(small[None], (band.step // 2,) * 4, mode="reflect")[0]
    sine = torch.sin(torch.pi * (torch.arange(side) + 0.5) / side)
    return torch.stack([
        around[:, y * band.step : y * band.step + side, x * band.step : x * band.step + side] * torch.outer(sine, sine)
        for y in range(band.across) for x in range(band.across)
    ])  # fmt: skip


def small_of(picture, band):
    return F.interpolate(picture[None], size=(band.small_px, band.small_px), mode="area")[0]


def left_by(transform, num_bands, pictures):
    """What the first bands leave of pictures."""
    part = replace(transform, axes=transform.axes[:num_bands])
    return pictures - part.reconstruct(pictures)


def split(windows, numbers_NK):
    """The numbers of each band: (N, C, P)."""
    sizes = [CHANNELS * band.places for band in BANDS]
    parts = numbers_NK.split(sizes, -1)
    return [part.unflatten(-1, (CHANNELS, -1)) for part in parts]


@pytest.mark.parametrize("number", range(len(BANDS)))
def test_axes_are_the_principal_ones_of_drawings_and_their_mirror_images(number, windows, drawings):
    band, both = BANDS[number], torch.cat([drawings, drawings.flip(3)])
    colours = windows.transform.colours_3
    torch.testing.assert_close(colours, both.mean((0, 2, 3)), atol=1e-3, rtol=0)
    left = left_by(windows.transform, number, both) if number else both - colours[:, None, None]
    flat = torch.cat([plain_windows(small_of(each.double(), band), band) for each in left]).flatten(1)
    squares, shares = torch.linalg.eigh(flat @ flat.T)  # fewer windows than pixels: their principal axes' other half
    expected = (squares.flip(0)[:CHANNELS] / len(flat)).sqrt().float()
    deviations_CP = split(windows, windows.deviations_K)[number]
    assert torch.equal(deviations_CP, deviations_CP[:, :1].expand(-1, band.places)), "the same at each place"
    torch.testing.assert_close(deviations_CP[:, 0], expected, atol=1e-3, rtol=1e-2)
    ours = windows.transform.axes[number].flatten(1)
    torch.testing.assert_close(ours @ ours.T, torch.eye(CHANNELS), atol=1e-4, rtol=0)
    strongest = F.normalize(shares[:, -1] @ flat, dim=0).float()
    assert (ours[0] @ strongest).abs() == pytest.approx(1, abs=1e-2)


def test_codes_are_the_windows_components_and_their_mean_is_known(windows, drawings):
    transform = windows.transform
    code = transform.encode(drawings)
    assert code.shape == (NUM_DRAWINGS, CHANNELS * sum(band.places for band in BANDS))
    for number, (band, code_NCP) in enumerate(zip(BANDS, split(windows, code), strict=True)):
        left = drawings[3:4] - transform.colours_3[:, None, None]
        if number:
            left = left_by(transform, number, drawings[3:4])
        plain = plain_windows(small_of(left[0], band), band)
        expected = torch.einsum("c...,p...->cp", transform.axes[number], plain)
        torch.testing.assert_close(code_NCP[3], expected, atol=1e-3, rtol=1e-3)
    mirrored = transform.encode(drawings.flip(3))
    torch.testing.assert_close(windows.mean_K, torch.cat([code, mirrored]).mean(0), atol=2e-3, rtol=1e-3)


def test_with_every_axis_nothing_is_lost_but_fine_details(drawings):
    """The windows' squared weights add up to one."""
    for band in BANDS[:1]:
        size = 3 * (2 * band.step) ** 2
        whole = LappedTransform((torch.eye(size).unflatten(1, band.axis_shape),), torch.rand(3))
        drawn = whole.decode(whole.encode(drawings[:2]), 224)
        small = torch.stack([small_of(picture, band) for picture in drawings[:2]])
        wanted = F.interpolate(small, size=(224, 224), mode="bicubic", align_corners=False)
        torch.testing.assert_close(drawn, wanted, rtol=0, atol=1e-3)


def test_the_squared_weights_of_every_band_add_up_to_one():
    for band in (*BANDS, Band(3, 6, 1)):
        pictures = torch.rand(2, 3, band.small_px, band.small_px)
        torch.testing.assert_close(band.overlapped(band.windows(pictures)), pictures)


def test_more_axes_and_more_bands_lose_less(windows, drawings):
    def error(transform):
        return (transform.reconstruct(drawings) - drawings).square().mean()

    whole = windows.transform
    few, all_axes = (replace(whole, axes=(whole.axes[0][:count],)) for count in (4, CHANNELS))
    assert error(all_axes) < 0.9 * error(few)
    for number in range(1, len(BANDS)):
        fewer, more = (replace(whole, axes=whole.axes[:count]) for count in (number, number + 1))
        assert error(more) < 0.99 * error(fewer)


def test_pictures_are_sums_of_their_bands(windows):
    code = torch.randn(2, len(windows.mean_K), generator=torch.Generator().manual_seed(0))
    parts = [torch.zeros_like(code) for _ in BANDS]
    start = 0
    for part, band in zip(parts, BANDS, strict=True):
        end = start + CHANNELS * band.places
        part[:, start:end] = code[:, start:end]
        start = end
    none = windows.transform.decode(torch.zeros_like(code), 224)
    added = sum(windows.transform.decode(part, 224) - none for part in parts)
    torch.testing.assert_close(windows.transform.decode(code, 224), added + none, atol=1e-4, rtol=1e-4)


def test_sums_of_parts_are_the_sum_of_all(drawings, first):
    for before in (None, first):
        parts = Sums.of(drawings[:5], before) + Sums.of(drawings[5:], before)
        whole = Sums.of(drawings, before)
        assert parts.count == whole.count == NUM_DRAWINGS
        np.testing.assert_allclose(parts.small_3SS, whole.small_3SS, atol=1e-3)
        added, expected = (torch.from_numpy(one.products_DD).double() for one in (parts, whole))
        torch.testing.assert_close(added, expected, atol=0.1, rtol=1e-3)


def test_starts_are_photographs_codes_in_deviations(first, drawings):
    steps = first.starts(drawings)
    assert steps.shape == (NUM_DRAWINGS, CHANNELS * BANDS[0].places)
    code = first.mean_K + first.deviations_K * steps
    torch.testing.assert_close(code, first.transform.encode(drawings), atol=1e-3, rtol=1e-3)


def test_drawings_that_hardly_vary_still_have_deviations():
    plain = torch.zeros(2, 3, 224, 224)
    windows = fitted(Sums.of(plain), CHANNELS)
    assert torch.isfinite(windows.deviations_K).all()
    assert torch.isfinite(windows.transform.decode(windows.mean_K[None], 224)).all()
