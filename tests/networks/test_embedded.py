"""The networks and the decoders that come with dgn."""

import pytest

from dgn.method.decoder import read_decoder
from dgn.networks import embedded
from tools.train_embedded import share_right


@pytest.mark.parametrize("network", embedded.NETWORKS)
def test_embedded_files_are_small_and_right(network):
    path = embedded.weights_path(network)
    assert path.stat().st_size <= 2_000_000
    assert share_right(network, path, per_class=10) >= 0.96, "the script prints at least 97 % of 1,200"


@pytest.mark.parametrize("decoder", embedded.DECODERS)
def test_decoders_that_come_with_dgn_are_small_and_whole(decoder):
    path = embedded.weights_path(decoder)
    assert path.stat().st_size <= 3_000_000
    assert read_decoder(path.read_bytes(), str(path)).generator == "windows"
