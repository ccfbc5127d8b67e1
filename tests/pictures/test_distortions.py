"""Distortions of pictures for which the result is known."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dgn.pictures.distortions import DISTORTIONS, blur, crop, jpeg, turn
from dgn.runs.judgements import DISTORTION_NAMES, JUDGED_SCHEMA, SCHEMA


def constant(*rgb):
    return torch.tensor(rgb, dtype=torch.uint8)[None, :, None, None].expand(1, 3, 224, 224).clone()


def test_the_schema_names_every_distortion():
    assert tuple(DISTORTIONS) == DISTORTION_NAMES
    assert {field.name for field in SCHEMA} - {field.name for field in JUDGED_SCHEMA} == {"shard", "attempt"}


@pytest.mark.parametrize("name", DISTORTION_NAMES)
def test_a_picture_of_one_colour_stays(name):
    for colour in ((128, 128, 128), (0, 0, 0), (255, 255, 255)):
        assert torch.equal(DISTORTIONS[name](constant(*colour)), constant(*colour))
    red = DISTORTIONS[name](constant(200, 30, 90)).int() - constant(200, 30, 90).int()
    assert red.abs().max() <= (3 if name == "jpeg" else 0)  # which keeps colours in steps
    assert DISTORTIONS[name](constant(1, 2, 3)).dtype == torch.uint8


@pytest.mark.parametrize("name", DISTORTION_NAMES)
def test_pictures_of_a_batch_are_distorted_one_by_one(name):
    pictures = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8)
    before = pictures.clone()
    together = DISTORTIONS[name](pictures)
    assert torch.equal(pictures, before)
    assert torch.equal(together, torch.cat([DISTORTIONS[name](one[None]) for one in pictures]))


def test_blur_spreads_an_edge_by_its_sigma():
    edge = constant(0, 0, 0)
    edge[..., 112:] = 255
    steps = blur(edge)[0, 0, 112].double().diff()
    places = torch.arange(len(steps)) - 111.0
    assert steps.sum() == 255
    mean = (steps * places).sum() / 255
    variance = (steps * (places - mean) ** 2).sum() / 255
    assert mean.abs() < 0.05
    assert variance.item() == pytest.approx(2.0**2, abs=0.1)
    assert torch.equal(blur(edge)[0, 0, 3], blur(edge)[0, 2, 220])


def test_blur_of_a_point_has_a_gaussians_height():
    point = constant(0, 0, 0)
    point[..., 100, 50] = 255
    found = blur(point)[0, 0].double()
    for y, x in ((100, 50), (102, 50), (100, 48), (102, 52)):
        expected = 255 / (2 * np.pi * 4) * np.exp(-((y - 100) ** 2 + (x - 50) ** 2) / 8)
        assert abs(found[y, x].item() - expected) <= 0.51


def test_crop_enlarges_the_middle():
    x = torch.arange(224.0)
    ramp = constant(0, 0, 0)
    ramp[:] = x.round().to(torch.uint8)  # brightness is the column
    expected = 111.5 + 0.8 * (x - 111.5)
    assert (crop(ramp)[0, 1, 77] - expected).abs().max() <= 0.51
    assert (crop(ramp.transpose(2, 3))[0, 1, :, 9] - expected).abs().max() <= 0.51


def test_turn_takes_a_spot_ten_degrees_counter_clockwise():
    spot = constant(0, 0, 0)
    spot[..., 109:115, 190:194] = 255  # right of the centre, at its height
    found = turn(spot)[0, 0].double()
    y, x = torch.meshgrid(torch.arange(224.0), torch.arange(224.0), indexing="ij")
    at_y, at_x = (found * y).sum() / found.sum(), (found * x).sum() / found.sum()
    radius = 191.5 - 111.5
    assert at_x.item() == pytest.approx(111.5 + radius * np.cos(np.radians(10)), abs=0.1)
    assert at_y.item() == pytest.approx(111.5 - radius * np.sin(np.radians(10)), abs=0.1)  # up


def test_turn_mirrors_into_the_corners():
    ramp = constant(0, 0, 0)
    ramp[:] = torch.arange(224, dtype=torch.uint8)[:, None]  # brightness is the row
    above = 111.5 * (
        np.cos(np.radians(10)) + np.sin(np.radians(10))
    )  # the centre, where the first corner's colour lies
    assert above > 112  # outside
    assert abs(turn(ramp)[0, 0, 0, 0].item() - (111.5 - (224 - above))) <= 0.51


def test_jpeg_is_a_jpeg_of_quality_50():
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 224, 224), np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(picture[0].permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=50)
    with Image.open(buffer) as image:
        assert max(image.quantization[0]) == 121  # the standard's own table, which is quality 50
        assert np.array_equal(np.asarray(image), jpeg(picture)[0].permute(1, 2, 0).numpy())
