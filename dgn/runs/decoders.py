"""Where a decoder comes from: a file, an S3 object, or the one that ships with dgn."""

from __future__ import annotations

from dgn.errors import WeightsMismatch, WeightsMissing
from dgn.method.decoder import FrozenDecoder, read_decoder
from dgn.networks import embedded
from dgn.runs.stores import read_url

SHIPPED_DECODER = embedded.DECODER


def load_decoder(source: str, width: float | None = None) -> FrozenDecoder:
    """A decoder by path, by `s3://` address, or the one that comes with dgn by its name.

    Args:
        width: the generator's, if it was given; the decoder must have the same.

    Raises: WeightsMissing, WeightsMismatch.
    """
    path = str(embedded.weights_path(source)) if source == SHIPPED_DECODER else source
    try:
        data = read_url(path)
    except FileNotFoundError as error:
        raise WeightsMissing(f"no decoder at {path}: dgn pretrain IMAGES OUT.safetensors makes one") from error
    decoder = read_decoder(data, path)
    if width not in (None, decoder.width):
        raise WeightsMismatch(
            f"decoder {path} has width {decoder.width:g}, not {width:g}: leave out the width, or give a decoder of "
            "that width"
        )
    return decoder
