"""Where a decoder comes from: a file, an S3 object, or one of those that come with dgn."""

from __future__ import annotations

from collections.abc import Iterable

from dgn.errors import DgnError, WeightsMismatch, WeightsMissing
from dgn.method.decoder import FrozenDecoder, read_decoder
from dgn.networks import embedded
from dgn.runs.stores import read_url

SHIPPED_DECODERS = embedded.DECODERS


def needed_decoder(modes: Iterable[str], source: str | None, width: float | None) -> FrozenDecoder | None:
    """The decoder for targets of these modes; None if none of them is `pretrained`. Arguments as in `load_decoder`.

    Raises: DgnError if a decoder is needed and not given; WeightsMissing, WeightsMismatch.
    """
    if "pretrained" not in modes:
        return None
    if source is None:
        raise DgnError(
            "the pretrained mode needs a decoder: give --decoder FILE (in Python decoder=; dgn pretrain IMAGES FILE "
            f"makes one, {' and '.join(SHIPPED_DECODERS)} come with dgn), or --modes untrained (in Python modes=)"
        )
    return load_decoder(source, width)


def load_decoder(source: str, width: float | None = None) -> FrozenDecoder:
    """A decoder by path, by `s3://` address, or one of those that come with dgn by its name.

    Args:
        width: the generator's, if it was given; the decoder must have the same.

    Raises: WeightsMissing, WeightsMismatch.
    """
    path = str(embedded.weights_path(source)) if source in SHIPPED_DECODERS else source
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
