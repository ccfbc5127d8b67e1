"""Photographs of every kind of file are read right; what cannot be read says why."""

import io

import numpy as np
import pytest
from PIL import Image

from dgn.pictures.photographs import UnreadablePhotograph, load_photograph


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp():
    """Red grows to the right, green downwards; wider than high."""
    y, x = np.mgrid[0:300, 0:400]
    return Image.fromarray(np.stack([x * 255 // 399, y * 255 // 299, np.full_like(x, 40)], 2).astype(np.uint8))


def middle(image):
    return np.asarray(image.crop((50, 0, 350, 300)).resize((256, 256), Image.Resampling.LANCZOS)).astype(int)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_the_central_square_of_a_colour_picture(kind, options):
    photo = load_photograph(saved(ramp(), kind, **options))
    assert photo.shape == (256, 256, 3)
    assert photo.dtype == np.uint8
    assert np.abs(photo - middle(ramp())).mean() < 2


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA"])
def test_other_colour_modes_show_the_same_picture(mode):
    image = ramp().convert(mode)
    photo = load_photograph(saved(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert np.abs(photo - middle(image.convert("RGB"))).mean() < 2


def test_cmyk_jpeg():
    photo = load_photograph(saved(ramp().convert("CMYK"), "JPEG", quality=95))
    assert np.abs(photo - middle(ramp())).mean() < 3


def test_sixteen_bits_are_scaled_not_clipped():
    grey = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(256, 0)
    photo = load_photograph(saved(Image.fromarray(grey), "PNG"))
    assert np.abs(photo[128, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_exif_orientation_turns_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    photo = load_photograph(saved(ramp(), "JPEG", quality=95, exif=exif))
    upright = ramp().rotate(-90, expand=True)
    expected = np.asarray(upright.crop((0, 50, 300, 350)).resize((256, 256), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(photo - expected).mean() < 2


def test_what_is_transparent_becomes_white():
    clear = Image.new("RGBA", (300, 300), (255, 0, 0, 0))
    assert (load_photograph(saved(clear, "PNG")) == 255).all()


def test_broken_and_huge_pictures_say_why():
    whole = saved(ramp(), "JPEG")
    with pytest.raises(UnreadablePhotograph, match="truncated"):
        load_photograph(whole[: len(whole) // 2])
    with pytest.raises(UnreadablePhotograph, match="not a picture of a known format"):
        load_photograph(b"<html>not found</html>")
    with pytest.raises(UnreadablePhotograph, match="not a picture"):
        load_photograph(b"")
    for side, message in ((10_000, "10000 x 10000 px, at most 89 million"), (20_000, "at most 89 million")):
        with pytest.raises(UnreadablePhotograph, match=message):
            load_photograph(saved(Image.new("1", (side, side)), "PNG"))
