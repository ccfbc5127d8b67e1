"""The standard pretrained generator: windows along photographs' principal axes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dgn.method.autoencoder import along_axes
from dgn.method.lapped import AXES_SHAPE, PLACES, SIDE, SMALL_PX, STEP, LappedTransform, Sums, fitted
from dgn.networks.embedded.drawings import LABELS, draw

CHANNELS = 12
EDGE = STEP // 2  # of a window that lies outside


@pytest.fixture(scope="module")
def drawings():
    stream = np.random.default_rng(0)
    return along_axes(torch.stack([torch.from_numpy(draw(LABELS[n % 24], stream).copy()) for n in range(32)]))


@pytest.fixture(scope="module")
def windows(drawings):
    return fitted(Sums.of(drawings[:20]) + Sums.of(drawings[20:]), CHANNELS)


def plain_windows(small):
    """All weighted windows of a small picture, by loops: (places, 3, s, s)."""
    around = F.pad(small[None], (EDGE,) * 4, mode="reflect")[0]
    sine = torch.sin(torch.pi * (torch.arange(SIDE) + 0.5) / SIDE)
    return torch.stack([
        around[:, y * STEP : y * STEP + SIDE, x * STEP : x * STEP + SIDE] * torch.outer(sine, sine)
        for y in range(PLACES) for x in range(PLACES)
    ])  # fmt: skip


def small_of(picture):
    return F.interpolate(picture[None], size=(SMALL_PX, SMALL_PX), mode="area")[0]


def test_axes_are_the_principal_ones_of_drawings_and_their_mirror_images(windows, drawings):
    both = torch.cat([drawings, drawings.flip(3)]).double()
    colours = windows.transform.colours_3.double()
    torch.testing.assert_close(colours, both.mean((0, 2, 3)), atol=1e-3, rtol=0)
    flat = torch.cat([plain_windows(small_of(each - colours[:, None, None])) for each in both]).flatten(1)
    values, axes = torch.linalg.svd(flat, full_matrices=False)[1:]
    deviations = values / len(flat) ** 0.5
    torch.testing.assert_close(windows.deviations_C, deviations[:CHANNELS].float(), atol=1e-3, rtol=1e-3)
    ours = windows.transform.axes_C3ss.flatten(1)
    torch.testing.assert_close(ours @ ours.T, torch.eye(CHANNELS), atol=1e-4, rtol=0)
    assert (ours[0] @ axes[0].float()).abs() == pytest.approx(1, abs=1e-3)


def test_codes_are_the_windows_components_and_their_mean_is_known(windows, drawings):
    transform = windows.transform
    code = transform.encode(drawings)
    assert code.shape == (32, CHANNELS * PLACES**2)
    plain = plain_windows(small_of(drawings[3]) - transform.colours_3[:, None, None])
    expected = torch.einsum("c...,p...->cp", transform.axes_C3ss, plain)
    torch.testing.assert_close(code[3], expected.flatten(), atol=1e-3, rtol=1e-3)
    mirrored = transform.encode(drawings.flip(3))
    torch.testing.assert_close(windows.mean_K, torch.cat([code, mirrored]).mean(0), atol=1e-3, rtol=1e-3)
    deviations = code.unflatten(1, (CHANNELS, -1)).transpose(0, 1).flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(deviations, windows.deviations_C, rtol=0.3, atol=0)


def test_with_every_axis_nothing_is_lost_but_fine_details(drawings):
    """The windows' squared weights add up to one."""
    size = 3 * SIDE**2
    whole = LappedTransform(torch.eye(size).unflatten(1, AXES_SHAPE), torch.rand(3))
    drawn = whole.decode(whole.encode(drawings[:2]), 224)
    small = F.interpolate(drawings[:2], size=(SMALL_PX, SMALL_PX), mode="area")
    wanted = F.interpolate(small, size=(224, 224), mode="bicubic", align_corners=False)
    torch.testing.assert_close(drawn, wanted, rtol=0, atol=1e-3)


def test_more_axes_lose_less(windows, drawings):
    def error(transform):
        return (transform.decode(transform.encode(drawings), 224) - drawings).square().mean()

    fewer = replace(windows.transform, axes_C3ss=windows.transform.axes_C3ss[: CHANNELS // 3])
    assert error(windows.transform) < 0.9 * error(fewer)


def test_sums_of_parts_are_the_sum_of_all(drawings):
    parts, whole = Sums.of(drawings[:5]) + Sums.of(drawings[5:]), Sums.of(drawings)
    assert parts.count == whole.count == 32
    np.testing.assert_allclose(parts.small_3SS, whole.small_3SS, atol=1e-3)
    np.testing.assert_allclose(parts.products_DD, whole.products_DD, atol=0.1, rtol=1e-3)


def test_drawings_that_hardly_vary_still_have_deviations():
    plain = torch.zeros(2, 3, 224, 224)
    windows = fitted(Sums.of(plain), CHANNELS)
    assert torch.isfinite(windows.deviations_C).all()
    assert torch.isfinite(windows.transform.decode(windows.mean_K[None], 224)).all()
