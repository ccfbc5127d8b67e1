"""The decoder's file."""

import pytest
import torch

from dgn.errors import WeightsMismatch
from dgn.method.decoder import read_decoder, serialise
from tests.conftest import WIDTH


def test_files_that_are_not_decoders_are_refused():
    with pytest.raises(WeightsMismatch, match="not a whole decoder file"):
        read_decoder(b"no", "it")
    with pytest.raises(WeightsMismatch, match="not a decoder of this dgn: its header has format version None"):
        read_decoder(serialise({"x": torch.zeros(1)}, {"width": WIDTH, "format_version": None}), "it")
