"""What draws the pretrained mode: a decoder from a file, a bucket or dgn itself, or a generator of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from dgn.errors import DgnError, WeightsMismatch, WeightsMissing
from dgn.method.decoder import FrozenDecoder, read_decoder
from dgn.networks import embedded
from dgn.networks.own_code import is_code, own_code
from dgn.networks.own_generator import OwnGenerator, own_generator
from dgn.runs.config import RunConfig
from dgn.runs.stores import read_url

Decoder = FrozenDecoder | OwnGenerator
SHIPPED_DECODERS = embedded.DECODERS


def needed_decoder(
    modes: Iterable[str], config: RunConfig, generator: nn.Module | Callable[[], nn.Module] | None = None
) -> Decoder | None:
    """What draws targets of these modes; None if none of them is `pretrained`.

    Args:
        generator: in place of the settings' own.

    Raises: DgnError if something is needed and not given, or given and not needed; WeightsMissing, WeightsMismatch.
    """
    given = [f"decoder {config.decoder}"] if config.decoder else []
    given += [f"generator {config.generator}"] if config.generator else ["a generator"] if generator is not None else []
    if len(given) > 1:
        raise DgnError(f"{' and '.join(given)} are given: expected one of them")
    if "pretrained" not in modes:
        if config.generator or generator is not None:
            raise DgnError(
                f"{given[0]} is given, but no target is in the pretrained mode: give --modes pretrained too (in Python "
                "modes='pretrained')"
            )
        return None
    if not given:
        raise DgnError(
            "the pretrained mode needs a decoder: give --decoder FILE (in Python decoder=; dgn pretrain IMAGES FILE "
            f"makes one, {' and '.join(SHIPPED_DECODERS)} come with dgn), a --generator of your own, or --modes "
            "untrained (in Python modes=)"
        )
    if config.decoder:
        return load_decoder(config.decoder, config.width)
    if config.width is not None:
        raise DgnError(f"width {config.width:g} with {given[0]}, which has a width of its own: leave the width out")
    if config.generator:
        if not is_code(config.generator):
            raise DgnError(
                f"generator '{config.generator}': expected FILE.py:FUNCTION or package.module:FUNCTION, a function "
                "that returns an nn.Module from codes to pictures"
            )
        generator = own_code(config.generator, "generator")
    assert generator is not None
    return own_generator(generator)


def load_decoder(source: str, width: float | None = None) -> FrozenDecoder:
    """A decoder by path, by its address in a bucket, or one of those that come with dgn by its name.

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
