"""Pictures as 8-bit arrays, PNG files and thumbnails."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dgn.errors import DgnError
from dgn.networks.embedded.drawings import draw
from dgn.pictures.codec import MAX_PX, as_tensor, decode_png, encode_png, encode_thumbnail, quantised


def test_png_keeps_every_8_bit_value():
    values = torch.arange(256, dtype=torch.uint8).repeat(3, 4, 1)
    rgb_HW3 = quantised(values.float() / 255)
    assert np.array_equal(rgb_HW3, values.permute(1, 2, 0).numpy())
    assert np.array_equal(decode_png(encode_png(rgb_HW3)), rgb_HW3)


def test_values_are_rounded_to_nearest_and_clamped():
    values = torch.tensor([-0.5, 0.0, 0.49 / 255, 0.51 / 255, 254.4 / 255, 1.0, 7.0]).repeat(3, 1, 1)
    assert quantised(values)[0].tolist() == [[level] * 3 for level in (0, 0, 0, 1, 254, 255, 255)]


def test_a_thumbnail_is_a_webp_of_96_px():
    drawing = draw("star", np.random.default_rng(0))
    with Image.open(io.BytesIO(encode_thumbnail(drawing))) as image:
        assert (image.format, image.size) == ("WEBP", (96, 96))
        small = np.asarray(image.convert("RGB")).astype(int)
    expected = np.asarray(Image.fromarray(drawing).resize((96, 96), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(small - expected).mean() < 5


def test_pictures_as_one_tensor():
    pictures = [np.full((2, 4, 3), level, np.uint8) for level in (7, 200)]
    pictures[0][1, 3] = 1, 2, 3
    tensor_N3HW = as_tensor(pictures)
    assert (tensor_N3HW.shape, tensor_N3HW.dtype) == ((2, 3, 2, 4), torch.uint8)
    assert tensor_N3HW[0, :, 1, 3].tolist() == [1, 2, 3]


def test_what_is_not_a_whole_png_is_refused():
    whole = encode_png(draw("star", np.random.default_rng(0)))
    gif = io.BytesIO()
    Image.new("RGB", (2, 2)).save(gif, "GIF")
    for data, says in (
        (whole[: len(whole) // 2], "not a whole PNG"),
        (gif.getvalue(), "not a PNG"),
        (b"", "not a PNG"),
    ):
        with pytest.raises(DgnError, match=says):
            decode_png(data)
    with pytest.raises(DgnError, match="5000 x 1 px: expected at most 4096"):
        decode_png(encode_png(np.zeros((1, 5000, 3), np.uint8)))
    assert decode_png(encode_png(np.zeros((1, MAX_PX, 3), np.uint8))).shape == (1, MAX_PX, 3)
