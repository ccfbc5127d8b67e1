"""From settings to a network with its weights: names, files of weights and labels, and addresses of them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch

from dgn.errors import DgnError, WeightsMismatch, WeightsMissing
from dgn.networks.labels import parse_labels
from dgn.networks.network import Network
from dgn.networks.own_code import is_code, own_code
from dgn.networks.registry import network_named
from dgn.networks.weights import NetworkWeights, file_sha256, load_weights
from dgn.runs.config import RunConfig
from dgn.runs.stores import in_bucket, read_url
from dgn.text import in_one_line

EXPECTED_LABELS = "expected a file, s3://, gs:// or az:// with one label per class"


def describe_network(config: RunConfig) -> Network:
    """The network that the settings ask for. Reads its weights only if they give a file, for its number of classes.

    Raises: DgnError as `load_network` does.
    """
    return load_network(config).network if config.weights else _labelled(_network(config), config)


def load_network(config: RunConfig) -> NetworkWeights:
    """The network that the settings ask for, with its weights.

    Raises: DgnError for settings or files that do not fit it; WeightsMissing, WeightsMismatch.
    """
    network = _network(config)
    if config.weights is None:
        weights = load_weights(network)
        if config.weights_sha256 not in (None, weights.sha256):
            raise WeightsMismatch(f"{weights.source} has the SHA-256 {weights.sha256}, not {config.weights_sha256}")
    else:
        with _fetched(config.weights, config.weights_sha256) as path:
            weights = load_weights(network, path)
    return replace(weights, network=_labelled(weights.network, config))


def labels_sha256(network: Network, config: RunConfig) -> str | None:
    """Of the labels that the settings give, as 64 hex digits, whatever kind of file has them; None for the network's
    own."""
    return None if config.labels is None else hashlib.sha256(json.dumps(network.labels).encode()).hexdigest()


def _network(config: RunConfig) -> Network:
    """The network as its settings describe it, without labels of one's own."""
    wants = {
        "size": config.input_size, "mean": config.mean, "std": config.std, "channel_order": config.channel_order,
        "value_range": config.value_range, "class_layer": config.class_layer, "output": config.output,
    }  # fmt: skip
    name = config.discriminator
    if not is_code(name):
        return network_named(name).with_settings(**wants)
    lacking = [flag for flag, value in (("--input-size", config.input_size), ("--mean", config.mean),
                                        ("--std", config.std)) if value is None]  # fmt: skip
    if lacking:
        raise DgnError(
            f"{name} does not say what pictures it wants: give {', '.join(lacking)} (ImageNet's are --mean "
            "0.485,0.456,0.406 --std 0.229,0.224,0.225; values from 0 to 1 are --mean 0 --std 1)"
        )
    code = own_code(name)
    return Network(code, name=code.name, **{key: value for key, value in wants.items() if value is not None})  # type: ignore[arg-type]


def _labelled(network: Network, config: RunConfig) -> Network:
    """Raises: DgnError for labels that are not one per class."""
    if config.labels is None:
        return network
    is_here = "://" not in config.labels
    if not (in_bucket(config.labels) or (is_here and Path(config.labels).expanduser().is_file())):
        what = "no labels file at" if is_here else "labels"
        raise DgnError(f"{what} {config.labels}: {EXPECTED_LABELS}")
    try:
        data = read_url(config.labels)
    except FileNotFoundError as error:
        raise DgnError(f"no labels at {config.labels}: {EXPECTED_LABELS}") from error
    name = Path(config.labels).name
    labels = parse_labels(data, name)
    try:
        return network.labelled(labels)
    except DgnError as error:
        raise DgnError(f"labels {name}: {error}") from error


@contextmanager
def _fetched(source: str, sha256: str | None) -> Iterator[Path]:
    """A weights file on this machine, downloaded if it is an address.

    Raises: WeightsMissing; WeightsMismatch for a file with another SHA-256; DgnError for an unusable address.
    """
    if source.startswith("https://"):
        path = _downloaded(source, sha256)
    elif in_bucket(source):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(source).name
            try:
                path.write_bytes(read_url(source))
            except FileNotFoundError as error:
                raise WeightsMissing(f"no weights at {source}") from error
            _check_sha256(path, source, sha256)
            yield path
        return
    elif "://" in source:
        raise DgnError(f"weights {source}: expected a file, s3://, gs://, az:// or https://")
    else:
        path = Path(source).expanduser()
        if sha256 is not None and path.is_file():
            _check_sha256(path, source, sha256)
    yield path


def _downloaded(url: str, sha256: str | None) -> Path:
    """The file behind an https address, in PyTorch's cache, where it stays."""
    if sha256 is None:
        raise DgnError(f"weights {url}: give --weights-sha256 too, so that nothing else is taken for them")
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{sha256[:16]}-{Path(url.partition('?')[0]).name}"
    if not (path.is_file() and file_sha256(path) == sha256):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
        except RuntimeError as error:  # the hash differs
            raise WeightsMismatch(f"{url} does not have the SHA-256 {sha256}: {in_one_line(error)}") from error
        except (URLError, OSError, ValueError, HTTPException) as error:
            raise WeightsMissing(f"no weights at {url}: the download failed ({in_one_line(error)})") from error
    return path


def _check_sha256(path: Path, source: str, sha256: str | None) -> None:
    if sha256 is not None and (found := file_sha256(path)) != sha256:
        raise WeightsMismatch(f"{source} has the SHA-256 {found}, not {sha256}: it is another file")
