"""The decoder's file."""

from dataclasses import replace

import pytest
import torch

from dgn.errors import WeightsMismatch
from dgn.method.architecture import Architecture
from dgn.method.decoder import random_decoder, read_decoder, serialise
from dgn.method.recipes import PAPER, STANDARD
from tests.conftest import WIDTH


def test_files_that_are_not_decoders_are_refused():
    with pytest.raises(WeightsMismatch, match="not a whole decoder file"):
        read_decoder(b"no", "it")
    with pytest.raises(WeightsMismatch, match="not a decoder of this dgn: its header has format version None"):
        read_decoder(serialise({"x": torch.zeros(1)}, {"width": WIDTH, "format_version": None}), "it")


def decoder_of(recipe, **about):
    return read_decoder(serialise(random_decoder(recipe), {"width": WIDTH, **about}), "it.safetensors")


WINDOWS, CONVOLUTIONS = (replace(recipes["pretrained"], width=WIDTH) for recipes in (STANDARD, PAPER))


def test_each_preset_draws_with_its_own_generator():
    for recipe, other, do in (
        (
            WINDOWS,
            CONVOLUTIONS,
            "is of windows, and this preset draws with convolutions: make one with dgn",
        ),
        (CONVOLUTIONS, WINDOWS, "is of convolutions, and this preset draws with windows: give --preset paper"),
    ):
        decoder = decoder_of(recipe)
        assert decoder.adapted(replace(recipe, width=1.0)) == recipe, "as wide as the decoder"
        with pytest.raises(WeightsMismatch, match=f"it.safetensors {do}"):
            decoder.adapted(other)


def test_files_of_version_3_have_codes_and_are_for_the_papers_preset():
    channels = Architecture("pretrained", WIDTH).feature_channels
    codes = {"code.mean": torch.ones(25 * channels), "code.directions": torch.ones(channels, channels)}
    data = serialise(random_decoder(CONVOLUTIONS) | codes, {"width": WIDTH, "format_version": 3})
    decoder = read_decoder(data, "old.safetensors")
    assert decoder.adapted(CONVOLUTIONS) == CONVOLUTIONS
    assert decoder.weights["code.mean"].sum() == 25 * channels
    for version in (4, 5):
        with pytest.raises(WeightsMismatch, match=f"has format version {version}, expected 6; dgn pretrain IMAGES"):
            decoder_of(WINDOWS, format_version=version)


def test_axes_take_half_the_space_and_nothing_else_changes():
    before = random_decoder(WINDOWS)
    data = serialise(before, {"width": WIDTH})
    axes = [name for name in before if name.endswith(".axes")]
    rest = 4 * sum(tensor.numel() for name, tensor in before.items() if name not in axes)
    assert len(data) < 2 * sum(before[name].numel() for name in axes) + rest + 2000
    after = read_decoder(data, "it").weights
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[name], atol=1e-4 if name in axes else 0, rtol=0)
