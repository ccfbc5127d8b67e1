"""The decoder's file."""

import pytest
import torch

from dgn.errors import WeightsMismatch
from dgn.method.decoder import principal_deviations, random_decoder, read_decoder, serialise
from dgn.method.recipes import PAPER, STANDARD
from tests.conftest import WIDTH


def test_files_that_are_not_decoders_are_refused():
    with pytest.raises(WeightsMismatch, match="not a whole decoder file"):
        read_decoder(b"no", "it")
    with pytest.raises(WeightsMismatch, match="not a decoder of this dgn: its header has format version None"):
        read_decoder(serialise({"x": torch.zeros(1)}, {"width": WIDTH, "format_version": None}), "it")


def test_an_earlier_file_is_for_the_papers_preset_only():
    data = serialise(random_decoder(WIDTH), {"width": WIDTH, "format_version": 3})
    decoder = read_decoder(data, "old.safetensors")
    decoder.check_for(PAPER["pretrained"])
    with pytest.raises(WeightsMismatch, match=r"old.safetensors has format version 3, .* give --preset paper, or"):
        decoder.check_for(STANDARD["pretrained"])
    read_decoder(serialise(random_decoder(WIDTH), {"width": WIDTH}), "new").check_for(STANDARD["pretrained"])


def test_directions_are_principal_axes_as_long_as_their_deviations():
    values = torch.randn(3, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.tensor([[2.0, 0, 0], [1, 0.5, 0], [0, 0, 0]], dtype=torch.float64) @ values
    covariance = values.cov()
    directions = principal_deviations(covariance).double()
    torch.testing.assert_close(directions @ directions.T, covariance, atol=1e-5, rtol=1e-5)
    products = directions.T @ directions
    torch.testing.assert_close(products, products.diag().diag(), atol=1e-5, rtol=0)
